"""Small real models for the tests of the method: an exact denoiser in closed form, a network, and text encoders for both."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from palp_train.denoiser import EpsilonPrediction, Parametrization, Query, VelocityPrediction

CLEAN, EMPTY, PERSONAL = "a sketch of a cat", "", "a photo of [V]"


def per_row(value: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return value[:, None, None, None]


def sd_sigmas(dtype: torch.dtype = torch.float32) -> Tensor:
    """The 1000 noise levels of Stable Diffusion's scaled linear schedule, ascending."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, dim=0)
    return ((1 - abar) / abar).sqrt().to(dtype)


@dataclass(frozen=True)
class Call:
    """What a denoiser was asked, and whether autograd was on."""

    noised: Tensor
    sigma: Tensor
    queries: Sequence[Query]
    grad: bool


class GaussianDenoiser(nn.Module):
    """The exact denoiser where each prompt's images are N(mean, spread^2) in every pixel.

    ``x0_hat = (a s^2 x + b^2 mean) / (a^2 s^2 + b^2)``; the mean is the conditioning's, plus ``shift`` on personalized rows.
    """

    def __init__(
        self,
        *,
        spread: float = 0.5,
        shift: float = 0.0,
        sigmas: Sequence[float] | Tensor = (0.3, 1.0, 3.0),
        parametrization: Parametrization | None = None,
        dtype: torch.dtype = torch.float32,
        width: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.spread, self.dtype = spread, dtype
        self.parametrization = parametrization or EpsilonPrediction()
        self.sigmas = torch.as_tensor(sigmas, dtype=width)
        self.shift = nn.Parameter(torch.tensor(shift, dtype=width))
        self.calls: list[Call] = []

    def forward(self, noised: Tensor, sigma: Tensor, queries: Sequence[Query]) -> Tensor:
        assert len(noised) == len(sigma) == len(queries)
        self.calls.append(Call(noised, sigma, queries, torch.is_grad_enabled()))
        mean = torch.stack([query.conditioning["mean"] + self.shift * query.personalized for query in queries])
        a, b = per_row(self.parametrization.signal_scale(sigma)), per_row(self.parametrization.noise_scale(sigma))
        return (a * self.spread**2 * noised + b**2 * per_row(mean)) / (a**2 * self.spread**2 + b**2)


class MeanEncoder:
    """For ``GaussianDenoiser``: each prompt's mean, from a table; prompts that are not in it have mean 0."""

    def __init__(self, means: Mapping[str, Tensor | float]) -> None:
        self.means = means

    def __call__(self, prompt: str) -> Mapping[str, Any]:
        return {"mean": 1 * torch.as_tensor(self.means.get(prompt, 0.0)), "prompt": prompt}


class NetworkDenoiser(nn.Module):
    """A small network that predicts noise or v, in float64, with a part of its own for personalized rows."""

    def __init__(self, parametrization: Parametrization, *, channels: int = 2, text: int = 3, hidden: int = 4, sigmas: Tensor | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def weights(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5)

        self.parametrization, self.dtype = parametrization, torch.float64
        self.sigmas = sd_sigmas(torch.float64) if sigmas is None else sigmas
        self.enter, self.leave = weights(hidden, channels + 1), weights(channels, hidden)
        self.read = weights(hidden, text)
        self.personal = weights(hidden, channels + 1)
        for base in (self.enter, self.leave, self.read):
            base.requires_grad_(False)

    def output(self, x_t: Tensor, abar: Tensor, text: Tensor, personalized: bool | Tensor) -> Tensor:
        """What the network predicts of the paper's ``x_t``; text: (B, text), personalized: for all rows or (B,)."""
        level = per_row(abar.log()).expand(-1, 1, *x_t.shape[2:])
        inputs = torch.cat([x_t, level], dim=1)
        on = per_row(torch.as_tensor(personalized, dtype=torch.float64).expand(len(x_t)))
        hidden = torch.einsum("hc,bcij->bhij", self.enter, inputs) + on * torch.einsum("hc,bcij->bhij", self.personal, inputs)
        hidden = torch.tanh(hidden + (text @ self.read.T)[:, :, None, None])
        return torch.einsum("ch,bhij->bcij", self.leave, hidden)

    def forward(self, noised: Tensor, sigma: Tensor, queries: Sequence[Query]) -> Tensor:
        level = per_row(sigma)
        x_t = noised / (1 + level**2).sqrt()
        text = torch.stack([query.conditioning["text"] for query in queries])
        output = self.output(x_t, 1 / (1 + sigma**2), text, torch.tensor([query.personalized for query in queries]))
        if isinstance(self.parametrization, VelocityPrediction):
            return noised / (1 + level**2) - level / (1 + level**2).sqrt() * output
        return noised - level * output


class SmallEncoder(nn.Module):
    """For ``NetworkDenoiser``: a fixed random vector for each prompt, which the new word bends where the prompt holds it."""

    def __init__(self, text: int = 3) -> None:
        super().__init__()
        self.word = nn.Parameter(torch.full((text,), 0.3, dtype=torch.float64))

    def forward(self, prompt: str) -> Mapping[str, Tensor]:
        fixed = torch.randn(len(self.word), generator=torch.Generator().manual_seed(zlib.crc32(prompt.encode())), dtype=torch.float64)
        return {"text": fixed + torch.tanh(fixed * self.word) if "[V]" in prompt else fixed}
