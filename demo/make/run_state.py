"""Training that can be cut off at any moment: a stage's state on disk, and the loop that all stages share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from demo.make.paths import WORK
from dev_tools.files import write_whole

SAVE_EVERY_SECONDS = 120.0
SMOOTH = 0.99
"""Of the loss that the progress bar shows, what is left of it after a step."""


@dataclass(kw_only=True)
class Stage:
    """What a stage trains, and how far it has come."""

    name: str
    modules: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    until: int | None = None
    """The step to stop at, to go on later; None: the last."""
    average: nn.Module | None = None
    """A copy of the modules whose weights follow slowly."""
    decay: float = 0.999
    step: int = 0
    _saved: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> Any:
        """The file of its state."""
        return WORK / f"{self.name}.pt"

    def train(self, loss_of: Callable[[int], Tensor], learning_rate: Callable[[float], float]) -> None:
        """Train on from where it was, to the end or to ``until``, with a progress bar; cut off anywhere, it goes on as if it had not been.

        Args:
            loss_of: from the number of the step, which also seeds what the step draws.
            learning_rate: from the part of the steps done, in [0, 1].
        """
        self._resume()
        end, smooth = min(self.until or self.steps, self.steps), None
        with tqdm(total=self.steps, initial=self.step, desc=self.name, mininterval=20) as bar:
            while self.step < end:
                loss = self._step(loss_of, learning_rate(self.step / self.steps))
                smooth = loss if smooth is None else SMOOTH * smooth + (1 - SMOOTH) * loss
                if time.monotonic() - self._saved > SAVE_EVERY_SECONDS or self.step == end:
                    self.save()
                bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
                bar.update()

    def _step(self, loss_of: Callable[[int], Tensor], rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(self.step)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._follow()
        return float(loss.detach())

    @torch.no_grad()
    def _follow(self) -> None:
        if self.average is not None:
            decay = min(self.decay, self.step / (self.step + 20))
            for mean, current in zip(self.average.parameters(), self.modules.parameters(), strict=True):
                mean.lerp_(current, 1 - decay)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        self._saved = time.monotonic()
        state = {"modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step, "generator": torch.get_rng_state()}
        if self.average is not None:
            state["average"] = self.average.state_dict()
        write_whole(self.path, lambda partial: torch.save(state, partial))

    def _resume(self) -> None:
        if self.path.is_file():
            state = torch.load(self.path, weights_only=True)
            self.modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            torch.set_rng_state(state["generator"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])


def warm_cosine(peak: float, warm: float = 0.02, last: float = 0.02) -> Callable[[float], float]:
    """A learning rate that rises to its peak and falls along a cosine to a small part of it."""

    def rate(done: float) -> float:
        if done < warm:
            return peak * (done + 1e-3) / warm
        fall = 0.5 * (1 + torch.cos(torch.tensor((done - warm) / (1 - warm) * torch.pi)).item())
        return peak * (last + (1 - last) * fall)

    return rate
