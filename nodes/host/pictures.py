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
    masks: tuple[Tensor, ...] | None = None
    """Where the subject is, one of shape (H, W) for each picture, values in [0, 1]; None: all of each picture counts."""


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


def checked_masks(masks: Sequence[Tensor], images: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The masks of all batches, one for each picture and of its size, shape (H, W).

    Args:
        masks: the host's MASK values: batches of shape (B, H, W), of any sizes.
        images: the pictures, each of shape (H, W, 3).

    Raises:
        InputError: there are not as many as pictures, one is no mask, or one leaves nothing of its picture.
    """
    for batch in masks:
        if not isinstance(batch, Tensor) or batch.ndim != 3 or not torch.isfinite(batch).all():
            found = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise InputError("masks", f"{found} is not a batch of masks of shape (B, H, W) with numbers in it. Connect a MASK output.")
    single = [mask for batch in masks for mask in batch]
    if len(single) != len(images):
        raise InputError("masks", f"there are {len(single)} masks for {len(images)} pictures. Connect one for each, in the same order.")
    for number, mask in enumerate(single, start=1):
        if mask.max() <= 0:
            raise InputError("masks", f"mask {number} is all black. White marks the subject; disconnect masks to train on all of the picture.")
    pairs = zip(single, images, strict=True)
    return tuple(_scaled(mask[None, None].float().clamp(0, 1), tuple(image.shape[:2]))[0, 0] for mask, image in pairs)


def encode_pictures(vae: Any, model: Any, images: Sequence[Tensor], resolution: int) -> list[Tensor]:
    """Latents as the network takes them, each of shape (C, H, W) or (C, 1, H, W), float32, outside of inference mode.

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
    latent_format, unit = model.model.latent_format, _unit(vae)
    with torch.inference_mode():
        latents = [vae.encode(_resized(image.movedim(-1, 0), resolution, unit).movedim(0, -1)[None]) for image in images]
    for latent in latents:
        if latent.ndim != latent_format.latent_dimensions + 2 or latent.shape[1] != latent_format.latent_channels:
            raise InputError(
                "vae",
                f"it makes latents of shape {tuple(latent.shape[1:])}, but the model takes {latent_format.latent_channels} channels "
                f"in {latent_format.latent_dimensions} dimensions. Use the VAE that belongs to this model.",
            )
    with torch.inference_mode(False):
        return [model.model.process_latent_in(latent.clone().float())[0] for latent in latents]


def mask_weight(vae: Any, mask: Tensor, latent: Tensor, resolution: int) -> Tensor:
    """How much each place of a latent counts, shape (1, H, W) or (1, 1, H, W), mean 1.

    Args:
        vae: the graph's VAE.
        mask: shape (H, W), white where the subject is.
        latent: the picture's latent, shape (C, H, W) or (C, 1, H, W).
        resolution: as for the picture.

    Raises:
        InputError: nothing of the mask is left.
    """
    with torch.inference_mode(False):
        pixels = _resized(mask.clone()[None], resolution, _unit(vae))
        weight = torch.nn.functional.adaptive_avg_pool2d(pixels, (latent.shape[-2], latent.shape[-1]))
        if weight.max() <= 0:
            raise InputError("masks", "a mask has white only where its picture is cut off at the edges. Mark the subject in the middle of the picture.")
        weight = weight / weight.mean()
        return weight if latent.ndim == 3 else weight[:, None]


def _unit(vae: Any) -> int:
    """Pixels of which a side is made of: two latents, as all networks halve theirs at least once."""
    return 2 * int(vae.spacial_compression_encode())


def picture_size(height: int, width: int, resolution: int, unit: int) -> tuple[int, int]:
    """(height, width) of about ``resolution`` squared pixels at the picture's aspect, in multiples of ``unit``, at least one each."""
    scale = resolution / math.sqrt(height * width)
    return max(unit, round(height * scale / unit) * unit), max(unit, round(width * scale / unit) * unit)


def _resized(picture: Tensor, resolution: int, unit: int) -> Tensor:
    """The picture, shape (C, H, W), scaled to cover its training size and cut to it at the centre: never stretched."""
    height, width = picture.shape[1:]
    new_height, new_width = picture_size(height, width, resolution, unit)
    scale = max(new_height / height, new_width / width)
    pixels = _scaled(picture[None].float(), (max(new_height, round(height * scale)), max(new_width, round(width * scale))))[0]
    top, left = (pixels.shape[1] - new_height) // 2, (pixels.shape[2] - new_width) // 2
    return pixels[:, top : top + new_height, left : left + new_width]


def _scaled(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    return torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
