"""Means with 95 % intervals, and differences in pairs: of the same subject, seed and prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy import stats

CONFIDENCE = 0.95
Unit = str | int
"""What counts as one measurement, however many prompts and seeds it has: a subject. Where a study has one subject only: a seed."""


class Key(NamedTuple):
    """What is compared in pairs: the same subject, seed and prompt."""

    case: str
    seed: int
    ask: str
    unit: Unit
    """What it counts in."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and where it lies with 95 % confidence, by Student's t; unbounded for a single value."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def verdict(self) -> str:
        """Whether the mean is above or below 0, or cannot be told from it."""
        if self.count < 2:
            return "one value only: nothing can be told"
        if math.isclose(self.low, self.high, rel_tol=0, abs_tol=1e-12):
            return "all values are the same: nothing can be told"
        if self.low <= 0 <= self.high:
            return "undecided: the interval includes 0"
        return "above 0" if self.low > 0 else "below 0"

    def below(self, bound: float) -> Interval:
        """How far below a bound it is."""
        return Interval(mean=bound - self.mean, low=bound - self.high, high=bound - self.low, count=self.count)

    def __str__(self) -> str:
        """For tables."""
        return f"{self.mean:.3f}" if self.count < 2 else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(values: Sequence[float]) -> Interval | None:
    """The mean of independent values with its interval; None without any."""
    if not values:
        return None
    mean, count = math.fsum(values) / len(values), len(values)
    if count < 2:
        return Interval(mean=mean, low=-math.inf, high=math.inf, count=count)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean=mean, low=mean - half, high=mean + half, count=count)


def by_unit(values: Mapping[Key, float]) -> dict[Unit, float]:
    """The mean of each unit over all that is of it, which is much alike."""
    found: dict[Unit, list[float]] = {}
    for key, value in values.items():
        found.setdefault(key.unit, []).append(value)
    return {unit: math.fsum(each) / len(each) for unit, each in found.items()}


def average(values: Mapping[Key, float]) -> Interval | None:
    """The mean over units with its interval; None without any."""
    return interval(list(by_unit(values).values()))


def shared(*measured: Mapping[Key, float]) -> list[dict[Key, float]]:
    """What all have of the same subject, seed and prompt, in the same order."""
    keys = sorted(set[Key].intersection(*(set(values) for values in measured)))
    return [{key: values[key] for key in keys} for values in measured]


def contrast(weighted: Sequence[tuple[float, Mapping[Key, float]]]) -> Interval | None:
    """The weighted sum of what all have of the same subject, seed and prompt: a linear statement about means that belong together."""
    belonging = shared(*(values for _, values in weighted))
    return average({key: math.fsum(weight * values[key] for (weight, _), values in zip(weighted, belonging, strict=True)) for key in belonging[0]})


def paired(first: Mapping[Key, float], second: Mapping[Key, float]) -> Interval | None:
    """First - second."""
    return contrast([(1.0, first), (-1.0, second)])
