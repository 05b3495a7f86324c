"""Progress on the node, the user's cancel, and what a run costs."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import comfy.model_management
import comfy.utils
import psutil
import torch

Item = TypeVar("Item")


class Progress:
    """The host's progress bar on the node that runs."""

    def __init__(self, total: int) -> None:
        """Start at 0 of ``total`` steps."""
        self._bar: Any = comfy.utils.ProgressBar(total)
        self._total = total
        stop_if_cancelled()

    def show(self, step: int) -> None:
        """Show that ``step`` steps are done; raise the host's own exception if the user has cancelled."""
        stop_if_cancelled()
        self._bar.update_absolute(step, self._total)


def stop_if_cancelled() -> None:
    """Raise the host's own exception if the user has cancelled: its bar alone is too slow to notice."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class Meter:
    """Seconds since it was made, and the highest memory in use at its readings (CPU) or at any time (CUDA)."""

    def __init__(self, device: torch.device) -> None:
        """Start measuring on ``device``."""
        self._device = device
        self._began = time.perf_counter()
        self._peak = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.read()

    def read(self) -> None:
        """Take a reading."""
        on_cuda = self._device.type == "cuda"
        now = torch.cuda.max_memory_allocated(self._device) if on_cuda else psutil.Process().memory_info().rss
        self._peak = max(self._peak, now)

    def read_after_each(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with a reading after each."""
        for item in items:
            self.read()
            yield item

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._began

    @property
    def peak_memory(self) -> int:
        """Bytes."""
        return self._peak
