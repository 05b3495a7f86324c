"""The two things that the method needs of a model: a denoiser and a text encoder. Eq. (2).

Everything is said in one notation, ``noised = a(sigma) x + b(sigma) noise``, and networks are seen as estimators of the clean
image x0, whatever they predict. A ``Parametrization`` holds what depends on the kind of network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Conditioning = Mapping[str, Any]
"""An encoded prompt: tensors by name. Opaque to the method, which only ever detaches it."""


class ConstantConditioning(dict[str, Any]):
    """An encoded prompt that stays the same for a whole run: a denoiser may keep what it makes of it."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What one row of a batch is asked of the network."""

    conditioning: Conditioning
    personalized: bool
    """Whether the LoRA is on for this row; off is the pre-trained model."""


class Parametrization(Protocol):
    """How noise enters an image, and how the network's output becomes an estimate of x0. All maps keep the shape of sigma."""

    def signal_scale(self, sigma: Tensor) -> Tensor:
        """``a`` in ``noised = a x + b noise``."""
        ...

    def noise_scale(self, sigma: Tensor) -> Tensor:
        """``b`` in ``noised = a x + b noise``."""
        ...

    def output_scale(self, sigma: Tensor) -> Tensor:
        """``|d x0_hat / d output|``: how far the estimate of x0 moves with the network's output."""
        ...


@dataclass(frozen=True)
class EpsilonPrediction:
    """Networks that predict the noise: ``x0_hat = noised - sigma output``, so that ``d x0_hat / d output = -sigma``."""

    def signal_scale(self, sigma: Tensor) -> Tensor:
        """1: noise is added to the unscaled image."""
        return torch.ones_like(sigma)

    def noise_scale(self, sigma: Tensor) -> Tensor:
        """Sigma itself, ``sqrt(1 - abar) / sqrt(abar)`` in the paper's notation."""
        return sigma

    def output_scale(self, sigma: Tensor) -> Tensor:
        """Sigma: the factor that explodes at high noise, which rescaling removes."""
        return sigma


@dataclass(frozen=True)
class VelocityPrediction:
    """Networks that predict v (Salimans & Ho 2022), or what EDM's do (Karras et al. 2022), its negative.

    With s the standard deviation of the data, ``x0_hat = (s^2 noised - s sigma sqrt(s^2 + sigma^2) output) / (s^2 + sigma^2)``. Noise is
    added as for epsilon prediction; only the way from the output to x0 differs: ``d x0_hat / d output = -s sigma / sqrt(s^2 + sigma^2)``.
    """

    data_std: float = 1.0
    """s: 1 for v prediction, 0.5 in EDM."""

    def signal_scale(self, sigma: Tensor) -> Tensor:
        """1, as for epsilon prediction."""
        return torch.ones_like(sigma)

    def noise_scale(self, sigma: Tensor) -> Tensor:
        """Sigma, as for epsilon prediction."""
        return sigma

    def output_scale(self, sigma: Tensor) -> Tensor:
        """``s sigma / sqrt(s^2 + sigma^2)``, at most s."""
        return self.data_std * sigma / (self.data_std**2 + sigma**2).sqrt()


@dataclass(frozen=True)
class SamplePrediction:
    """Networks that predict x0 itself: ``x0_hat = output``. Noise is added as for epsilon prediction."""

    def signal_scale(self, sigma: Tensor) -> Tensor:
        """1, as for epsilon prediction."""
        return torch.ones_like(sigma)

    def noise_scale(self, sigma: Tensor) -> Tensor:
        """Sigma, as for epsilon prediction."""
        return sigma

    def output_scale(self, sigma: Tensor) -> Tensor:
        """1: there is nothing to rescale."""
        return torch.ones_like(sigma)


@dataclass(frozen=True)
class RectifiedFlow:
    """Networks that predict the velocity ``noise - x`` of straight paths (Liu et al. 2022; Esser et al. 2024), sigma in (0, 1].

    ``noised = (1 - sigma) x + sigma noise`` and ``x0_hat = noised - sigma output``, so that ``d x0_hat / d output = -sigma``.
    """

    def signal_scale(self, sigma: Tensor) -> Tensor:
        """``1 - sigma``: the image fades out as the noise fades in."""
        return 1 - sigma

    def noise_scale(self, sigma: Tensor) -> Tensor:
        """Sigma itself, which is time here."""
        return sigma

    def output_scale(self, sigma: Tensor) -> Tensor:
        """Sigma, as for epsilon prediction."""
        return sigma


class Denoiser(Protocol):
    """A diffusion model as an estimator of the clean image, with and without the LoRA."""

    @property
    def sigmas(self) -> Tensor:
        """The noise levels that the model was trained on, ascending, shape (T,)."""
        ...

    @property
    def parametrization(self) -> Parametrization:
        """What the network predicts."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; float16 makes the trainer scale its loss."""
        ...

    def __call__(self, noised: Tensor, sigma: Tensor, queries: Sequence[Query]) -> Tensor:
        """x0_hat of each row, Eq. (2).

        Args:
            noised: noised latents, shape (B, C, H, W).
            sigma: their noise levels, shape (B,).
            queries: what each row is asked, length B.

        Returns:
            Estimates of the clean latents, shape (B, C, H, W), float32 or wider; with gradient where autograd is on.
        """
        ...


class TextEncoder(Protocol):
    """Encodes prompts; knows the words in training, so its result carries their gradient where autograd is on."""

    def __call__(self, prompt: str) -> Conditioning:
        """The conditioning of one prompt."""
        ...


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """``value`` of shape (B,), shaped to multiply ``like`` of shape (B, ...)."""
    return value.view(-1, *[1] * (like.ndim - 1))


def add_noise(latent: Tensor, noise: Tensor, sigma: Tensor, parametrization: Parametrization) -> Tensor:
    """``a x + b noise``, shape (B, C, H, W)."""
    signal = per_sample(parametrization.signal_scale(sigma), latent)
    return torch.addcmul(signal * latent, per_sample(parametrization.noise_scale(sigma), latent), noise)


def predicted_noise(noised: Tensor, denoised: Tensor, sigma: Tensor, parametrization: Parametrization) -> Tensor:
    """``(noised - a x0_hat) / b``: the noise that an estimate of x0 implies, shape (B, C, H, W)."""
    signal = per_sample(parametrization.signal_scale(sigma), noised)
    return (noised - signal * denoised) / per_sample(parametrization.noise_scale(sigma), noised)


def detached(conditioning: Conditioning) -> Conditioning:
    """The same conditioning, cut from the graph; a constant one is that already."""
    if isinstance(conditioning, ConstantConditioning):
        return conditioning
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in conditioning.items()}


def taken(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows of a tensor, in their order; the tensor itself where they are all of them in its order.

    Indexing by a list would copy the list to the device and wait for it.
    """
    if list(rows) == list(range(len(tensor))):
        return tensor
    return torch.cat([tensor[row : row + 1] for row in rows])
