"""What a computation takes in memory: counted while it runs, or found without running it.

The latter needs tensors that have a shape and no data, PyTorch's "meta" tensors. An operation may be one kernel on one
device and several on another, and takes other memory there: ``kernels_of`` chooses the device.
"""

import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

GRANULE = 512
"""Bytes to whose multiples PyTorch's allocators round."""
MASK_ALIGNMENT = 8
"""Numbers to whose multiples the rows of a mask are padded for attention on CUDA."""
NO_DATA = torch.device("meta")


class LiveMemory(TorchDispatchMode):
    """Within: the bytes of all tensors that are made and still alive, and the most that there were.

    Tensors from before do not count.
    """

    def __init__(self, run: Callable[..., Any] | None = None) -> None:
        """Count from zero.

        Args:
            run: runs an operation, given with its arguments; None: as it is. ``ShapesOnly`` is one.
        """
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.now = 0
        self.peak = 0
        self._run = run
        self._counted: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count what it has made."""
        named = kwargs or {}
        result = func(*args, **named) if self._run is None else self._run(func, *args, **named)
        unknown = [tensor for tensor in _tensors((result,)) if storage_key(tensor) not in self._counted]
        if unknown:
            given = _given_memory(args, named)
            for tensor in unknown:
                if storage_key(tensor) not in given:  # else a view of a tensor from before, or that tensor itself
                    self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key in self._counted:
            return
        nbytes = -(-storage.nbytes() // GRANULE) * GRANULE
        self._counted[key] = weakref.ref(storage, partial(self._forget, key, nbytes))
        self.now += nbytes
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, nbytes: int, _storage: Any) -> None:
        del self._counted[key]
        self.now -= nbytes


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those in an operation's arguments or results, which are tensors or lists of tensors.

    A general walk would take as long as the operation.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(cast(Iterable[Any], value))


def _given_memory(args: tuple[Any, ...], named: Mapping[str, Any]) -> set[int]:
    """What lies behind an operation's arguments, among which may be the memory itself."""
    bare = [value for value in args if isinstance(value, torch.UntypedStorage)]
    tensors = _tensors((*args, *named.values()))
    return {_key(storage) for storage in bare} | {storage_key(tensor) for tensor in tensors}


class EvenMasks(TorchDispatchMode):
    """Within: indexing by a mask, whose result has no certain size where there is no data, picks a share of rows."""

    def __init__(self, share: float) -> None:
        """Mixtures of experts: each expert's share where all get as many rows."""
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self._share = share

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Exchange the masks in indexing operations."""
        if func.overloadpacket in _INDEXING:
            args = (args[0], [self._picked(index) for index in args[1]], *args[2:])
        return func(*args, **(kwargs or {}))

    def _picked(self, index: Tensor | None) -> Tensor | None:
        if index is None or index.dtype != torch.bool:
            return index
        return index.new_empty(round(self._share * index.numel()), dtype=torch.long)


_INDEXING = (
    torch.ops.aten.index,
    torch.ops.aten.index_put,
    torch.ops.aten.index_put_,
    torch.ops.aten._index_put_impl_,
)


class ShapesOnly:
    """Runs operations so that what is computed from tensors without data has none either, whatever else goes into it.

    Tensors with data that meet them count by their shapes, and no device that is asked for is one. What an operation
    makes of given shapes is found once: for many operations PyTorch finds it in Python, which takes milliseconds.
    """

    def __init__(self) -> None:
        """Nothing is known of any operation."""
        self._known: dict[Any, Callable[[], Any]] = {}
        self._views = set[Any]()

    def __call__(self, func: Any, *args: Any, **named: Any) -> Any:
        """Run the operation, or give at once what it is known to make of such arguments."""
        if func in self._views:
            return func(*args, **named)
        key = (func, *map(_signature, args), *map(_signature, named.items()))
        make = self._known.get(key)
        if make is None:
            return self._first(key, args, named)
        return args[0] if make is _in_place else make()

    def _first(self, key: tuple[Any, ...], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        func = key[0]
        are_empty = [tensor.is_meta for tensor in _tensors((*args, *named.values()))]
        if True not in are_empty:  # what a network computes beforehand may decide about shapes
            return func(*args, **named)
        if False in are_empty:
            args, named = pytree.tree_map_only(Tensor, _on_meta, (args, named))
        if named.get("device") is not None:
            named["device"] = NO_DATA
        before, given = _memory_and_shapes(args, named), _given_memory(args, named)
        result = func(*args, **named)
        make = _maker(result, given)
        if make is not None:
            self._known[key] = make
        elif not args or result is not args[0]:
            self._views.add(func)
        elif all(are_empty) and _memory_and_shapes(args, named) == before:
            self._known[key] = _in_place
        return result


def _memory_and_shapes(args: tuple[Any, ...], named: Mapping[str, Any]) -> list[tuple[int, Any]]:
    return [(storage_key(tensor), _signature(tensor)) for tensor in _tensors((*args, *named.values()))]


def _signature(value: Any) -> Any:
    """What a result's shape, strides and type depend on, in an argument of an operation."""
    if isinstance(value, Tensor):
        return value.is_meta, value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple([_signature(item) for item in cast(Iterable[Any], value)])
    return type(value), value  # 1, 1.0 and True are equal, and make different types


