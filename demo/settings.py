"""What suits the demo model: how it is trained and how its pictures are made, wherever that is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from palp_train.config import check_value, number

TRAIN: Mapping[str, float | int] = {"learning_rate": 1e-4, "word_vectors": 3, "word_learning_rate": 1e-3, "batch_size": 4}
"""Rates and batch for a network two hundred times smaller than SD 1.4, in 500 steps. One vector of its text encoder holds one property, such as "lime" or
"striped", and a subject has several."""
LOSS: Mapping[str, Any] = {"alignment_scale": 5.0, "personalization_scale": 2.5}
"""Appendix C's scales over three, as the sampler's guidance is about SD's over three: a prompt moves this model's prediction farther."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the host's sampler. Which samplers and schedulers there are, the host knows.

    Raises:
        InputError: a number is out of range.
    """

    steps: int = number(25, 1, 10_000, "Steps of the sampler.")
    guidance: float = number(3.0, 1, 100, "The prompt's scale. At 5 the demo model's pictures of what was overfitted burn out, even under the training prompt.")
    sampler: str = "dpmpp_2m"
    scheduler: str = "normal"
    resolution: int = number(64, 64, 8192, "Pixels of a side.")

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        for item in fields(self):
            if item.metadata:
                check_value(item.name, getattr(self, item.name), item.default, item.metadata)


SAMPLING = Sampling()
"""What suits the demo model."""
