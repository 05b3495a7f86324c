"""The user's pictures as latents of the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...palp_train.errors import InputError
from ...palp_train.prompts import Subject

MIN_SIDE = 16


@dataclass(frozen=True, kw_only=True)
class SubjectPictures:
    """A subject and its pictures, each of shape (H, W, 3), values in [0, 1]."""

    subject: Subject
    images: tuple[Tensor, ...]


def checked_pictures(images: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The pictures of all batches, one by one, each of shape (H, W, 3).

    Args:
        images: the host's IMAGE values: batches of shape (B, H, W, C), of any sizes.

    Raises:
        InputError: there is none, one is not a picture, is tiny, or holds values that are no numbers.
    """
    for batch in images:
        if not isinstance(batch, Tensor) or batch.ndim != 4 or batch.shape[-1] not in (3, 4):
            found = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise InputError("images", f"{found} is not a batch of pictures of shape (B, H, W, 3). Connect an IMAGE output such as Load Image's.")
        if min(batch.shape[1:3]) < MIN_SIDE:
            raise InputError("images", f"{batch.shape[2]} x {batch.shape[1]} pixels is too small to learn from; at least {MIN_SIDE} x {MIN_SIDE}.")
        if not torch.isfinite(batch).all():
            raise InputError("images", "a picture holds values that are not numbers (NaN or infinity). Check the node that makes it.")
    pictures = tuple(picture[..., :3] for batch in images for picture in batch)
    if not pictures:
        raise InputError("images", "there is no picture. Connect at least one.")
    return pictures


def encode_pictures(vae: Any, model: Any, images: Sequence[Tensor], resolution: int) -> list[Tensor]:
    """Latents as the network takes them, each of shape (C, H, W), float32, outside of inference mode.

    Every picture keeps its aspect: it is scaled to about ``resolution`` x ``resolution`` pixels, and at most the few pixels over a whole
    number of latents are cut off at the edges.

    Args:
        vae: the graph's VAE.
        model: the graph's MODEL (a patcher); it tells the latents' scale.
        images: pictures of shape (H, W, 3), values in [0, 1].
        resolution: side of a square with the area wanted, in pixels.

    Raises:
        InputError: the VAE's latents are not this model's.
    """
    latent_format = model.model.latent_format
    unit = 2 * int(vae.spacial_compression_encode())
    with torch.inference_mode():
        latents = [vae.encode(_resized(image[None], resolution, unit)) for image in images]
    for latent in latents:
        if latent.ndim != 4 or latent.shape[1] != latent_format.latent_channels:
            raise InputError(
                "vae",
                f"it makes latents of shape {tuple(latent.shape[1:])}, but the model takes {latent_format.latent_channels} channels. "
                "Use the VAE that belongs to this model.",
            )
    with torch.inference_mode(False):
        return [model.model.process_latent_in(latent.clone().float())[0] for latent in latents]


def picture_size(height: int, width: int, resolution: int, unit: int) -> tuple[int, int]:
    """(height, width) of about ``resolution`` squared pixels at the picture's aspect, in multiples of ``unit``, at least one each."""
    scale = resolution / math.sqrt(height * width)
    return max(unit, round(height * scale / unit) * unit), max(unit, round(width * scale / unit) * unit)


def _resized(image: Tensor, resolution: int, unit: int) -> Tensor:
    """The picture, shape (1, H, W, 3), scaled to cover its training size and cut to it at the centre: never stretched."""
    height, width = image.shape[1:3]
    new_height, new_width = picture_size(height, width, resolution, unit)
    scale = max(new_height / height, new_width / width)
    cover = (max(new_height, round(height * scale)), max(new_width, round(width * scale)))
    pixels = torch.nn.functional.interpolate(image.movedim(-1, 1).float(), size=cover, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (cover[0] - new_height) // 2, (cover[1] - new_width) // 2
    return pixels[:, :, top : top + new_height, left : left + new_width].movedim(1, -1)
