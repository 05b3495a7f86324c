"""Frozen convolutions: a function that keeps nothing for the backward pass, neither of the weight nor of the input.

PyTorch's own keeps both, whether or not the weight learns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import grad as gradients_of

from .frozen import WeightReader

INPUT_GRADIENTS = cast(
    Mapping[type[nn.Module], Callable[..., Tensor]],
    {nn.Conv1d: gradients_of.conv1d_input, nn.Conv2d: gradients_of.conv2d_input},
)
"""By the layer's class: what gives the gradient of its input."""


def is_plain_convolution(layer: nn.Module) -> bool:
    """Whether a layer of PyTorch's pads by zeros, if at all, so that its input's gradient is one operation."""
    return isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode == "zeros" and layer.padding != "same"


def frozen_convolution(x: Tensor, layer: nn.Module, reader: WeightReader) -> Tensor:
    """``W * x + b``, shape (B, out, ...), of a layer that the reader reads; gradient reaches x alone, (B, in, ...)."""
    return cast(Tensor, _FrozenConvolution.apply(x, layer, reader))


class _FrozenConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, reader: WeightReader) -> Tensor:
        ctx.layer, ctx.reader, ctx.shape = layer, reader, x.shape
        with reader.weight(layer, x) as (weight, bias):
            return layer._conv_forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), layer = gradients, ctx.layer
        input_gradient = next(found for kind, found in INPUT_GRADIENTS.items() if isinstance(layer, kind))
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        with ctx.reader.weight(layer, gradient) as (weight, _):
            return input_gradient(ctx.shape, weight, gradient, *geometry), None, None
