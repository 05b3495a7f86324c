"""The losses and scores of the paper, each from estimates of x0. Eqs. (1), (4) to (7).

Both denoised estimates of one noised image imply a noise, ``eps = (noised - a x0_hat) / b``, so a difference of noises is
``(a / b)`` times the opposite difference of estimates. Guidance is affine, hence the same on x0 and on noise.
"""

import torch
from torch import Tensor

from .denoiser import Parametrization, per_sample, predicted_noise


def classifier_free_guidance(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """``(1 - s) G(empty) + s G(cond)``. Eq. (5). Scale 1 is the conditional prediction; shapes (B, C, H, W)."""
    return torch.lerp(uncond, cond, scale)


def personalization_loss(denoised: Tensor, latent: Tensor, sigma: Tensor, parametrization: Parametrization, weight: Tensor | None = None) -> Tensor:
    """Mean of ``weight (output - target)^2`` in what the network predicts: the loss that the base model was trained with. Eq. (1).

    The output differs from its target by the error of x0_hat over ``|d x0_hat / d output|``: noise for epsilon prediction,
    v for v prediction.

    Args:
        denoised: the personalized model's estimate of x0, shape (B, C, H, W), with gradient.
        latent: the clean latents, same shape.
        sigma: noise levels, shape (B,).
        parametrization: what the network predicts.
        weight: how much each place counts, broadcasts to that shape; None: all alike. Unlike the paper, which knows no masks.

    Returns:
        A scalar with gradient.
    """
    error = ((denoised - latent) / per_sample(parametrization.output_scale(sigma), latent)).square()
    return (error if weight is None else weight * error).mean()


def delta_denoising_score(target: Tensor, reference: Tensor, sigma: Tensor, parametrization: Parametrization) -> Tensor:
    """``eps_target - eps_reference``, from two denoised estimates of one noised image. Eq. (6).

    Args:
        target: the pre-trained model's guided estimate under the clean prompt, shape (B, C, H, W).
        reference: the personalized model's guided estimate under its own prompt, same shape.
        sigma: noise level of the image that both have denoised, shape (B,).
        parametrization: how noise entered that image.

    Returns:
        The direction, shape (B, C, H, W), without gradient: neither network is differentiated.
    """
    signal, noise = parametrization.signal_scale(sigma), parametrization.noise_scale(sigma)
    return (per_sample(signal / noise, target) * (reference - target)).detach()


def score_distillation(target: Tensor, noised: Tensor, noise: Tensor, sigma: Tensor, parametrization: Parametrization) -> Tensor:
    """``eps_target - noise``: SDS. Eq. (4); Poole et al. 2022.

    Args:
        target: the pre-trained model's guided estimate under the clean prompt, shape (B, C, H, W).
        noised: the image that it denoised, same shape.
        noise: the noise that was added to it, same shape.
        sigma: its noise level, shape (B,).
        parametrization: how noise entered that image.

    Returns:
        The direction, shape (B, C, H, W), without gradient.
    """
    return (predicted_noise(noised, target, sigma, parametrization) - noise).detach()


def noise_free_score(cond: Tensor, uncond: Tensor, negative: Tensor, scale: float, nearly_clean: Tensor) -> Tensor:
    """``delta_D + s delta_C``: NFSD, noise-free score distillation (Katzir et al. 2023, arXiv:2310.17590).

    ``delta_C = eps(cond) - eps(empty)`` is the condition's direction, ``delta_D`` the rest without its noise: ``eps(empty)`` where
    there is little noise, else ``eps(empty) - eps(negative)``.

    Args:
        cond: predicted noise under the clean prompt, shape (B, C, H, W).
        uncond: predicted noise under the empty prompt, same shape.
        negative: predicted noise under a prompt for bad pictures, same shape.
        scale: s, the guidance scale.
        nearly_clean: whether each row's noise is so low that ``eps(empty)`` has no noise left to cancel, shape (B,), bool.

    Returns:
        The direction, shape (B, C, H, W), without gradient.
    """
    correction = uncond - negative.masked_fill(per_sample(nearly_clean, negative), 0)
    return (correction + scale * (cond - uncond)).detach()


def rescale_weight(sigma: Tensor, parametrization: Parametrization) -> Tensor:
    """The inverse of ``|d x0_hat / d output|``, shape (B,): the update is then uniform over noise levels. Eq. (7).

    The paper's ``sqrt(abar) / sqrt(1 - abar)`` for epsilon prediction, derived for the other networks in ``denoiser``.
    """
    return 1 / parametrization.output_scale(sigma)


def prompt_alignment_loss(denoised: Tensor, score: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``w score x0_hat``: a surrogate whose gradient is ``w score d x0_hat / d theta`` (over the mean's count). Eqs. (6), (7).

    Its value means nothing: only its gradient does.

    Args:
        denoised: the personalized model's estimate of x0, shape (B, C, H, W), with gradient.
        score: the direction to descend, same shape; taken without gradient.
        weight: w(t) of each row, shape (B,).

    Returns:
        A scalar with gradient.
    """
    return (per_sample(weight, denoised) * score.detach() * denoised).mean()
