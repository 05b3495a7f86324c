"""What suits the demo model: how it is trained and how its pictures are made, wherever that is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TRAIN: Mapping[str, float | int] = {"learning_rate": 2e-4, "word_learning_rate": 4e-3, "batch_size": 4}
"""Rates and batch for a network two hundred times smaller than SD 1.4. The word learns faster than the LoRA: what it knows of the subject does not
reach the prediction without a prompt, from which guidance starts."""
LOSS: Mapping[str, Any] = {"alignment_scale": 2.0, "personalization_scale": 1.0, "alignment_weight": 4.0}
"""Appendix C's guidance scales over 7.5, at the same ratio. In this small model a prompt moves the predicted noise by half of the noise itself: with 15 and 7.5
the score is ten times the reconstruction's error, and what in it holds the prediction without a prompt in its place is lost beside the rest."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the host's sampler."""

    steps: int = 25
    guidance: float = 5.0
    """At 3 plain training is found to forget less of the prompt, which leaves less to win back."""
    sampler: str = "dpmpp_2m"
    scheduler: str = "normal"
    resolution: int = 64
    """Pixels of a side."""


SAMPLING = Sampling()
"""What suits the demo model."""
