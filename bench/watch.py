"""What one step asks of the machine: kernels, waits for them, and how long they keep the GPU busy.

On a GPU the profiler tells. On the CPU, operations that reach the dispatcher stand for kernels, and reads of scalars
for waits.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

NO_KERNEL = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"}
"""Operations that give a tensor without computing anything, beside the views."""
INDEXING = ("index", "_index", "nonzero", "masked_select")
"""How the names of operations begin that take rows or places by their numbers."""
BUSY = ("kernel", "gpu_memcpy", "gpu_memset")
"""The profiler's categories of what a GPU does."""
DEVICE_WAITS = ("cudaDeviceSynchronize", "hipDeviceSynchronize")
BLOCKING_COPIES = ("cudaMemcpy", "hipMemcpy", "hipMemcpyWithStream")

Step = Callable[[AbstractContextManager[object] | None], float]
"""Makes one step, within the context manager that it is given."""


class OperationCount(TorchDispatchMode):
    """Within: this thread's operations are counted, without views, and its reads of scalars, until an optimizer steps.

    On the CPU an optimizer goes from parameter to parameter, which says nothing of a GPU, where it takes them together.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self.kernels = 0
        self.waits = 0
        self.indexing = 0
        """Of the kernels, those that take rows or places by their numbers, which a GPU has to be told first."""
        self._counting = True

    def __enter__(self) -> "OperationCount":
        """Begin."""
        self._hook = register_optimizer_step_pre_hook(self._stop)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End."""
        super().__exit__(*error)
        self._hook.remove()

    def _stop(self, *_: object) -> None:
        self._counting = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the operation and carry it out."""
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.waits += self._counting
        elif func.namespace != "profiler" and not func.is_view and name not in NO_KERNEL:
            self.kernels += self._counting
            self.indexing += self._counting and name.startswith(INDEXING)
        return func(*args, **(kwargs or {}))


def watched(step: Step, device: torch.device) -> dict[str, float]:
    """Kernels and waits of one step, and on a GPU its busy seconds; nothing where this cannot be found out."""
    if device.type == "cpu":
        count = OperationCount()
        step(count)
        return {"kernels": count.kernels, "waits": count.waits}
    if device.type != "cuda":
        return {}
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    step(profiler)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return traced(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


def traced(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The same from the profiler's events; nothing where it saw no kernel, as without the right to trace."""
    in_order = sorted((event for event in events if "dur" in event), key=lambda event: event["ts"])
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in in_order if event.get("cat") in BUSY]
    kernels = sum(event.get("cat") == "kernel" for event in in_order)
    calls = [event["name"] for event in in_order if event.get("cat") == "cuda_runtime"]
    if not kernels:
        return {}
    return {"kernels": kernels, "waits": waits(calls), "busy seconds": covered(spans) / 1e6}


def waits(calls: Iterable[str]) -> int:
    """How many of these calls of a GPU's runtime make the processor wait.

    Waits for the whole device before everything else and after it are the bench's and the profiler's own.
    """
    relevant = [name for name in calls if _waits(name) or "Launch" in name or "Memcpy" in name or "Memset" in name]
    while relevant and relevant[-1] in DEVICE_WAITS:
        relevant.pop()
    while relevant and relevant[0] in DEVICE_WAITS:
        relevant.pop(0)
    return sum(_waits(name) for name in relevant)


def _waits(name: str) -> bool:
    return name.endswith("Synchronize") or name in BLOCKING_COPIES


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans (start, end), which come ordered by their starts."""
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
