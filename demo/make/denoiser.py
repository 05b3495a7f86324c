"""The diffusion model: the host's UNetModel, learning to predict v of drawn pictures' latents from their prompts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo.make import text
from demo.make.dataset import SHARD, SHARDS, scene_of
from demo.make.grammar import NOW_AND_THEN, prompt
from demo.make.host import model_sampling, new_unet
from demo.make.paths import WORK
from demo.make.precision import keep_small_convolutions_in_float32
from demo.make.run_state import Stage, warm_cosine
from demo.make.vae import LATENTS

STEPS, BATCH, PEAK_RATE = 20000, 64, 1.2e-3
WIDE_STEPS, WIDE_RATE = 4000, 5e-4
WIDE_UNNAMED_HUE = 1 / 3
"""Part of the pictures whose creatures are of any hue, when it learns how much a prompt leaves open."""
WIDE_UNTOLD = 0.5
"""Part of the prompts that tell neither color nor marks nor hat, then."""
WITHOUT_PROMPT = 0.12
"""Part of the pictures that are shown without their prompt, for classifier-free guidance."""
SIGNAL_CAP = 5.0
"""Gamma of min-SNR weighting (Hang et al. 2023)."""


def train(until: int | None = None) -> None:
    """Train it up to that step, or to the end; resumes where it was."""
    torch.manual_seed(0)
    _train("unet", new_unet(), STEPS, inverse_root(PEAK_RATE), _batches(seed=5), until)


def widen(until: int | None = None) -> None:
    """Train it on, with creatures of all hues and prompts that leave more open: "a cat" then is any cat, as it is to a model that learned from the web."""
    torch.manual_seed(0)
    _train("unet-wide", trained("unet"), WIDE_STEPS, warm_cosine(WIDE_RATE), _batches(seed=8, unnamed_hue=WIDE_UNNAMED_HUE, untold=WIDE_UNTOLD), until)


def _train(name: str, unet: Any, steps: int, rate: Callable[[float], float], batch_of: Callable[[int], tuple[Tensor, ...]], until: int | None) -> None:
    unet.train().requires_grad_(True)
    _use_plain_attention()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=rate(0), betas=(0.9, 0.99), weight_decay=0.01)
    stage = Stage(name=name, modules=unet, optimizer=optimizer, steps=steps, until=until, average=copy.deepcopy(unet), decay=0.9993)
    keep_small_convolutions_in_float32(unet)
    stage.train(lambda step: _loss(unet, *batch_of(step)), rate)


def inverse_root(peak: float, warm: float = 0.01, flat: float = 0.1, cool: float = 0.2) -> Callable[[float], float]:
    """A learning rate good to stop at any moment: warm-up, flat, falling with the root of the steps, and at last to zero."""

    def rate(done: float) -> float:
        level = peak * min(1.0, (done + 1e-4) / warm) * min(1.0, (flat / max(done, 1e-9)) ** 0.5)
        return level * min(1.0, (1 - done) / cool)

    return rate


def trained(name: str = "unet-wide") -> Any:
    """The network with the average weights of that training so far."""
    unet = new_unet()
    unet.load_state_dict(torch.load(WORK / f"{name}.pt", weights_only=True)["average"])
    return unet.eval().requires_grad_(False)


def _use_plain_attention() -> None:
    """On few tokens PyTorch's fused attention takes longer on a processor than all else that a block computes, most of all backward."""
    from comfy.ldm.modules import attention

    attention.optimized_attention = attention.attention_basic


def _batches(seed: int, unnamed_hue: float = 0.0, untold: float = NOW_AND_THEN) -> Callable[[int], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """From a step's number: latents, noise, steps of the noise schedule, and encoded prompts.

    Args:
        seed: of what a step draws, with its number.
        unnamed_hue: part of the pictures whose creatures are of any hue.
        untold: part of the prompts without colors, marks and hats.
    """
    data, transformer = torch.load(LATENTS, weights_only=True), text.trained()
    latents, labels = data["latents"], data["labels"].numpy()
    named = SHARDS * SHARD
    others = round(unnamed_hue * BATCH)

    def batch_of(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(named, size=BATCH)
        rows[:others] = rng.integers(named, len(latents), size=others)
        asked = ["" if rng.random() < WITHOUT_PROMPT else prompt(scene_of(labels[row]), rng, untold) for row in rows]
        with torch.no_grad():
            context = text.encode(transformer, text.tokenize(asked))
        noise = torch.from_numpy(rng.standard_normal((BATCH, *latents.shape[1:]), dtype=np.float32))
        spread = (rng.permutation(BATCH) + rng.random(BATCH)) / BATCH  # evenly over the schedule: less variance than independent draws
        return latents[rows].float(), noise, torch.from_numpy((spread * 1000).astype(np.int64)), context

    return batch_of


def _loss(unet: Any, latents: Tensor, noise: Tensor, steps: Tensor, context: Tensor) -> Tensor:
    """Squared error of v, weighted by min(SNR, gamma) / (SNR + 1)."""
    sigma = _sigmas()[steps].view(-1, 1, 1, 1)
    signal = (1 + sigma**2).rsqrt()
    noised = signal * (latents + sigma * noise)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(noised, steps.float(), context=context)
    error = (predicted.float() - signal * (noise - sigma * latents)).square().mean(dim=(1, 2, 3))
    ratio = sigma.flatten() ** -2
    return (error * ratio.clamp(max=SIGNAL_CAP) / (ratio + 1)).mean() * 4


@functools.cache
def _sigmas() -> Tensor:
    return model_sampling().sigmas.clone()
