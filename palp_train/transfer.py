"""Copies between the CPU and a device for which neither has to wait."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device; one on the CPU is handed over by memory that CUDA reads by itself."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Fetched:
    """Numbers on their way from a device to the CPU."""

    def __init__(self, numbers: Tensor) -> None:
        """Start the copy of a tensor of shape (N,), without gradient."""
        self._event: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))
        else:
            self._numbers = numbers.to("cpu", copy=True)

    def values(self) -> list[float]:
        """The numbers; waits until they are there."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return as_list(self._numbers)


def release_cache(device: torch.device) -> None:
    """Give memory that PyTorch keeps for later use back to the device, where it keeps any."""
    empty = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if empty is not None:
        empty()


def as_list(numbers: Tensor) -> list[float]:
    """The numbers of a tensor of shape (N,); waits for its device."""
    return cast("list[float]", numbers.tolist())  # pyright: ignore[reportUnknownMemberType]


def staying_on(device: torch.device) -> AbstractContextManager[Any]:
    """See ``StayOnDevice``; nothing where the device is the CPU."""
    return nullcontext() if device.type == "cpu" else StayOnDevice(device)


class StayOnDevice(TorchFunctionMode):
    """Lets code of others hand numbers to a device, and nothing back, without a wait.

    What such code makes on the CPU (token numbers, sizes, lists that it indexes with) goes over by pinned memory; what
    is on the device stays there where it would be brought to the CPU; where both meet, the CPU's part goes over.
    """

    def __init__(self, device: torch.device) -> None:
        """Keep tensors on ``device``."""
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the function, or what does the same without a wait."""
        given = kwargs or {}
        if func is torch.tensor and self._is_ours(given.get("device")):
            return to_device(torch.tensor(*args, **{**given, "device": "cpu"}), self._device)
        if func is Tensor.__getitem__ and args[0].device.type == self._device.type:
            return func(args[0], self._index(args[1]))
        if func is Tensor.cpu and args[0].device.type == self._device.type:
            return args[0]
        if func is Tensor.to:
            return self._moved(args, given)
        if func in (torch.cat, torch.stack):
            return func(self._together(args[0]), *args[1:], **given)
        return func(*args, **given)

    def _is_ours(self, device: Any) -> bool:
        return device is not None and torch.device(device).type == self._device.type

    def _index(self, index: Any) -> Any:
        if isinstance(index, list):
            return to_device(torch.tensor(index), self._device)
        return tuple(map(self._index, cast("tuple[Any, ...]", index))) if isinstance(index, tuple) else index

    def _moved(self, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
        tensor, *targets = args
        places = [_place(value) for value in (*targets, given.get("device"), given.get("other"))]
        goes_to = next((place for place in places if place is not None), None)
        if goes_to is None or goes_to.type == tensor.device.type:
            return tensor.to(*targets, **given)
        if goes_to.type == "cpu":
            kept = [target.dtype if isinstance(target, Tensor) else target for target in targets]
            kept = [tensor.device if isinstance(target, str | torch.device) else target for target in kept]
            return tensor.to(*kept, **{key: value for key, value in given.items() if key not in ("device", "other")})
        return to_device(tensor, goes_to).to(*targets, **given)

    def _together(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        if all(tensor.device.type == "cpu" for tensor in tensors):
            return tensors
        return [to_device(one, self._device) if one.device.type == "cpu" else one for one in tensors]


def _place(value: Any) -> torch.device | None:
    """The device that an argument of ``Tensor.to`` names; None where it names none."""
    if isinstance(value, Tensor):
        return value.device
    return torch.device(value) if isinstance(value, str | torch.device) else None
