"""Copies between the CPU and a device for which neither has to wait."""

from typing import cast

import torch
from torch import Tensor


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
            self._numbers = numbers.cpu()

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
