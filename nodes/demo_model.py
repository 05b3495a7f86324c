"""PALP Demo Model and PALP Demo Subject: a small model and pictures to try everything with."""

import json
from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..palp_train.config import check_value
from ..palp_train.errors import InputError
from .host.demo_model import load_demo_model

SUBJECTS = Path(__file__).resolve().parents[1] / "demo" / "subjects"
PICTURES = 5
"""Of each subject."""


class PalpDemoModel(io.ComfyNode):
    """Load the model that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the node's help page."""
        return io.Schema(
            node_id="PalpDemoModel",
            display_name="PALP Demo Model",
            category="PALP",
            description="Loads the small text-to-image model that comes with this pack: pictures of 64 x 64 pixels, trained in minutes on any CPU.",
            inputs=[],
            outputs=[io.Model.Output(display_name="model"), io.Clip.Output(display_name="clip"), io.Vae.Output(display_name="vae")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Load."""
        loaded = load_demo_model()
        return io.NodeOutput(loaded.model, loaded.clip, loaded.vae)


def subject_names() -> list[str]:
    """The demo's subjects."""
    return sorted(file.parent.name for file in SUBJECTS.glob("*/subject.json"))


class PalpDemoSubject(io.ComfyNode):
    """Load the pictures of a subject that the demo model has never seen."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the node's help page."""
        return io.Schema(
            node_id="PalpDemoSubject",
            display_name="PALP Demo Subject",
            category="PALP",
            description="Loads pictures of a particular creature that PALP Demo Model has never seen, to personalize it with.",
            inputs=[
                io.Combo.Input("name", options=subject_names(), default="biscuit", tooltip="Which creature: the help page says what each is."),
                io.Int.Input(
                    "pictures", default=PICTURES, min=1, max=PICTURES, tooltip="How many of its five pictures. From one, plain training overfits most."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="Pictures of 64 x 64 pixels, for PALP Subject."),
                io.String.Output(display_name="class_word", tooltip="What it is, for PALP Subject."),
            ],
        )

    @classmethod
    def execute(cls, name: str, pictures: int = PICTURES) -> io.NodeOutput:
        """Read the pictures, shape (pictures, 64, 64, 3), values in [0, 1], and the class word.

        Raises:
            InputError: there is no such subject, or not so many pictures.
        """
        check_value("pictures", pictures, PICTURES, {"low": 1, "high": PICTURES})
        if name not in subject_names():
            raise InputError("name", f"there is no {name!r}, only {', '.join(subject_names())}.")
        folder = SUBJECTS / name
        facts = json.loads((folder / "subject.json").read_text(encoding="utf-8"))
        files = sorted(folder.glob("*.png"))[:pictures]
        images = [np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in files]
        return io.NodeOutput(torch.from_numpy(np.stack(images)), facts["class_word"])
