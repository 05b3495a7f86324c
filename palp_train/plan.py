"""How a step trades time for memory. Every plan computes the same step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser, Query


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one step goes through the network."""

    checkpointing: bool = False
    """Whether autograd keeps only the inputs of the network's blocks, which then run a second time in the backward pass."""
    estimate_first: bool = False
    """Whether the estimate of x0 that is noised again comes from a pass of its own, without gradient, before the one with gradient.

    That is one pass more, but nothing that autograd keeps is alive beside the alignment branch.
    """
    rows: int | None = None
    """How many predictions of the alignment branch go through the network at once; None: all of them."""

    def __str__(self) -> str:
        """For reports."""
        at_once = "all its predictions at once" if self.rows is None else f"{self.rows} of its predictions at once"
        when = "before the training pass" if self.estimate_first else "after the training pass"
        return f"gradient checkpointing {'on' if self.checkpointing else 'off'}; alignment {when}, {at_once}"


FASTEST = Plan()


def plans(checkpointing: str, rows: int) -> list[Plan]:
    """From the fastest plan to the one that takes least memory.

    Args:
        checkpointing: "on", "off", or "auto" for plans of both kinds.
        rows: predictions of the alignment branch in a step; 0: it has none.
    """
    at_once = [None, *_halves(rows // 2)]
    without = [Plan(rows=count, estimate_first=first) for first in ([False, True] if rows else [False]) for count in at_once]
    with_it = [Plan(rows=count, checkpointing=True) for count in at_once]  # there, what is kept is too little for estimate_first to pay
    return {"off": without, "on": with_it, "auto": without + with_it}[checkpointing]


def _halves(count: int) -> list[int]:
    return [count, *_halves(count // 2)] if count else []


def in_parts(denoiser: Denoiser, rows: int | None) -> Denoiser:
    """The same denoiser, of which no more than ``rows`` rows go through the network at once; None: no limit."""
    return denoiser if rows is None else _InParts(denoiser, rows)


class _InParts:
    def __init__(self, whole: Denoiser, rows: int) -> None:
        self._whole, self._rows = whole, rows
        self.sigmas, self.parametrization, self.dtype = whole.sigmas, whole.parametrization, whole.dtype

    def __call__(self, noised: Tensor, sigma: Tensor, queries: Sequence[Query]) -> Tensor:
        starts = range(0, len(queries), self._rows)
        parts = [slice(start, start + self._rows) for start in starts]
        return torch.cat([self._whole(noised[part], sigma[part], queries[part]) for part in parts])
