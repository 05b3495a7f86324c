"""The autoencoder's encoder, computed instead of trained: principal components of 8 x 8 pixels, through the host's own layers.

All residual branches of the host's Encoder are set to zero. What is left is a chain of strided convolutions, a normalization and a last convolution.
The chain gathers the components of 2 x 2, 4 x 4 and 8 x 8 pixels; constant channels keep the normalization from changing their sizes;
least squares fit the last convolution. Latents are then nearly linear in the pixels, each about as important as its name says: brightness first, then
colors, then edges. Denoisers learn such latents fast, and the decoder can be trained while they stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.make.host import architecture

EVENNESS = 0.25
"""Latent channels get standard deviations as their variances to this power: between pixels' own sizes (0.5) and all alike (0)."""
CONSTANT = 8.0
KEPT = (12, 32)
"""Components of 2 x 2 pixels, which are all there are, and of 4 x 4 pixels, which are nearly all that differs between them."""


@torch.no_grad()
def fit(vae: Any, images: Tensor) -> float:
    """Set the encoder; returns the part of the components' variance that its latents give.

    Args:
        vae: the host's AutoencoderKL.
        images: pictures to take the components from, shape (B, 3, 64, 64), values in [-1, 1].
    """
    encoder = vae.encoder
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
    nn.init.dirac_(encoder.conv_in.weight)
    nn.init.dirac_(encoder.down[2].block[0].nin_shortcut.weight)
    gathered = images
    for level, count in enumerate(KEPT):
        gathered = _set_components(encoder.down[level].downsample.conv, gathered, list(range(count)))
    spread = [channel for channel in range(64) if channel % 8 != 7]
    _set_components(encoder.down[2].downsample.conv, gathered, spread, even=True)
    encoder.down[2].downsample.conv.bias[7::8] = CONSTANT
    nn.init.constant_(encoder.norm_out.weight, 0.5)
    nn.init.constant_(encoder.norm_out.bias, 4.0)  # where the activation function is nearly a straight line
    return _fit_output(vae, images)


def _set_components(layer: nn.Conv2d, maps: Tensor, channels: list[int], even: bool = False) -> Tensor:
    """Let the layer put out the main components of 2 x 2 of its inputs on these channels; returns them."""
    blocks = _blocks(maps, 2)
    flat = blocks.permute(0, 2, 3, 1).flatten(0, 2).double()
    variances, axes = torch.linalg.eigh(flat.T @ flat / len(flat))
    axes = axes.flip(1)[:, : len(channels)]
    if even:
        axes = axes / variances.flip(0)[: len(channels)].clamp(min=1e-6).sqrt()
    weight = axes.T.float().reshape(len(channels), maps.shape[1], 2, 2)
    layer.weight[channels, : maps.shape[1], :2, :2] = weight
    return functional.conv2d(maps, weight, stride=2)


def _blocks(maps: Tensor, side: int) -> Tensor:
    """Blocks of side x side as channels: (B, C side side, H / side, W / side)."""
    return functional.pixel_unshuffle(maps, side)


def _fit_output(vae: Any, images: Tensor) -> float:
    """Fit the last convolution to the components of 8 x 8 pixels."""
    channels = architecture().LATENT_CHANNELS
    features = _rows(_features(vae.encoder, images))
    wanted = _wanted(images, channels)
    ones = torch.ones(len(features), 1, dtype=torch.float64)
    solution = torch.linalg.lstsq(torch.cat([features, ones], dim=1), wanted).solution
    vae.encoder.conv_out.weight[:channels, :, 1, 1] = solution[:-1].T.half().float()  # as they will be stored
    guess = features @ vae.encoder.conv_out.weight[:channels, :, 1, 1].double().T
    vae.encoder.conv_out.bias[:channels] = (wanted - guess).mean(dim=0).float()
    vae.encoder.conv_out.bias[channels:] = -12.0  # log variances: latents without noise
    nn.init.dirac_(vae.quant_conv.weight)
    nn.init.zeros_(vae.quant_conv.bias)
    rest = wanted - guess - (wanted - guess).mean(dim=0)
    return float(1 - rest.var() / wanted.var())


def _features(encoder: Any, images: Tensor) -> Tensor:
    """What the last convolution gets."""
    kept: list[Tensor] = []
    handle = encoder.conv_out.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    encoder(images)
    handle.remove()
    return kept[0]


def _wanted(images: Tensor, channels: int) -> Tensor:
    """Centred components of 8 x 8 pixels, sized by ``EVENNESS``, all together of variance one, shape (blocks, channels)."""
    flat = _rows(_blocks(images, 8))
    flat = flat - flat.mean(dim=0)
    variances, axes = torch.linalg.eigh(flat.T @ flat / len(flat))
    variances, axes = variances.flip(0)[:channels], axes.flip(1)[:, :channels]
    sizes = variances**EVENNESS
    return flat @ axes / variances.sqrt() * sizes / sizes.square().mean().sqrt()


def _rows(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(0, 2).double()


def encode(vae: Any, images: Tensor) -> Tensor:
    """What ``vae.encode`` gives, without computing what is zero."""
    encoder, maps = vae.encoder, images
    for level, count in enumerate((*KEPT, 64)):
        layer = encoder.down[level].downsample.conv
        maps = functional.conv2d(maps, layer.weight[:count, : maps.shape[1], :2, :2], layer.bias[:count], stride=2)
    latents = functional.conv2d(functional.silu(encoder.norm_out(maps)), encoder.conv_out.weight[:, :, 1:2, 1:2], encoder.conv_out.bias)
    return latents[:, : latents.shape[1] // 2]
