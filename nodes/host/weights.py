"""The host's weights, made fit for autograd without a copy, and given back as they were."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def frozen_alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor over the same memory.

    The host makes its weights in inference mode, and such tensors cannot be saved for a backward pass. Call this outside that mode.
    """
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


@contextmanager
def owned_weights(module: nn.Module, upcast: Iterable[nn.Module] = ()) -> Generator[None, None, None]:
    """Within: every parameter and buffer is an ordinary tensor that needs no gradient; after: the host's own objects again.

    Only the tensor objects are exchanged. Their memory is shared, and nothing writes to it.

    Args:
        module: whose weights are exchanged.
        upcast: parts of it that compute in float32 whatever their weights are kept in. These get float32 copies for the time being: cast at
            every use, autograd would keep just such a copy of each weight until the backward pass, and make it anew in every step. Tables
            that are only looked up in stay as they are.
    """
    computing = [module for part in upcast for module in part.modules() if not isinstance(module, nn.Embedding)]
    in_float32 = {id(parameter) for module in computing for parameter in module.parameters(recurse=False) if parameter.is_floating_point()}

    def owned(tensor: Tensor) -> Tensor:
        alias = frozen_alias(tensor)
        alias = alias.float() if id(tensor) in in_float32 else alias
        return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias

    with exchanged_tensors(module, owned):
        yield


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
