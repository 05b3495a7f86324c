"""What a step draws: pictures, noise and noise levels, all from one generator on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .transfer import as_list, to_device


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A training picture and its personalization prompt y_P."""

    latent: Tensor
    """Shape (C, H, W) or (C, T, H, W), scaled as the network takes it."""
    prompt: str
    weight: Tensor | None = None
    """How much each place of the latent counts, shape (1, H, W) or (1, 1, H, W), mean 1; None: all alike."""

    def to(self, device: torch.device) -> "Picture":
        """The same picture on that device."""
        return replace(self, latent=self.latent.to(device), weight=None if self.weight is None else self.weight.to(device))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The random draws of one step. Latents and noises: shape (B, C, H, W) or (B, C, T, H, W)."""

    latent: Tensor
    noise: Tensor
    alignment_noise: Tensor
    """eps', with which the estimate is noised again: ``noise`` itself, or a draw of its own."""
    sigma: Tensor
    """Noise levels, shape (B,)."""
    positions: Sequence[float]
    """Where they lie in the schedule: 0 at its noisiest end, 1 at its cleanest. Known on the CPU."""
    highest: float
    """The highest of them. Known on the CPU."""
    prompts: Sequence[str]
    weight: Tensor | None = None
    """How much each place counts, broadcasts to the latents; None: all alike."""


def draw_batch(pictures: Sequence[Picture], size: int, sigmas: Sequence[float], generator: torch.Generator, *, independent_noise: bool = False) -> Batch:
    """Draw pictures of one shape, noise, and noise levels uniform over the model's own schedule.

    Args:
        pictures: to draw from; the first one decides the shape of all.
        size: B.
        sigmas: the schedule, ascending.
        generator: on the CPU.
        independent_noise: whether eps' is a draw of its own.

    Returns:
        The batch, on the device and in the type of the latents; nothing waits for that device.
    """
    first = pictures[_draw_index(len(pictures), generator)]
    alike = [picture for picture in pictures if picture.latent.shape == first.latent.shape]
    chosen = [first, *(alike[_draw_index(len(alike), generator)] for _ in range(size - 1))]
    latent = _stacked([picture.latent for picture in chosen])
    levels = _draw_indices(len(sigmas), size, generator)
    drawn = [sigmas[level] for level in levels]
    noise = _draw_noise(latent, generator)
    return Batch(
        latent=latent,
        noise=noise,
        alignment_noise=_draw_noise(latent, generator) if independent_noise else noise,
        sigma=to_device(torch.tensor(drawn, dtype=latent.dtype), latent.device),
        positions=[1 - level / max(len(sigmas) - 1, 1) for level in levels],
        highest=max(drawn),
        prompts=[picture.prompt for picture in chosen],
        weight=_stacked_weights(chosen),
    )


def _stacked_weights(pictures: Sequence[Picture]) -> Tensor | None:
    """The pictures' weights, shape (B, 1, H, W) or (B, 1, 1, H, W); None where no picture has any."""
    if all(picture.weight is None for picture in pictures):
        return None
    weights = [torch.ones_like(one.latent[:1]) if one.weight is None else one.weight for one in pictures]
    return _stacked(weights)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of shape (N, ...); without a copy where there is one only."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _draw_index(count: int, generator: torch.Generator) -> int:
    return _draw_indices(count, 1, generator)[0]


def _draw_indices(count: int, size: int, generator: torch.Generator) -> list[int]:
    return [int(index) for index in as_list(torch.randint(count, (size,), generator=generator))]


def _draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return to_device(torch.randn(like.shape, generator=generator, dtype=like.dtype), like.device)
