"""The main job as a graph in ComfyUI's API format: learn a teapot from one picture, with and without alignment, then draw it as the prompt says."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from demo.settings import LOSS, SAMPLING, TRAIN
from palp_train.config import LossConfig

Node = dict[str, Any]
Graph = dict[str, Node]
Link = list[str | int]

SUBJECT = "earl"
SUBJECT_PICTURES = 1
"""To learn from. From five, plain training overfits less."""
PLACEHOLDER = "[V]"
PERSONALIZATION_PROMPT = "a photo of [V]"
TARGET_PROMPT = "a sketch of [V] in Paris at night"
CLEAN_PROMPT = "a sketch of a teapot in Paris at night"
LORA_NAMES = {"plain": "demo_plain", "palp": "demo_palp"}
TITLES = {"base": "the model, without the teapot", "plain": "plain LoRA", "palp": "PALP"}
"""Of the pictures, by the id of the node that saves them."""

STEPS = 500
PICTURES = 6
"""Of each kind, from the same noise."""
ENLARGED = 4.0
"""How much larger they are saved than they are made, to be seen in the page."""


def demo_graph() -> Graph:
    """All of it: two trainings, then pictures by the pre-trained model, by plain personalization and by PALP, from the same seed."""
    pretrained = _pictures("base", ["demo model", 0], ["demo model", 1], CLEAN_PROMPT)
    plain, palp = _learned("plain", LossConfig(method="none")), _learned("palp", LossConfig(**LOSS))
    return {**_inputs(), **pretrained, **plain, **palp}


def _inputs() -> Graph:
    """The model, the subject's pictures and what they are called, and what all pictures have in common."""
    return {
        "demo model": _node("PalpDemoModel"),
        "demo subject": _node("PalpDemoSubject", name=SUBJECT, pictures=SUBJECT_PICTURES),
        "subject": _node(
            "PalpSubject",
            images=["demo subject", 0],
            class_word=["demo subject", 1],
            placeholder=PLACEHOLDER,
            personalization_prompt=PERSONALIZATION_PROMPT,
        ),
        "negative": _node("CLIPTextEncode", clip=["demo model", 1], text=""),
        "noise": _node("EmptyLatentImage", width=SAMPLING.resolution, height=SAMPLING.resolution, batch_size=PICTURES),
    }


def _learned(name: str, loss: LossConfig) -> Graph:
    """A training and pictures by what it learned."""
    return {**_training(name, loss), **_personalized(name)}


def _training(name: str, loss: LossConfig) -> Graph:
    """A training and its report as text."""
    return {
        f"{name} loss": _node("PalpLossConfig", **asdict(loss)),
        f"train {name}": _node(
            "PalpTrainLora",
            model=["demo model", 0],
            clip=["demo model", 1],
            vae=["demo model", 2],
            subject=["subject", 0],
            target_prompt=TARGET_PROMPT,
            clean_prompt=CLEAN_PROMPT,
            name=LORA_NAMES[name],
            steps=STEPS,
            rank=32,
            seed=0,
            resolution=SAMPLING.resolution,
            loss=[f"{name} loss", 0],
            **TRAIN,
        ),
        f"report {name}": _node("PreviewAny", source=[f"train {name}", 3]),
    }


def _personalized(name: str) -> Graph:
    """Pictures by a model that wears what a training learned."""
    apply = f"apply {name}"
    worn = _node("ApplyPalpLora", model=["demo model", 0], clip=["demo model", 1], palp_lora=[f"train {name}", 0], strength=1.0)
    return {apply: worn, **_pictures(name, [apply, 0], [apply, 1], TARGET_PROMPT)}


def _pictures(name: str, model: Link, clip: Link, prompt: str) -> Graph:
    """Prompt, sampler and decoder; the node ``name`` saves the pictures, enlarged."""
    return {
        f"{name} prompt": _node("CLIPTextEncode", clip=clip, text=prompt),
        f"{name} sampler": _node(
            "KSampler",
            model=model,
            positive=[f"{name} prompt", 0],
            negative=["negative", 0],
            latent_image=["noise", 0],
            seed=1,
            steps=SAMPLING.steps,
            cfg=SAMPLING.guidance,
            sampler_name=SAMPLING.sampler,
            scheduler=SAMPLING.scheduler,
            denoise=1.0,
        ),
        f"{name} decoder": _node("VAEDecode", samples=[f"{name} sampler", 0], vae=["demo model", 2]),
        f"{name} larger": _node("ImageScaleBy", image=[f"{name} decoder", 0], upscale_method="bicubic", scale_by=ENLARGED),
        name: _node("SaveImage", images=[f"{name} larger", 0], filename_prefix=f"palp_demo/{name}"),
    }


def _node(class_type: str, **inputs: Any) -> Node:
    return {"class_type": class_type, "inputs": inputs}
