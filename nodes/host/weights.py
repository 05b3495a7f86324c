"""The host's weights, made fit for autograd without a copy, and given back as they were."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ...palp_train.frozen import OwnWeights, WeightReader, frozen_linear, is_unchanged


def frozen_alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor over the same memory.

    The host makes its weights in inference mode, and such tensors cannot be saved for a backward pass. Call this outside that mode.
    """
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


@contextmanager
def owned_weights(module: nn.Module, float32: Iterable[Tensor] = ()) -> Generator[None, None, None]:
    """Make every parameter and buffer an ordinary tensor that needs no gradient; afterwards the host's own objects again.

    Only the tensor objects are exchanged. Their memory is shared, and nothing writes to it.

    Args:
        module: whose weights are exchanged.
        float32: those of which there is a copy in float32 meanwhile.
    """
    widened = {id(tensor) for tensor in float32}

    def owned(tensor: Tensor) -> Tensor:
        alias = frozen_alias(tensor)
        alias = alias.float() if id(tensor) in widened else alias
        return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias

    with exchanged_tensors(module, owned):
        yield


class HostWeights:
    """Reads the host's linear layers, whose weights may be stored in other types and places than they compute in."""

    def reads(self, layer: nn.Module) -> bool:
        """See ``WeightReader``."""
        casts = getattr(type(layer), "forward_comfy_cast_weights", None)
        if casts is None:
            return OwnWeights().reads(layer)
        return is_unchanged(layer) and isinstance(layer, nn.Linear) and casts in _cast_as_known()

    @contextmanager
    def weight(self, layer: nn.Module, like: Tensor) -> Generator[tuple[Tensor, Tensor | None], None, None]:
        """See ``WeightReader``."""
        own: Any = layer
        if _is_used_as_stored(own, like):
            yield own.weight, own.bias
            return
        weight, bias, stream = comfy.ops.cast_bias_weight(own, like, offloadable=True)
        try:
            yield weight, bias
        finally:
            comfy.ops.uncast_bias_weight(own, weight, bias, stream)


def _cast_as_known() -> tuple[Any, ...]:
    """The methods of the host's linear layers that cast the weight, multiply by it, and do nothing else."""
    kinds = (comfy.ops.disable_weight_init, getattr(comfy.ops, "fp8_ops", None))
    return tuple(kind.Linear.forward_comfy_cast_weights for kind in kinds if kind is not None)


def _is_used_as_stored(layer: Any, like: Tensor) -> bool:
    """Whether a layer's weight is of the type, and in the place, that it computes in, and nothing changes it."""
    if getattr(layer, "weight_function", ()) or getattr(layer, "bias_function", ()):
        return False
    stored = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return all(one.dtype == like.dtype and one.device == like.device for one in stored)


@contextmanager
def narrow_weights_kept(module: nn.Module, reader: WeightReader) -> Generator[None, None, None]:
    """Let linear layers widen their weights as they use them, forward and backward.

    Autograd would keep the wide copy of each weight until the backward pass.

    Args:
        module: part of it may be stored in other types than it computes in.
        reader: reads its layers.
    """
    with ExitStack() as stack:
        for layer in module.modules():
            if isinstance(layer, nn.Linear) and layer.weight.dtype != torch.float32 and reader.reads(layer):
                stack.enter_context(_keeping_nothing(layer, reader))
        yield


@contextmanager
def _keeping_nothing(layer: nn.Module, reader: WeightReader) -> Generator[None, None, None]:
    layer.forward = lambda x: frozen_linear(x, layer, reader)
    try:
        yield
    finally:
        del layer.forward  # the class's own shows again


@contextmanager
def exchanged_tensors(module: nn.Module, exchange: Callable[[Tensor], Tensor]) -> Generator[None, None, None]:
    """Within: in the place of every parameter and buffer is what ``exchange`` makes of it; tied weights stay tied."""
    originals = [(table, name, tensor) for table in _tensor_tables(module) for name, tensor in table.items() if tensor is not None]
    exchanged: dict[int, Tensor] = {}
    try:
        for table, name, tensor in originals:
            if id(tensor) not in exchanged:
                exchanged[id(tensor)] = exchange(tensor)
            table[name] = exchanged[id(tensor)]
        yield
    finally:
        for table, name, tensor in originals:
            table[name] = tensor


def _tensor_tables(module: nn.Module) -> Iterator[dict[str, Any]]:
    for child in module.modules():
        yield child._parameters  # the public ways to exchange a tensor would refuse one made in inference mode
        yield child._buffers
