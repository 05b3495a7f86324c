"""What autograd keeps of a forward pass: copies that in-place writes cannot spoil, or only the inputs of blocks that run again.

The second is gradient checkpointing. PyTorch's own (``torch.utils.checkpoint``) hands a block the very tensors that it has kept, so a block
that writes to its input would run again from the overwritten one and give wrong gradients without a word.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .tracing import storage_key


@contextmanager
def activations_kept(module: nn.Module) -> Generator[None, None, None]:
    """Within: autograd keeps copies of what it saves, so that later in-place writes do not spoil the backward pass.

    The module's own weights are not copied: they never change.
    """
    weights = _weight_memory(module)

    def keep(tensor: Tensor) -> Tensor:
        return tensor if storage_key(tensor) in weights else tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


def _weight_memory(module: nn.Module) -> set[int]:
    return {storage_key(parameter) for parameter in module.parameters()}


@contextmanager
def blocks_recomputed(blocks: Iterable[nn.Module], *, write_in_place: bool) -> Generator[None, None, None]:
    """Within: autograd keeps only the inputs of each block, which runs a second time in the backward pass (Chen et al. 2016).

    Everything that decides what a block computes has to be the same at both times. A pass without gradient is not touched.

    Args:
        blocks: modules that are called (not only their parts), none of them inside another.
        write_in_place: whether something in them overwrites tensors that autograd saves; costs copies.
    """
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_recomputed(block, write_in_place))
        yield


@contextmanager
def _recomputed(block: nn.Module, write_in_place: bool) -> Generator[None, None, None]:
    forward, own = block.forward, vars(block).get("forward")

    def twice(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return _run_recomputed(block, forward, write_in_place, args, kwargs)

    block.forward = twice
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own


def _run_recomputed(block: nn.Module, forward: Callable[..., Any], write_in_place: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves, inputs_as = pytree.tree_flatten((args, kwargs))
    places = [number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[place] for place in places]
    for place in places:
        leaves[place] = None  # autograd alone is to keep the inputs, until the backward pass
    outputs_as: list[Any] = []

    def run(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        filled = list(leaves)
        for place, tensor in zip(places, inputs, strict=True):
            filled[place] = tensor.clone()  # the block may write to it
        given, named = pytree.tree_unflatten(filled, inputs_as)
        outputs, how = pytree.tree_flatten(forward(*given, **named))
        outputs_as[:] = [how]
        return tuple(outputs)

    keeping = (lambda: activations_kept(block)) if write_in_place else nullcontext
    # The first tensor makes the result need a gradient where no input does: the block's own parameters may.
    outputs = _Recompute.apply(run, keeping, torch.empty(0, requires_grad=True), *tensors)
    return pytree.tree_unflatten(list(outputs), outputs_as[0])


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[Sequence[Tensor]], tuple[Any, ...]], keeping: Callable[[], Any], _: Tensor, *tensors: Tensor) -> tuple[Any, ...]:
        ctx.run, ctx.keeping = run, keeping
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return run(tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = [tensor.detach().requires_grad_(needed) for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[3:], strict=True)]
        with torch.enable_grad(), ctx.keeping():
            outputs = ctx.run(inputs)
        reached = [(out, gradient) for out, gradient in zip(outputs, gradients, strict=True) if gradient is not None and out.requires_grad]
        torch.autograd.backward([out for out, _ in reached], [gradient for _, gradient in reached])  # also into the block's own parameters
        return (None, None, None, *(tensor.grad for tensor in inputs))
