"""Frozen linear layers: a function that keeps nothing of their weights for the backward pass.

A weight may be stored in another type or place than the layer computes in. ``torch.nn.functional.linear`` would keep the
wide copy, made for this one use, until the backward pass; here it is read a second time instead.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""What PyTorch calls with a layer's inputs, outputs and their gradients."""


class WeightReader(Protocol):
    """Knows how linear layers of some program keep their weights."""

    def reads(self, layer: nn.Module) -> bool:
        """Whether ``layer(x)`` is ``x W^T + b`` with the W and b that ``weight`` gives, and does nothing else."""
        ...

    def weight(self, layer: nn.Module, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """W of shape (out, in) and b, in the type and on the device of ``like``; to be used only within."""
        ...


class OwnWeights:
    """Reads PyTorch's own linear layers, whose weights are plain tensors."""

    def reads(self, layer: nn.Module) -> bool:
        """See ``WeightReader``."""
        return type(layer).forward is nn.Linear.forward and is_unchanged(layer)

    @contextmanager
    def weight(self, layer: nn.Module, like: Tensor) -> Generator[tuple[Tensor, Tensor | None], None, None]:
        """See ``WeightReader``."""
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        yield weight.to(like), bias.to(like) if isinstance(bias, Tensor) else None


def is_unchanged(layer: nn.Module) -> bool:
    """Whether calling the layer is calling its class's forward method: nobody has hooked it or exchanged the method."""
    return "forward" not in vars(layer) and not any(vars(layer)[hooks] for hooks in HOOKS)


def autocast_type(x: Tensor) -> torch.dtype | None:
    """What autocast has a layer compute in on the device of ``x``; None where it is off."""
    kind = x.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_on else None


def frozen_linear(x: Tensor, layer: nn.Module, reader: WeightReader) -> Tensor:
    """``x W^T + b``, shape (..., out), of a layer that the reader reads; gradient reaches x alone, shape (..., in)."""
    return cast(Tensor, _FrozenLinear.apply(x, layer, reader))


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, reader: WeightReader) -> Tensor:
        ctx.layer, ctx.reader = layer, reader
        output = frozen_output(x.reshape(-1, x.shape[-1]), layer, reader)
        return outside_view(output, x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        of_x = input_gradient(gradient.reshape(-1, gradient.shape[-1]), ctx.layer, ctx.reader)
        return of_x.view(*gradient.shape[:-1], of_x.shape[-1]), None, None


def outside_view(output: Tensor, inputs: torch.Size) -> Tensor:
    """An output of shape (N, out) as (..., out), for inputs of shape (..., in); to be returned by an autograd function.

    Into an ordinary view that comes out of such a function nobody may write, as the host's networks may.
    """
    return cast(Tensor, torch.ops.aten._unsafe_view(output, [*inputs[:-1], output.shape[-1]]))


def frozen_output(x: Tensor, layer: nn.Module, reader: WeightReader) -> Tensor:
    """``x W^T + b``, shape (N, out), for x of shape (N, in)."""
    with reader.weight(layer, x) as (weight, bias):
        return nn.functional.linear(x, weight, bias)


def input_gradient(gradient: Tensor, layer: nn.Module, reader: WeightReader) -> Tensor:
    """``g W``, shape (N, in), from the gradient of a frozen layer's output, shape (N, out)."""
    with reader.weight(layer, gradient) as (weight, _):
        return gradient @ weight
