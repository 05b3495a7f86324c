"""The autoencoder: 64 x 64 pixels to 8 x 8 latents of eight channels and back."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from demo.make import dataset
from demo.make.host import new_vae
from demo.make.paths import WORK
from demo.make.precision import keep_small_convolutions_in_float32
from demo.make.run_state import Stage, warm_cosine

STEPS, BATCH, PEAK_RATE, KL_WEIGHT = 1300, 12, 2e-3, 1e-5
DECODER_STEPS, DECODER_RATE = 8000, 1e-3
LATENT_JITTER = 0.03
"""Noise on latents that the decoder learns to bear: sampled ones are never exact."""
LATENTS = WORK / "latents.pt"


def as_input(pixels: Any) -> Tensor:
    """uint8 pixels (B, 64, 64, 3) as the autoencoder takes them: (B, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def train() -> None:
    """Train it; resumes where it was."""
    torch.manual_seed(0)
    vae = new_vae().train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    stage = Stage(name="vae", modules=vae, optimizer=optimizer, steps=STEPS, average=copy.deepcopy(vae), decay=0.995)
    keep_small_convolutions_in_float32(vae)
    pixels = dataset.pictures(range(dataset.SHARDS))

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([1, step])
        return _loss(vae, as_input(pixels[np.sort(rng.choice(len(pixels), BATCH, replace=False))]))

    with tqdm(total=STEPS, desc="vae", mininterval=20) as bar:
        for step, loss in stage.steps_left(loss_of, warm_cosine(PEAK_RATE)):
            bar.n = step
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(0)


def train_decoder() -> None:
    """Train the decoder further while the encoder stays, so that latents and what was learned on them stay valid; resumes."""
    torch.manual_seed(1)
    vae = trained().train()
    decoding = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    optimizer = torch.optim.AdamW(decoding.parameters(), lr=DECODER_RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    stage = Stage(name="decoder", modules=decoding, optimizer=optimizer, steps=DECODER_STEPS, average=copy.deepcopy(decoding), decay=0.998)
    keep_small_convolutions_in_float32(vae)
    pixels = dataset.pictures(range(dataset.SHARDS))

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([7, step])
        return _decoder_loss(vae, as_input(pixels[np.sort(rng.choice(len(pixels), BATCH, replace=False))]))

    with tqdm(total=DECODER_STEPS, desc="decoder", mininterval=20) as bar:
        for step, loss in stage.steps_left(loss_of, warm_cosine(DECODER_RATE)):
            bar.n = step
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(0)


def trained() -> Any:
    """The autoencoder with the weights of the training so far."""
    vae = new_vae()
    vae.load_state_dict(torch.load(WORK / "vae.pt", weights_only=True)["average"])
    if (WORK / "decoder.pt").is_file():
        nn.ModuleList([vae.post_quant_conv, vae.decoder]).load_state_dict(torch.load(WORK / "decoder.pt", weights_only=True)["average"])
    return vae.eval().requires_grad_(False)


def moments(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents, each (B, 8, 8, 8)."""
    mean, log_variance = vae.quant_conv(vae.encoder(images)).float().chunk(2, dim=1)
    return mean, log_variance.clamp(-20, 10)


def _loss(vae: Any, images: Tensor) -> Tensor:
    """Absolute errors of pixels and of edges at three scales, and a weak pull of the latents towards N(0, 1)."""
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_variance = moments(vae, images)
        latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        made = vae.decoder(vae.post_quant_conv(latent)).float()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean()
    return (made - images).abs().mean() + _edge_error(made, images) + KL_WEIGHT * kl


def _decoder_loss(vae: Any, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            latent = moments(vae, images)[0]
        made = vae.decoder(vae.post_quant_conv(latent + LATENT_JITTER * torch.randn_like(latent))).float()
    return (made - images).abs().mean() + _edge_error(made, images)


def _edge_error(made: Tensor, images: Tensor) -> Tensor:
    error = torch.zeros(())
    for scale in (1, 2, 4):
        difference = functional.avg_pool2d(made - images, scale) if scale > 1 else made - images
        error = error + difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    return error / 3


@torch.inference_mode()
def encode_all() -> None:
    """Latents of all pictures, scaled to a standard deviation of one, with that scale."""
    vae = trained()
    shards = []
    for number in tqdm(range(dataset.SHARDS), desc="encoding", mininterval=20):
        with torch.autocast("cpu", torch.bfloat16):
            images = as_input(dataset.pictures(range(number, number + 1)))
            shards.append(torch.cat([moments(vae, batch)[0] for batch in images.split(125)]))
    latents = torch.cat(shards)
    scale = 1 / latents.std()
    torch.save({"latents": (latents * scale).half(), "scale": scale, "labels": torch.from_numpy(dataset.labels(range(dataset.SHARDS)))}, LATENTS)


@torch.inference_mode()
def quality() -> dict[str, float]:
    """Mean absolute error and PSNR on held-out pictures."""
    vae = trained()
    images = as_input(dataset.pictures(range(dataset.SHARDS, dataset.SHARDS + 1))[:500])
    made = torch.cat([vae.decode(moments(vae, batch)[0]).clamp(-1, 1) for batch in images.split(50)])
    squares = ((made - images) / 2).square().mean(dim=(1, 2, 3))
    return {"mean absolute error": float(((made - images) / 2).abs().mean()), "PSNR, dB": float((-10 * squares.log10()).mean())}
