"""Pictures by the host's own sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.contenders import Models
from demo.settings import Sampling
from experiments.store import CellFiles
from experiments.training import part

AT_ONCE = 8


def check_names(settings: Sampling) -> None:
    """Return quietly if the host has the sampler and the scheduler; it would silently take its first ones.

    Raises:
        SystemExit: it does not.
    """
    from comfy.samplers import KSampler

    for name, known in (("sampler", KSampler.SAMPLERS), ("scheduler", KSampler.SCHEDULERS)):
        if getattr(settings, name) not in known:
            raise SystemExit(f"--sampling: ComfyUI has no {name} {getattr(settings, name)!r}; it has {', '.join(known)}.")


def personalized(models: Models, files: CellFiles, step: int) -> Models:
    """The model with what was learned up to a step."""
    file = files.checkpoint(step)
    learned = part("palp_train.checkpoint").read_checkpoint(file, file.name)
    with torch.inference_mode():
        model, clip = part("nodes.host.lora").apply_lora(models.model, models.clip, learned, 1.0)
    return Models(model=model, clip=clip, vae=models.vae)


@torch.inference_mode()
def sampled(models: Models, prompt: str, settings: Sampling, count: int, seed: int) -> Tensor:
    """Pictures of shape (count, H, W, 3), values in [0, 1]: the first ones stay the same if more are asked for."""
    generator = torch.Generator().manual_seed(seed)
    noises = torch.stack([torch.randn(_latent_shape(models, settings), generator=generator) for _ in range(count)])
    positive, negative = _encoded(models.clip, prompt), _encoded(models.clip, "")
    batches = [_denoised(models, noise, positive, negative, settings, seed) for noise in noises.split(AT_ONCE)]
    return torch.cat([models.vae.decode(batch).float().cpu().clamp(0, 1) for batch in batches]).flatten(0, -4)


def _latent_shape(models: Models, settings: Sampling) -> tuple[int, ...]:
    latent_format: Any = models.model.model.latent_format
    side = settings.resolution // int(models.vae.spacial_compression_encode())
    return latent_format.latent_channels, *([1] * (latent_format.latent_dimensions - 2)), side, side


def _encoded(clip: Any, prompt: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def _denoised(models: Models, noise: Tensor, positive: Any, negative: Any, settings: Sampling, seed: int) -> Tensor:
    import comfy.sample

    how = (settings.steps, settings.guidance, settings.sampler, settings.scheduler)
    return comfy.sample.sample(models.model, noise, *how, positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=seed)
