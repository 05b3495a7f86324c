"""What autograd keeps of a forward pass: copies that in-place writes cannot spoil, or only the inputs of blocks that run again.

The second is gradient checkpointing. PyTorch's own (``torch.utils.checkpoint``) hands a block the very tensors that it
has kept, so a block that writes to its input would run again from the overwritten one and give wrong gradients without a
word.
"""

import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .tracing import GRANULE, storage_key

OVERWRITTEN = "a tensor that is needed for the backward pass has been modified by an inplace operation, and no copy of it is kept"


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in its memory."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    """Number of its first element."""

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        """That of a tensor of any strides."""
        return cls(tensor.shape, tensor.stride(), int(tensor.storage_offset()))


class MemoryCopy:
    """A copy of the piece of memory that a tensor lies in, from one multiple of ``GRANULE`` bytes to the next.

    ``clone`` would pack views of padded memory, which attention's kernels ask for, and expanded ones.
    """

    def __init__(self, tensor: Tensor) -> None:
        """Copy what the tensor, which may have any strides, lies in."""
        start, end = _span(tensor)
        self._start = start
        self._memory = tensor.detach().as_strided((end - start,), (1,), start).clone()

    def view(self, layout: Layout) -> Tensor:
        """The elements that a tensor of that layout, in the memory that was copied, had at that time; without gradient.

        Size, strides, type and the distance to the next lower multiple of ``GRANULE`` bytes are that tensor's own.
        """
        return self._memory.as_strided(layout.shape, layout.stride, layout.offset - self._start)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Numbers of the first element of the whole granules that a tensor lies in, and of the one behind the last."""
    first = last = int(tensor.storage_offset())
    if tensor.numel() > 0:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last += 1 + sum((size - 1) * stride for size, stride in steps)
    unit = max(1, GRANULE // tensor.element_size())
    in_all = tensor.untyped_storage().nbytes() // tensor.element_size()
    return first // unit * unit, max(first, min(-(-last // unit) * unit, in_all))


def copied(tensor: Tensor) -> Tensor:
    """The same values in memory of their own, laid out as they were; gradient passes through."""
    return _Copy.apply(tensor)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        same = MemoryCopy(tensor).view(Layout.of(tensor))
        # The result may be written to, which autograd refuses where a function gives a view.
        return same.new_empty(0).set_(same.untyped_storage(), same.storage_offset(), same.shape, same.stride())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


@contextmanager
def activations_kept(blocks: Iterable[nn.Module], written: Iterable[Tensor] = ()) -> Generator[None, None, None]:
    """Keep safe what autograd saves meanwhile, though blocks write to their inputs.

    Of saved tensors that share memory with an input of a block, copies are kept; those that lie in the same piece of
    memory at the same time share one. Whatever else is overwritten before the backward pass makes that pass fail.

    Args:
        blocks: the modules that may write to their inputs, also those inside other ones.
        written: tensors that may be written to as well.

    Raises:
        RuntimeError: in the backward pass, where something else was overwritten.
    """
    keeper = _Keeper()
    keeper.watch(written)
    with ExitStack() as stack:
        for block in blocks:
            hook = block.register_forward_pre_hook(keeper.watch_inputs, with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(keeper.keeping())
        yield


@dataclass(frozen=True)
class _Kept:
    """A saved tensor itself, and how often it had been written to."""

    tensor: Tensor
    version: int

    def restored(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(OVERWRITTEN)
        return self.tensor


@dataclass(frozen=True)
class _KeptCopy:
    """A copy of the memory that a saved tensor lay in."""

    memory: MemoryCopy
    layout: Layout

    def restored(self) -> Tensor:
        return self.memory.view(self.layout)


class _Written:
    """Memory that blocks may write to, and the copies of it that are still needed, by version and span."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = weakref.ref(storage)
        self._copies = weakref.WeakValueDictionary[tuple[int, ...], MemoryCopy]()

    def copy(self, tensor: Tensor) -> MemoryCopy:
        key = (tensor._version, tensor.element_size(), *_span(tensor))
        found = self._copies.get(key)
        if found is None:
            found = self._copies[key] = MemoryCopy(tensor)
        return found


class _Keeper:
    """Decides what is kept of a saved tensor."""

    def __init__(self) -> None:
        self._written = dict[int, _Written]()

    def keeping(self) -> AbstractContextManager[Any]:
        """Keep what autograd saves meanwhile."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.restored())

    def watch_inputs(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the tensors that a block is given."""
        self.watch(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Note the memory of these tensors, which may be written to."""
        for tensor in tensors:
            if self._noted(tensor) is None:
                self._written[storage_key(tensor)] = _Written(tensor.untyped_storage())

    def _noted(self, tensor: Tensor) -> _Written | None:
        noted = self._written.get(storage_key(tensor))
        return noted if noted and noted.storage() is not None else None  # else the memory's successor has its key

    def _pack(self, tensor: Tensor) -> _Kept | _KeptCopy:
        noted = self._noted(tensor)
        if noted is None:
            return _Kept(tensor.detach(), tensor._version)  # without the graph, which holds what is kept
        return _KeptCopy(noted.copy(tensor), Layout.of(tensor))


@contextmanager
def blocks_recomputed(blocks: Iterable[nn.Module], *, write_in_place: bool) -> Generator[None, None, None]:
    """Let autograd keep only the inputs of each block, which runs a second time in the backward pass (Chen et al. 2016).

    Everything that decides what a block computes has to be the same at both times. A pass without gradient is not
    touched.

    Args:
        blocks: modules that are called (not only their parts), none of them inside another.
        write_in_place: whether blocks, or those inside them, write to their inputs; costs copies.
    """
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_recomputed(block, write_in_place))
        yield


@contextmanager
def _recomputed(block: nn.Module, write_in_place: bool) -> Generator[None, None, None]:
    forward, own = block.forward, vars(block).get("forward")
    inside = listed_modules(block) if write_in_place else None

    def twice(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return _run_recomputed(forward, inside, args, kwargs)

    block.forward = twice
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own


def listed_modules(module: nn.Module) -> list[nn.Module]:
    """What stands in a module's lists of modules, at any depth: the blocks that it is a sequence of, and theirs."""
    lists = (child for child in module.modules() if isinstance(child, nn.ModuleList))
    return [child for each in lists for child in each]


def _run_recomputed(
    forward: Callable[..., Any],
    inside: Sequence[nn.Module] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    leaves, inputs_as = pytree.tree_flatten((args, kwargs))
    places = [number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[place] for place in places]
    for place in places:
        leaves[place] = None  # autograd alone is to keep the inputs, until the backward pass
    outputs_as: list[Any] = []

    def run(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        filled = list(leaves)
        for place, tensor in zip(places, inputs, strict=True):
            filled[place] = tensor
        given, named = pytree.tree_unflatten(filled, inputs_as)
        outputs, how = pytree.tree_flatten(forward(*given, **named))
        outputs_as[:] = [how]
        return tuple(outputs)

    safely = _refusing_writes(run) if inside is None else _safe_from_writes(run, inside)
    # The first tensor makes the result need a gradient where no input does: the block's own parameters may.
    outputs = _Recompute.apply(safely, torch.empty(0, requires_grad=True), *tensors)
    return pytree.tree_unflatten(list(outputs), outputs_as[0])


Run = Callable[[Sequence[Tensor]], tuple[Any, ...]]


def _safe_from_writes(run: Run, inside: Sequence[nn.Module]) -> Run:
    """The same, on copies of its inputs, and with what autograd saves kept safe from writes to them."""

    def safely(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        own = [copied(tensor) for tensor in inputs]
        if not torch.is_grad_enabled():
            return run(own)
        with activations_kept(inside, own):
            return run(own)

    return safely


def _refusing_writes(run: Run) -> Run:
    """The same, which fails where it has written to an input: it would run again from what it wrote."""

    def refusing(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        before = [tensor._version for tensor in inputs]
        outputs = run(inputs)
        if [tensor._version for tensor in inputs] != before:
            raise RuntimeError(OVERWRITTEN)
        return outputs

    return refusing


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, _: Tensor, *tensors: Tensor) -> tuple[Any, ...]:
        ctx.run = run
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return run([tensor.detach() for tensor in tensors])  # a block may return an input as it is

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        inputs = [one.detach().requires_grad_(is_needed) for one, is_needed in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            outputs = ctx.run(inputs)
        pairs = zip(outputs, gradients, strict=True)
        reached = [(out, gradient) for out, gradient in pairs if gradient is not None and out.requires_grad]
        # Also into the block's own parameters.
        torch.autograd.backward([out for out, _ in reached], [gradient for _, gradient in reached])
        return (None, None, *(tensor.grad for tensor in inputs))
