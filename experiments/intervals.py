"""Means with 95 % intervals, and differences in pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy import stats

CONFIDENCE = 0.95
Unit = TypeVar("Unit")


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
        if self.low <= 0 <= self.high:
            return "undecided: the interval includes 0"
        return "above 0" if self.low > 0 else "below 0"

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


def paired(first: Mapping[Unit, float], second: Mapping[Unit, float]) -> Interval | None:
    """First - second over the units that both have."""
    return interval([value - second[unit] for unit, value in first.items() if unit in second])


def contrast(weighted: Sequence[tuple[float, Mapping[Unit, float]]]) -> Interval | None:
    """The weighted sum over the units that all have: a linear statement about means that belong together."""
    shared = set.intersection(*(set(values) for _, values in weighted))
    return interval([math.fsum(weight * values[unit] for weight, values in weighted) for unit in sorted(shared, key=str)])
