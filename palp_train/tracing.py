"""What a computation takes in memory: counted while it runs, or found without running it, on tensors that have a shape and no data."""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

GRANULE = 512
"""Bytes to whose multiples PyTorch's allocators round."""


class LiveMemory(TorchDispatchMode):
    """Within: the bytes of all tensors that are made and still alive, and the most that there were. Tensors from before do not count."""

    def __init__(self) -> None:
        """Count from zero."""
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.now = 0
        self.peak = 0
        self._known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the operation and count what it has made."""
        for tensor in _tensors((*args, *(kwargs or {}).values())):  # what we have not seen being made is from before
            self._watch(tensor, is_new=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors((result,)):
            self._watch(tensor, is_new=True)
        return result

    def _watch(self, tensor: Tensor, *, is_new: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage_key(tensor)
        if key in self._known:  # a view, or written in place
            return
        nbytes = -(-storage.nbytes() // GRANULE) * GRANULE if is_new else 0
        self._known.add(key)
        weakref.finalize(storage, self._forget, key, nbytes)
        self.now += nbytes
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.now -= nbytes


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those in an operation's arguments or results, which are tensors or lists of tensors; a general walk takes as long as the operation."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(cast(Iterable[Any], value))


class EvenMasks(TorchDispatchMode):
    """Within: indexing by a mask, whose result has no certain size where there is no data, picks this share of the rows."""

    def __init__(self, share: float) -> None:
        """Mixtures of experts: each expert's share where all get as many rows."""
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self._share = share

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Exchange the masks in indexing operations."""
        if func.overloadpacket in _INDEXING:
            args = (args[0], [self._picked(index) for index in args[1]], *args[2:])
        return func(*args, **(kwargs or {}))

    def _picked(self, index: Tensor | None) -> Tensor | None:
        if index is None or index.dtype != torch.bool:
            return index
        return index.new_empty(round(self._share * index.numel()), dtype=torch.long)


_INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_)


def storage_key(tensor: Tensor) -> int:
    """What tells the memory behind a tensor from that behind others, while it lives, also where there is no data."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]  what PyTorch's own weak references to storages go by


def without_data(tensor: Tensor) -> Tensor:
    """A tensor like this one, from any device, of which there are only shape, strides and type, on the CPU; to be called within a FakeTensorMode."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty.requires_grad_(tensor.requires_grad)
