"""Whether a training pass fits into memory, from small ones."""

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...palp_train.activations import activations_counted
from ...palp_train.config import TrainConfig
from ...palp_train.denoiser import Query, TextEncoder
from ...palp_train.lora import Lora
from ...palp_train.trainer import Picture
from .denoiser import HostDenoiser
from .families import family_of

SMALL, LARGER = 36, 52
"""Sides of the latents that are tried: no family's network is too coarse for them, and together they cost a fraction of a step."""
SAFETY = 1.25
"""The alignment branch, gradients and the allocator's gaps take some more than what autograd keeps."""


def training_needs_checkpointing(patcher: Any, lora: Lora, text_encoder: TextEncoder, pictures: Sequence[Picture], config: TrainConfig) -> bool:
    """Whether what autograd keeps of a training pass is more than the memory that is free now."""
    largest = max(pictures, key=lambda picture: picture.latent.numel())
    needed = activation_bytes(patcher, lora, text_encoder, largest) * config.batch_size
    return SAFETY * needed > comfy.model_management.get_free_memory(patcher.load_device)


def activation_bytes(patcher: Any, lora: Lora, text_encoder: TextEncoder, picture: Picture) -> float:
    """Bytes that autograd keeps of a training pass on one picture, without gradient checkpointing.

    Measured at the picture's own size if it is small, else at two small sizes: what is kept grows with the number of latents.
    """
    area = picture.latent.shape[-2] * picture.latent.shape[-1]
    if area <= LARGER**2:
        return _kept(patcher, lora, text_encoder, picture, picture.latent)
    few, more = (
        _kept(patcher, lora, text_encoder, picture, picture.latent[..., :1, :1].expand(*picture.latent.shape[:-2], side, side)) for side in (SMALL, LARGER)
    )
    return few + (more - few) * (area - SMALL**2) / (LARGER**2 - SMALL**2)


def _kept(patcher: Any, lora: Lora, text_encoder: TextEncoder, picture: Picture, latent: Tensor) -> int:
    network, sizes = patcher.model.diffusion_model, {}
    in_place = family_of(patcher.model).writes_in_place
    denoiser = HostDenoiser(patcher, lora, lambda: activations_counted(network, sizes, copied=in_place))
    with torch.no_grad():
        conditioning = text_encoder(picture.prompt)
    kept = denoiser(latent[None], denoiser.sigmas[-1:], [Query(conditioning=conditioning, personalized=True)])
    del kept  # only now may its memory be another's
    return sum(sizes.values())