def _in_place() -> None:
    """Stands for what an operation makes that changes its first argument's values, not its shape as ``resize_`` does."""


def _maker(result: Any, given: set[int]) -> Callable[[], Any] | None:
    """What makes such a result again; None where it is, or shares memory with, one of the operation's arguments."""
    if isinstance(result, Tensor):
        if storage_key(result) in given:
            return None
        kind = {"dtype": result.dtype, "device": result.device}
        return partial(torch.empty_strided, tuple(result.shape), result.stride(), **kind)
    if not isinstance(result, list | tuple):
        return None
    made = cast(Sequence[Any], result)
    makers = [None if item is None else _maker(item, given) for item in made]
    if any(make is None and item is not None for make, item in zip(makers, made, strict=True)):
        return None
    return partial(_made, list[Any] if isinstance(result, list) else tuple[Any, ...], makers)


def _made(kind: Callable[[Iterable[Any]], Any], makers: Sequence[Callable[[], Any] | None]) -> Any:
    return kind(make and make() for make in makers)


@contextmanager
def kernels_of(device: str) -> Generator[None, None, None]:
    """Within: on tensors without data, operations take the memory that they take on this type of device.

    On CUDA, RMS norm is one kernel, for which autograd keeps the input and the reciprocal root. Elsewhere it is a
    sequence of operations, for which autograd keeps a copy of the input in float32. Attention is one kernel on both,
    which "meta" tensors do not know. What is particular to other devices is not known: they count as the CPU does.

    The functions are exchanged where PyTorch's modules hold them: a TorchFunctionMode would not act in a backward pass.
    """
    on_cuda = device == "cuda"
    attention = partial(_attention, functional.scaled_dot_product_attention, on_cuda)
    exchanged: list[tuple[Any, str, Any]] = [(functional, "scaled_dot_product_attention", attention)]
    if on_cuda and hasattr(torch.ops.aten, "_fused_rms_norm_backward"):  # from torch 2.9
        exchanged.append((torch, "rms_norm", partial(_rms_norm, torch.rms_norm)))
    before = [getattr(module, name) for module, name, _ in exchanged]
    try:
        for module, name, function in exchanged:
            setattr(module, name, function)
        yield
    finally:
        for (module, name, _), function in zip(exchanged, before, strict=True):
            setattr(module, name, function)


def _rms_norm(
    real: Callable[..., Tensor],
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    if not x.is_meta or (weight is not None and weight.dtype != x.dtype):  # CUDA's kernel takes one type only
        return real(x, normalized_shape, weight, eps)
    return cast(Tensor, _RmsNorm.apply(x, weight, len(normalized_shape)))


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, dims: int) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        root = x.new_empty((*x.shape[: x.ndim - dims], *[1] * dims), dtype=wide)
        ctx.save_for_backward(x, weight, root)
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        return torch.empty_like(x) if needs_x else None, torch.empty_like(weight) if needs_weight else None, None


def _attention(
    real: Callable[..., Tensor],
    on_cuda: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **how: Any,
) -> Tensor:
    known = query.is_meta and query.ndim == 4 and dropout_p == 0
    if not known or not (_fits_cuda(query) if on_cuda else _fits_cpu(query, key, value, attn_mask)):
        return real(query, key, value, attn_mask, dropout_p, is_causal, **how)
    mask = attn_mask
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.empty_like(mask, dtype=query.dtype)
    if mask is not None and on_cuda and any(stride % MASK_ALIGNMENT for stride in mask.stride()[:-1]):
        mask = functional.pad(mask, (0, -mask.shape[-1] % MASK_ALIGNMENT))
    return cast(Tensor, _Attention.apply(query, key, value, mask))


def _fits_cuda(query: Tensor) -> bool:
    return query.dtype != torch.float64


def _fits_cpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    alike = query.shape[-1] == key.shape[-1] == value.shape[-1]
    return alike and (mask is None or not mask.requires_grad)


class _Attention(torch.autograd.Function):
    """What flash attention and its kin make and keep: the output, and log(sum(exp)) of each row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        output = _by_rows(query, value.shape[-1])
        wide = torch.promote_types(query.dtype, torch.float32)
        ctx.save_for_backward(query, key, value, mask, output, query.new_empty(query.shape[:-1], dtype=wide))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, *_ = ctx.saved_tensors
        made = [_by_rows(tensor, tensor.shape[-1]) for tensor in (query, key, value)]  # whichever are asked for
        return (*made, torch.empty_like(mask) if ctx.needs_input_grad[3] else None)


def _by_rows(like: Tensor, channels: int) -> Tensor:
    """Shape (batch, heads, rows, channels) with a row's heads side by side in memory."""
    batch, heads, rows, _ = like.shape
    return like.new_empty(batch, rows, heads, channels).transpose(1, 2)


def storage_key(tensor: Tensor) -> int:
    """What tells the memory behind a tensor from that behind others, while it lives, also where there is no data."""
    return _key(tensor.untyped_storage())


def _key(storage: torch.UntypedStorage) -> int:
    return storage._cdata  # pyright: ignore[reportPrivateUsage]  # as PyTorch's weak references do


def without_data(tensor: Tensor) -> Tensor:
    """A tensor like this one, from any device, of which there are only shape, strides and type."""
    empty = _empty(tensor)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty.requires_grad_(tensor.requires_grad)


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else _empty(tensor)


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=NO_DATA)
