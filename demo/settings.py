"""What suits the demo model: how it is trained and how its pictures are made, wherever that is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TRAIN: Mapping[str, float | int] = {"learning_rate": 1e-4, "word_vectors": 3, "word_learning_rate": 1e-3, "batch_size": 4}
"""Rates and batch for a network two hundred times smaller than SD 1.4, in 500 steps. One vector of its text encoder holds one property, such as "lime" or
"striped", and a subject has several."""
LOSS: Mapping[str, Any] = {"alignment_scale": 5.0, "personalization_scale": 2.5}
"""Appendix C's scales over three, as the sampler's guidance is about SD's over three: a prompt moves this model's prediction farther."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the host's sampler."""

    steps: int = 25
    guidance: float = 3.0
    """At 5 the pictures of what was overfitted burn out, even under the prompt that it was trained with."""
    sampler: str = "dpmpp_2m"
    scheduler: str = "normal"
    resolution: int = 64
    """Pixels of a side."""


SAMPLING = Sampling()
"""What suits the demo model."""
