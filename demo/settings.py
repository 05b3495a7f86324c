"""What suits the demo model: how it is trained and how its pictures are made, wherever that is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TRAIN: Mapping[str, float | int] = {"learning_rate": 1e-3, "word_learning_rate": 1e-2, "batch_size": 4}
"""Rates and batch for a network two hundred times smaller than SD 1.4. All else is Appendix C's, the alignment with its guidance scales, too."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the host's sampler."""

    steps: int = 25
    guidance: float = 3.0
    """Higher finds a little more of the prompt, and draws creatures that face both ways at once."""
    sampler: str = "dpmpp_2m"
    scheduler: str = "normal"
    resolution: int = 64
    """Pixels of a side."""


SAMPLING = Sampling()
"""What suits the demo model."""
