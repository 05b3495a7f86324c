"""What suits the demo model: how it is trained and how its pictures are made, wherever that is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TRAIN: Mapping[str, float | int] = {"learning_rate": 2e-4, "word_vectors": 3, "word_learning_rate": 4e-3, "batch_size": 4}
"""Rates and batch for a network two hundred times smaller than SD 1.4. One vector of its text encoder holds one property, such as "lime" or "striped", and a
subject has several. The word learns faster than the LoRA: what it knows does not reach the prediction without a prompt, from which guidance starts."""
LOSS: Mapping[str, Any] = {"alignment_scale": 5.0, "personalization_scale": 5.0, "alignment_weight": 1.0}
"""Both guidance scales are the sampler's, as Appendix C's beta of 7.5 is SD's: what the score compares is then what will be sampled. The weight is
Eq. (6)'s."""


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
