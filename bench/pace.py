"""Any training loop, one optimizer step at a time, so that loops of different programs can take turns on a machine."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

_BY_THREAD: dict[int, "PacedRun"] = {}


class PacedRun:
    """A loop in a thread of its own that stands still after every optimizer step until it is asked for the next."""

    def __init__(self, loop: Callable[[], object], device: torch.device) -> None:
        """Prepare ``loop``, which must step a torch optimizer; nothing runs before the first ``step``."""
        self._device = device
        self._go, self._stepped = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._ended = False
        self._watch: AbstractContextManager[object] = nullcontext()
        self._watching = ExitStack()
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
        self._thread.start()

    def step(self, watch: AbstractContextManager[object] | None = None) -> float:
        """Seconds that the loop took until it had stepped its optimizer once more.

        Args:
            watch: what the loop's thread makes the step within; None: nothing.

        Raises:
            RuntimeError: the loop ended instead, or raised what is its cause.
        """
        if self._ended:
            raise RuntimeError("the loop has ended")
        self._watch = watch or nullcontext()
        began = time.perf_counter()
        self._go.release()
        self._stepped.acquire()
        if self._error:
            raise RuntimeError("the loop failed") from self._error
        return time.perf_counter() - began

    def _run(self, loop: Callable[[], object]) -> None:
        _BY_THREAD[threading.get_ident()] = self
        self._go.acquire()
        try:
            with torch.inference_mode():  # the host runs its nodes in this mode
                self._watching.enter_context(self._watch)
                loop()
        except BaseException as error:
            self._error = error
        self._ended = True
        self._stepped.release()

    def _pause(self) -> None:
        wait_for(self._device)
        self._watching.close()
        self._stepped.release()
        self._go.acquire()
        self._watching.enter_context(self._watch)


class PacedCall:
    """A function that waits for its device itself, to be called and timed like the step of a ``PacedRun``."""

    def __init__(self, once: Callable[[], object]) -> None:
        """Nothing is called before the first ``step``."""
        self._once = once

    def step(self, watch: AbstractContextManager[object] | None = None) -> float:
        """Seconds that one call took, within ``watch``."""
        began = time.perf_counter()
        with watch or nullcontext():
            self._once()
        return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _after_every_optimizer_step(*_: object) -> None:
    paced = _BY_THREAD.get(threading.get_ident())
    if paced:
        paced._pause()


register_optimizer_step_post_hook(_after_every_optimizer_step)
