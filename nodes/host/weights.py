"""The host's weights, made fit for autograd without a copy, and given back as they were."""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ...palp_train.frozen import HOOKS, OwnWeights, WeightReader, frozen_linear
from ...palp_train.frozen_convolution import frozen_convolution, is_plain_convolution
from ...palp_train.tracing import storage_key


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's memory holds its numbers: not a code for them, as that of quantized weights does."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return False
    return tensor.is_meta or tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def is_quantized(layer: nn.Module) -> bool:
    """Whether the memory of a layer's weight holds a code for numbers. Plain 8-bit floats are numbers."""
    weight = layer._parameters.get("weight")
    if weight is None:
        return "qweight" in layer._parameters or "qweight" in layer._buffers  # so does Nunchaku keep them
    return not is_plain(weight) or not weight.dtype.is_floating_point


def is_scaled(layer: nn.Module) -> bool:
    """Whether a layer multiplies its weight by a number beside it, as older hosts do for scaled 8-bit floats."""
    return getattr(layer, "scale_weight", None) is not None


def frozen_alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor over the same memory; the tensor itself, where we do not know what its memory holds.

    The host makes its weights in inference mode, and such tensors cannot be saved for a backward pass. Call this
    outside that mode.
    """
    if hasattr(tensor, "__tensor_flatten__"):
        return _rebuilt(tensor)
    if not is_plain(tensor) or tensor.is_meta:
        return tensor
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _rebuilt(tensor: Any) -> Tensor:
    """A tensor that is made of others, made of their aliases."""
    names, context = tensor.__tensor_flatten__()
    inner = {name: frozen_alias(getattr(tensor, name)) for name in names}
    return type(tensor).__tensor_unflatten__(inner, context, tensor.shape, tensor.stride())


@contextmanager
def owned_weights(
    module: nn.Module,
    float32: Iterable[Tensor] = (),
    left: Iterable[Tensor] = (),
) -> Generator[None, None, None]:
    """Make every parameter and buffer an ordinary tensor that needs no gradient; afterwards the host's objects again.

    Only the tensor objects are exchanged. Their memory is shared, and nothing writes to it.

    Args:
        module: whose weights are exchanged.
        float32: those of which there is a copy in float32 meanwhile.
        left: those that stay as they are.
    """
    widened, untouched = _ids(float32), _ids(left)

    def owned(tensor: Tensor) -> Tensor:
        alias = tensor if id(tensor) in untouched else frozen_alias(tensor)
        if alias is tensor:
            return tensor
        if id(tensor) in widened:
            return _like(alias.float(), tensor)
        made = _like(alias, tensor)
        vars(made).update(vars(tensor))  # the host notes there which type a weight is to be cast to
        return made

    with exchanged_tensors(module, owned):
        yield


def _ids(tensors: Iterable[Tensor]) -> Collection[int]:
    return {id(tensor) for tensor in tensors}


def _like(tensor: Tensor, original: Tensor) -> Tensor:
    return nn.Parameter(tensor, requires_grad=False) if isinstance(original, nn.Parameter) else tensor


@contextmanager
def casts_that_last() -> Generator[None, None, None]:
    """Within: what a layer of the host's gets of its weight is its own tensor, or one that nobody else writes to.

    The host lends layers memory that it soon uses for other weights, while autograd may keep what it was given. Large
    weights are not meant for autograd in the first place: see ``narrow_weights_kept``.
    """
    original = comfy.ops.cast_bias_weight

    def lasting(layer: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        weight, bias, *stream = original(layer, *args, **kwargs)
        if torch.is_grad_enabled():
            weight, bias = _lasting(weight, layer.weight), _lasting(bias, layer.bias)
        return (weight, bias, *stream)

    comfy.ops.cast_bias_weight = lasting
    try:
        yield
    finally:
        comfy.ops.cast_bias_weight = original


def _lasting(tensor: Any, own: Any) -> Any:
    if tensor is None or type(tensor) not in (Tensor, nn.Parameter):
        return tensor
    is_own = is_plain(own) and storage_key(tensor) == storage_key(own)
    return tensor if is_own else tensor.clone()


class HostWeights:
    """Reads the host's linear layers and convolutions, whose weights may be stored in other types and places."""

    def reads(self, layer: nn.Module) -> bool:
        """See ``WeightReader``; for convolutions likewise."""
        casts = getattr(type(layer), "forward_comfy_cast_weights", None)
        if casts is None:
            return OwnWeights().reads(layer)
        is_known = isinstance(layer, nn.Linear) or is_plain_convolution(layer)
        return is_known and casts in _cast_as_known(layer) and _is_unchanged(layer) and not is_quantized(layer)

    @contextmanager
    def weight(self, layer: nn.Module, like: Tensor) -> Generator[tuple[Tensor, Tensor | None], None, None]:
        """See ``WeightReader``."""
        own: Any = layer
        if is_used_as_stored(own, like):
            yield own.weight, own.bias
            return
        weight, bias, stream = comfy.ops.cast_bias_weight(own, like, offloadable=True)
        try:
            yield weight, bias
        finally:
            comfy.ops.uncast_bias_weight(own, weight, bias, stream)


