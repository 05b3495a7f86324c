"""What the user's own pictures are compared by: a CLIP, or a DINOv2, as the host runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from experiments.store import UNREADABLE

SIMILARITY = {"CLIP": "CLIP-I", "DINOv2": "DINO"}
"""What the field calls the cosine similarity of two pictures' embeddings, by whose they are."""


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """The host's models that pictures are compared by, with each other and with texts.

    Raises:
        SystemExit: the vision model embeds no whole picture, or the text model's embeddings do not compare with its.
    """

    name: str
    """Of the vision model's file."""
    vision: Any
    text: Any = None

    def __post_init__(self) -> None:
        space = self.seen(torch.zeros(1, 64, 64, 3))
        if space.ndim != 2:
            raise SystemExit(f"--clip-vision: with {self.name} ComfyUI embeds patches, as with every SigLIP, and no whole picture. Give a CLIP or a DINOv2.")
        if self.text and (self.family != "CLIP" or self.told("").shape[1] != space.shape[1]):
            raise SystemExit(
                f"--clip-text: its {self.told('').shape[1]} numbers for a text do not compare with the {space.shape[1]} that the {self.family} of "
                f"--clip-vision, {self.name}, has for a picture. Give both models of one CLIP, or leave --clip-text out."
            )

    @property
    def family(self) -> str:
        """Of the vision model: a key of SIMILARITY."""
        from comfy.image_encoders.dino2 import Dinov2Model

        return "DINOv2" if isinstance(self.vision.model, Dinov2Model) else "CLIP"

    @torch.inference_mode()
    def seen(self, pictures: Tensor) -> Tensor:
        """Embeddings (N, F) of pictures (N, H, W, 3) in [0, 1]."""
        return self.vision.encode_image(pictures).image_embeds.float().cpu()

    @torch.inference_mode()
    def told(self, text: str) -> Tensor:
        """The embedding (1, F) of a text."""
        return self.text.encode_from_tokens(self.text.tokenize(text), return_pooled=True)[1].float().cpu()


def embedder_of(vision: Path, text: Path | None) -> Embedder:
    """Of these files.

    Raises:
        SystemExit: one of them measures nothing, or the text model's embeddings do not compare with the vision model's.
    """
    return Embedder(name=vision.name, vision=_vision_model(vision), text=_text_with_projection(text) if text else None)


@torch.inference_mode()
def _vision_model(file: Path) -> Any:
    """A CLIP vision model or a DINOv2.

    Raises:
        SystemExit: the host knows no such model.
    """
    import comfy.clip_vision

    try:
        model = comfy.clip_vision.load(str(file))
    except UNREADABLE as error:
        raise SystemExit(f"--clip-vision: ComfyUI cannot load {file.name}: {error}") from error
    if not model:
        raise SystemExit(f"--clip-vision: ComfyUI does not know the vision model in {file.name}. Give a CLIP ViT-L, ViT-H or ViT-bigG, or a large DINOv2.")
    return model


@torch.inference_mode()
def _text_with_projection(file: Path) -> Any:
    """A CLIP text encoder whose embeddings compare with CLIP's of images.

    Raises:
        SystemExit: the file has no projection, as those inside of SD checkpoints.
    """
    import comfy.sd

    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except UNREADABLE as error:
        raise SystemExit(f"--clip-text: {file.name} is no whole safetensors file: {error}") from error
    if not any(name.endswith("text_projection.weight") for name in names):
        raise SystemExit(f"--clip-text: {file.name} has no text projection. Give a whole CLIP text model, for example ComfyUI's clip_l.safetensors.")
    return comfy.sd.load_clip([str(file)])


def mean_similarity(first: Tensor, second: Tensor) -> float:
    """Cosine similarity, the mean over all pairs of a row of one (N, F) and a row of the other (M, F)."""
    return float((functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T).mean())
