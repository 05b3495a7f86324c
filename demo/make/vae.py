"""The autoencoder: 64 x 64 pixels to 8 x 8 latents and back; a computed encoder and a trained decoder."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from demo.make import dataset, encoder
from demo.make.host import new_vae
from demo.make.paths import WORK
from demo.make.precision import keep_small_convolutions_in_float32
from demo.make.run_state import Stage, warm_cosine
from dev_tools.files import write_whole

STEPS, BATCH, PEAK_RATE = 4000, 12, 2e-3
LATENT_JITTER = 0.05
"""Noise on latents that the decoder learns to bear: sampled ones are never exact."""
ENCODER, LATENTS, SHOWN = WORK / "encoder.pt", WORK / "latents.pt", WORK / "shown"


def as_input(pixels: Any) -> Tensor:
    """uint8 pixels (B, 64, 64, 3) as the autoencoder takes them: (B, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


@torch.inference_mode()
def encode_all() -> None:
    """Compute the encoder; then latents of all pictures that the diffusion model learns from, scaled to a standard deviation of one, with that scale."""
    if LATENTS.is_file():
        return
    vae = new_vae()
    print(f"{encoder.fit(vae, as_input(dataset.pictures(range(1)))):.5f} of the components' variance is in the latents")
    computed = {"encoder": vae.encoder.state_dict(), "quant_conv": vae.quant_conv.state_dict()}
    write_whole(ENCODER, lambda partial: torch.save(computed, partial))
    shards = (*range(dataset.SHARDS), *dataset.UNNAMED_HUE)
    latents = torch.cat([_encoded(vae, dataset.pictures([number])) for number in tqdm(shards, desc="encoding", mininterval=20)])
    scale = 1 / latents[: dataset.SHARDS * dataset.SHARD].std()
    encoded = {"latents": (latents * scale).half(), "scale": scale, "labels": torch.from_numpy(dataset.labels(shards))}
    write_whole(LATENTS, lambda partial: torch.save(encoded, partial))


def _encoded(vae: Any, pixels: Any) -> Tensor:
    return torch.cat([encoder.encode(vae, batch) for batch in as_input(pixels).split(50)])


def train_decoder(until: int | None = None) -> None:
    """Train the decoder up to that step, or to the end; resumes where it was."""
    torch.manual_seed(1)
    vae = with_encoder()
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    stage = Stage(name="decoder", modules=decoder, optimizer=optimizer, steps=STEPS, until=until, average=copy.deepcopy(decoder), decay=0.995)
    keep_small_convolutions_in_float32(vae)
    pixels = dataset.pictures(range(dataset.SHARDS))

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([7, step])
        return _loss(vae, as_input(pixels[np.sort(rng.choice(len(pixels), BATCH, replace=False))]))

    stage.train(loss_of, warm_cosine(PEAK_RATE))


def with_encoder() -> Any:
    """The autoencoder, its decoder not trained yet."""
    vae, state = new_vae(), torch.load(ENCODER, weights_only=True)
    vae.encoder.load_state_dict(state["encoder"])
    vae.quant_conv.load_state_dict(state["quant_conv"])
    return vae.eval().requires_grad_(False)


def trained() -> Any:
    """The autoencoder with the weights of the training so far."""
    vae, state = with_encoder(), torch.load(WORK / "decoder.pt", weights_only=True)["average"]
    nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).load_state_dict(state)
    return vae


def show_all() -> None:
    """Keep the judge's own pictures as the autoencoder shows them: as soft as all that the demo model will make."""
    vae, shards = trained(), (*dataset.ANY_HUE, *dataset.ANY_HUE_HELD_OUT)
    for number in tqdm([number for number in shards if not _shown(number).is_file()], desc="showing", mininterval=20):
        made = torch.cat([_reconstructed(vae, batch) for batch in as_input(dataset.pictures(range(number, number + 1))).split(50)])
        pixels = made.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
        write_whole(_shown(number), partial(np.save, arr=pixels))


def shown(shards: range) -> Any:
    """Pixels as of ``dataset.pictures``, after the autoencoder."""
    return np.concatenate([np.load(_shown(number)) for number in shards])


def _shown(number: int) -> Any:
    return SHOWN / f"{number:03}.npy"


@torch.inference_mode()
def _reconstructed(vae: Any, images: Tensor) -> Tensor:
    return vae.decode(vae.encode(images)).clamp(-1, 1)


def _loss(vae: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        latent = encoder.encode(vae, images)
    with torch.autocast("cpu", torch.bfloat16):
        made = vae.decoder(vae.post_quant_conv(latent + LATENT_JITTER * torch.randn_like(latent))).float()
    return _error(made - images)


def _error(difference: Tensor) -> Tensor:
    """Absolute errors of pixels and of edges at three scales, and squared errors of colors over two by two, which leave no creature gray."""
    scales = [difference, functional.avg_pool2d(difference, 2), functional.avg_pool2d(difference, 4)]
    edges = [scale.diff(dim=2).abs().mean() + scale.diff(dim=3).abs().mean() for scale in scales]
    return scales[0].abs().mean() + 2 * scales[1].square().mean() + 0.25 * torch.stack(edges).sum()


def quality() -> dict[str, float]:
    """Mean absolute error and PSNR on held-out pictures."""
    vae = trained()
    images = as_input(dataset.pictures(range(dataset.SHARDS, dataset.SHARDS + 1))[:500])
    made = torch.cat([_reconstructed(vae, batch) for batch in images.split(50)])
    squares = ((made - images) / 2).square().mean(dim=(1, 2, 3))
    return {"mean absolute error": float(((made - images) / 2).abs().mean()), "PSNR, dB": float((-10 * squares.log10()).mean())}