def _cast_as_known(layer: nn.Module) -> tuple[Any, ...]:
    """The methods of the host's layers of this kind that cast the weight, apply it, and do nothing else."""
    kind = next(base.__name__ for base in type(layer).__mro__ if base in (nn.Linear, nn.Conv1d, nn.Conv2d))
    operations = (comfy.ops.disable_weight_init, getattr(comfy.ops, "fp8_ops", None))
    return tuple(getattr(one, kind).forward_comfy_cast_weights for one in operations if one is not None)


def _is_unchanged(layer: nn.Module) -> bool:
    """Whether calling the layer is calling its class's forward method, or ours in its place."""
    exchanged = vars(layer).get("forward")
    return (exchanged is None or isinstance(exchanged, _Frozen)) and not any(vars(layer)[hooks] for hooks in HOOKS)


def is_used_as_stored(layer: Any, like: Tensor) -> bool:
    """Whether a layer's weight is of the type, and in the place, that it computes in, and nothing changes it."""
    if hasattr(layer, "_v") or getattr(layer, "weight_function", ()) or getattr(layer, "bias_function", ()):
        return False  # with "_v" the host brings the weight in, with functions it changes it
    stored = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return all(one.dtype == like.dtype and one.device == like.device for one in stored)


@contextmanager
def narrow_weights_kept(module: nn.Module, reader: WeightReader) -> Generator[None, None, None]:
    """Let layers cast or bring in their weights as they use them, forward and backward, wherever they do so at all.

    Autograd would keep the wide copy of each weight until the backward pass, and of convolutions the input as well.

    Args:
        module: part of it may be stored in other types, or in other places, than it computes in.
        reader: reads its layers.
    """
    with ExitStack() as stack:
        for layer in module.modules():
            if hasattr(type(layer), "forward_comfy_cast_weights") and reader.reads(layer):
                stack.enter_context(_keeping_nothing(layer, reader))
        yield


@contextmanager
def _keeping_nothing(layer: nn.Module, reader: WeightReader) -> Generator[None, None, None]:
    layer.forward = _Frozen(layer, reader)
    try:
        yield
    finally:
        del layer.forward  # the class's own shows again


class _Frozen:
    """In the place of a layer's forward method."""

    def __init__(self, layer: nn.Module, reader: WeightReader) -> None:
        self._layer, self._reader, self._own = layer, reader, layer.forward
        self._is_linear = isinstance(layer, nn.Linear)

    def __call__(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not x.requires_grad:
            return self._own(x)
        if not self._is_linear:
            return frozen_convolution(x, self._layer, self._reader)
        if is_used_as_stored(self._layer, x):  # autograd keeps the weight alone, which is there anyway
            return self._own(x)
        return frozen_linear(x, self._layer, self._reader)


@contextmanager
def exchanged_tensors(module: nn.Module, exchange: Callable[[Tensor], Tensor]) -> Generator[None, None, None]:
    """Within: in the place of every parameter and buffer is what ``exchange`` makes of it; tied weights stay tied."""
    tables = list(_tensor_tables(module))
    originals = [(table, name, table[name]) for table in tables for name in table if table[name] is not None]
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
