"""Training in bfloat16 where the processor is fast at it.

Maps stay in NCHW order: in channels-last order PyTorch's backward pass of group normalization takes 30 times as long in bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

LEAST_CHANNELS, LEAST_SIDE = 32, 8
"""oneDNN's backward pass for bfloat16 convolutions takes 50 times as long below."""


def keep_small_convolutions_in_float32(module: nn.Module) -> None:
    """Let each convolution of few channels or small maps leave autocast; call this after copying the module."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            setattr(layer, "forward", functools.partial(_convolved, layer, type(layer).forward))  # noqa: B010  no assignment to a method for the type checker


def _convolved(layer: nn.Conv2d, forward: Callable[[nn.Conv2d, Tensor], Tensor], x: Tensor) -> Tensor:
    few = min(layer.in_channels, layer.out_channels) < LEAST_CHANNELS
    if few or x.shape[-1] // layer.stride[0] < LEAST_SIDE:
        with torch.autocast("cpu", enabled=False):
            return forward(layer, x.float())
    return forward(layer, x)
