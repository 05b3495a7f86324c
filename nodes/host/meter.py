"""What a run costs: seconds, and the most memory in use at any time."""

import threading
import time

import psutil
import torch

INTERVAL = 0.005
"""Seconds between two looks at the memory of a process on the CPU."""


class Meter:
    """Within: time runs, and the highest memory in use on the device is noted. What was in use at the start counts."""

    def __init__(self, device: torch.device) -> None:
        """For work on ``device``."""
        self._device = device
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self.seconds = 0.0
        self.peak_memory = 0
        """Bytes: on CUDA what PyTorch had given out, elsewhere what this process had of the CPU's memory."""

    def __enter__(self) -> "Meter":
        """Begin."""
        self._began = time.perf_counter()
        self.peak_memory = self.in_use()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._began
        if self._device.type == "cuda":
            self.peak_memory = torch.cuda.max_memory_allocated(self._device)
        else:
            self._over.set()
            self._watcher.join()

    def in_use(self) -> int:
        """Bytes at this moment."""
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else psutil.Process().memory_info().rss

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            self.peak_memory = max(self.peak_memory, self.in_use())
