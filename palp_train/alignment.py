"""The alignment branch: what the frozen and the personalized model say of the re-noised estimate. Eqs. (4) to (6).

Everything here runs without gradient; all predictions of a step go through the network as one batch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import LossConfig
from .denoiser import Conditioning, Denoiser, Query, predicted_noise
from .losses import classifier_free_guidance, delta_denoising_score, noise_free_score, score_distillation

NFSD_NEGATIVE_PROMPT = "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
"""The prompt for bad pictures of Katzir et al. 2023."""

NFSD_NEARLY_CLEAN = 0.2
"""The cleanest part of the schedule, where NFSD leaves its negative prompt out: t < 200 of 1000 (Katzir et al. 2023)."""


@dataclass(frozen=True, kw_only=True)
class Conditionings:
    """The encoded prompts of a step, none with gradient."""

    personal: Sequence[Conditioning]
    """y_P, one for each row."""
    clean: Conditioning
    """y_c."""
    empty: Conditioning
    """The unconditional prompt, or the user's negative one, for the pre-trained model or the teacher."""
    personal_empty: Conditioning
    """The same for the personalized model; the same object where there is no teacher."""
    bad: Conditioning | None = None
    """NFSD's prompt for bad pictures; only that method needs it."""


def prediction_count(config: LossConfig) -> int:
    """How many predictions the alignment of one picture takes."""
    alpha, beta = (1 if scale == 1 else 2 for scale in (config.alignment_scale, config.personalization_scale))
    return {"none": 0, "nfsd": 3, "sds": alpha, "palp": alpha + beta}[config.method]


@torch.no_grad()
def alignment_score(
    denoiser: Denoiser, noised: Tensor, noise: Tensor, sigma: Tensor, prompts: Conditionings, config: LossConfig, teacher: Denoiser | None = None
) -> Tensor:
    """The direction that the estimate of x0 should descend, by the method that ``config`` names.

    Args:
        denoiser: the model, with and without the LoRA.
        noised: the personalized estimate of x0, with ``noise`` added to it at ``sigma``, shape (B, C, H, W).
        noise: same shape.
        sigma: noise levels, shape (B,).
        prompts: what the predictions are conditioned on.
        config: method and guidance scales.
        teacher: who predicts in the pre-trained model's place; None: that model itself.

    Returns:
        The score, shape (B, C, H, W), without gradient.
    """
    if config.method == "nfsd":
        return _noise_free(teacher or denoiser, noised, sigma, prompts, config)
    pretrained = Guided(cond=[prompts.clean] * len(noised), uncond=prompts.empty, scale=config.alignment_scale, personalized=False)
    if config.method == "sds":
        (target,) = guided_estimates(teacher or denoiser, noised, sigma, [pretrained])
        return score_distillation(target, noised, noise, sigma, denoiser.parametrization)
    personalized = Guided(cond=prompts.personal, uncond=prompts.personal_empty, scale=config.personalization_scale, personalized=True)
    if teacher is None:
        reference, target = guided_estimates(denoiser, noised, sigma, [personalized, pretrained])
    else:
        (reference,) = guided_estimates(denoiser, noised, sigma, [personalized])
        (target,) = guided_estimates(teacher, noised, sigma, [pretrained])
    return delta_denoising_score(target, reference, sigma, denoiser.parametrization)


@dataclass(frozen=True, kw_only=True)
class Guided:
    """A guided prediction to make: Eq. (5)."""

    cond: Sequence[Conditioning]
    """One for each row."""
    uncond: Conditioning
    scale: float
    personalized: bool

    def passes(self) -> list[list[Query]]:
        """The passes it takes: the conditional one, and the unconditional one unless scale 1 makes it useless."""
        conditional = [Query(conditioning=one, personalized=self.personalized) for one in self.cond]
        unconditional = [Query(conditioning=self.uncond, personalized=self.personalized)] * len(self.cond)
        return [conditional] if self.scale == 1 else [conditional, unconditional]

    def combined(self, estimates: Sequence[Tensor]) -> Tensor:
        """The guided estimate of x0, from those of the passes."""
        if self.scale == 1:
            return estimates[0]
        cond, uncond = estimates
        return classifier_free_guidance(uncond, cond, self.scale)


def guided_estimates(denoiser: Denoiser, noised: Tensor, sigma: Tensor, wanted: Sequence[Guided]) -> list[Tensor]:
    """Guided estimates of x0, each of shape (B, C, H, W), from one batch through the network. Eqs. (2), (5).

    Give those that the LoRA acts on first: a network can take their rows as one piece.
    """
    passes = [guided.passes() for guided in wanted]
    estimates = predictions(denoiser, noised, sigma, list(itertools.chain(*passes)))
    combined: list[Tensor] = []
    for guided, its_passes in zip(wanted, passes, strict=True):
        combined.append(guided.combined(estimates[: len(its_passes)]))
        estimates = estimates[len(its_passes) :]
    return combined


def predictions(denoiser: Denoiser, noised: Tensor, sigma: Tensor, passes: Sequence[Sequence[Query]]) -> list[Tensor]:
    """Estimates of x0 of the same noised latents, one tensor of shape (B, C, H, W) for each pass, from one batch."""
    count = len(passes)
    batch = denoiser(torch.cat([noised] * count), sigma.repeat(count), [query for queries in passes for query in queries])
    return list(batch.chunk(count))


def _noise_free(denoiser: Denoiser, noised: Tensor, sigma: Tensor, prompts: Conditionings, config: LossConfig) -> Tensor:
    assert prompts.bad is not None
    asked = [prompts.clean, prompts.empty, prompts.bad]
    passes = [[Query(conditioning=conditioning, personalized=False)] * len(noised) for conditioning in asked]
    estimates = predictions(denoiser, noised, sigma, passes)
    cond, uncond, bad = (predicted_noise(noised, x0, sigma, denoiser.parametrization) for x0 in estimates)
    nearly_clean = schedule_position(sigma, denoiser.sigmas) > 1 - NFSD_NEARLY_CLEAN
    return noise_free_score(cond, uncond, bad, config.alignment_scale, nearly_clean)


def schedule_position(sigma: Tensor, sigmas: Tensor) -> Tensor:
    """Where noise levels lie in the schedule: 0 at its noisiest end, 1 at its cleanest, as the host counts percent; shape (B,)."""
    index = torch.searchsorted(sigmas, sigma)
    return 1 - index / max(len(sigmas) - 1, 1)
