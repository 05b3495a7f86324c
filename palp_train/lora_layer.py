"""A linear layer with a LoRA (Hu et al. 2021), which peft puts in: ``y = x W^T + b + (x A^T) B^T``.

One autograd function: three matrix products forward, five backward. It keeps the layer's input once, in the type that
the network computes in, and ``x A^T``; of the frozen weight it keeps nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from .frozen import OwnWeights, WeightReader, autocast_type, frozen_output, input_gradient, outside_view


@dataclass
class LayersState:
    """What all layers of a LoRA share."""

    reader: WeightReader = field(default_factory=OwnWeights)
    rows: int | None = None
    """The LoRA acts on so many rows of the batch, the first ones; None: on all."""
    copies: "NarrowCopies" = field(default_factory=lambda: NarrowCopies())


@dataclass(frozen=True)
class _Copy:
    """One matrix in another type, and which state of it that is."""

    original: Tensor
    version: int
    copy: Tensor


class NarrowCopies:
    """The matrices, which are float32, in the types that the network computes in; made anew all at once."""

    def __init__(self) -> None:
        """Know none."""
        self._known = dict[tuple[int, torch.dtype], _Copy]()
        self._wanted = set[torch.dtype]()

    def of(self, original: Tensor, dtype: torch.dtype) -> Tensor:
        """The matrix in that type, without gradient."""
        if original.dtype == dtype:
            return original.detach()
        self._wanted.add(dtype)
        found = self._known.get((id(original), dtype))
        if found and _is_current(found, original):
            return found.copy
        return original.detach().to(dtype)

    def refresh(self, originals: Sequence[Tensor]) -> None:
        """Make those copies anew whose originals have changed, in all types that were asked for so far.

        Not while a step is traced, on tensors without data: they would stay for nothing.
        """
        if any(original.is_meta for original in originals):
            return
        for dtype in self._wanted:
            stale = [one for one in originals if not self._has(one, dtype)]
            if not stale:
                continue
            copies = [torch.empty_like(one, dtype=dtype, requires_grad=False) for one in stale]
            with torch.no_grad():
                torch._foreach_copy_(copies, stale)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]  one call for all
            for original, copy in zip(stale, copies, strict=True):
                self._known[id(original), dtype] = _Copy(original, original._version, copy)

    def _has(self, original: Tensor, dtype: torch.dtype) -> bool:
        found = self._known.get((id(original), dtype))
        return found is not None and _is_current(found, original)


def _is_current(found: _Copy, original: Tensor) -> bool:
    return found.original is original and found.version == original._version


class LoraLinear(nn.Module):
    """A frozen linear layer and its LoRA; the names within are peft's. Its scale, alpha / rank, is 1.

    The matrices are made on the "meta" device: who injects the layer gives them their values.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, *, r: int, lora_alpha: float, **_: Any) -> None:
        """Wrap any layer with ``in_features`` and ``out_features``; peft gives more than we need."""
        super().__init__()
        assert lora_alpha == r
        width_in, width_out = cast(int, base_layer.in_features), cast(int, base_layer.out_features)
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({adapter_name: nn.Linear(width_in, r, bias=False, device="meta")})
        self.lora_B = nn.ModuleDict({adapter_name: nn.Linear(r, width_out, bias=False, device="meta")})
        self._name = adapter_name
        self.state = LayersState()

    @property
    def weight(self) -> Tensor:
        """The frozen layer's own: networks look at its type."""
        return cast(Tensor, self.base_layer.weight)

    @property
    def bias(self) -> Tensor | None:
        """The frozen layer's own."""
        return cast("Tensor | None", self.base_layer.bias)

    @property
    def down(self) -> nn.Parameter:
        """A, shape (rank, in), float32."""
        return cast(nn.Parameter, self.lora_A[self._name].weight)

    @property
    def up(self) -> nn.Parameter:
        """B, shape (out, rank), float32."""
        return cast(nn.Parameter, self.lora_B[self._name].weight)

    def set_matrices(self, down: Tensor, up: Tensor) -> None:
        """Train these."""
        cast(nn.Linear, self.lora_A[self._name]).weight = nn.Parameter(down)
        cast(nn.Linear, self.lora_B[self._name]).weight = nn.Parameter(up)

    def narrow(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(A, B) in that type, without gradient."""
        return self.state.copies.of(self.down, dtype), self.state.copies.of(self.up, dtype)

    def adapted(self, x: Tensor) -> int:
        """How many of the vectors in x, shape (B, ..., in), the LoRA acts on: the first ones."""
        vectors = x.numel() // x.shape[-1]
        return vectors if self.state.rows is None else vectors // len(x) * self.state.rows

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, shape (B, ..., out), for an input of shape (B, ..., in)."""
        if self.state.rows == 0:
            return self.base_layer(x)
        x = x.to(autocast_type(x) or x.dtype)
        base = None if self.state.reader.reads(self.base_layer) else self.base_layer(x)
        return cast(Tensor, _LoraLinear.apply(x, base, self.down, self.up, self))


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor | None, down: Tensor, up: Tensor, layer: LoraLinear) -> Tensor:
        inputs = x.reshape(-1, x.shape[-1])
        count = layer.adapted(x)
        a, b = layer.narrow(x.dtype)
        if base is None:
            output = frozen_output(inputs, layer.base_layer, layer.state.reader)
        else:
            output = base.reshape(-1, base.shape[-1]).clone()
        hidden = inputs[:count] @ a.T
        output[:count].addmm_(hidden, b.T)
        ctx.save_for_backward(inputs[:count], hidden)
        ctx.layer, ctx.shape, ctx.has_base = layer, x.shape, base is not None
        return outside_view(output, x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), layer = gradients, ctx.layer
        inputs, hidden = ctx.saved_tensors
        a, b = layer.narrow(inputs.dtype)
        of_outputs = gradient.reshape(-1, gradient.shape[-1])
        of_mine = of_outputs[: len(inputs)]
        of_hidden = of_mine @ b
        of_down = (of_hidden.T @ inputs).to(layer.down.dtype)
        of_up = (of_mine.T @ hidden).to(layer.up.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            if ctx.has_base:  # it has a graph of its own
                of_x = a.new_zeros(len(of_outputs), a.shape[-1])
            else:
                of_x = input_gradient(of_outputs, layer.base_layer, layer.state.reader)
            of_x[: len(inputs)].addmm_(of_hidden, a)
            of_x = of_x.view(ctx.shape)
        return of_x, gradient if ctx.has_base else None, of_down, of_up, None
