"""The numbers of a study: one row for each measure of each batch of pictures, and its CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

from dev_tools.files import write_whole
from experiments.intervals import Key


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number."""

    condition: str
    step: int
    case: str
    category: str
    ask: str
    elements: int
    """How many the prompt has."""
    seed: int
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one training took."""

    condition: str
    step: int
    case: str
    seed: int
    seconds: float
    """Up to the step."""
    peak_memory: int
    """Bytes, of the whole training."""
    device: str


def write_csv(path: Path, rows: Sequence[Row] | Sequence[Cost], kind: type[Row] | type[Cost]) -> None:
    """Write a table with a header, whole."""

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([[each.name for each in fields(kind)], *(astuple(row) for row in rows)])

    write_whole(path, write)


def chosen(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """The rows whose fields have these values."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def last_step(rows: Iterable[Row], condition: str) -> int:
    """The last step after which a condition was looked at, whatever could be measured there; 0 for the base model."""
    return max((row.step for row in rows if row.condition == condition), default=0)


def counted_by(rows: Iterable[Row]) -> Literal["case", "seed"]:
    """The field that tells the units of these rows apart: subjects, or the seeds of a lone one."""
    return "seed" if len({row.case for row in rows}) == 1 else "case"


def values(rows: Sequence[Row], condition: str, metric: str, **wanted: object) -> dict[Key, float]:
    """A condition's numbers, of its last step where none is wanted, for each subject, seed and prompt. Units are those of all ``rows``."""
    found, unit = chosen(rows, condition=condition, metric=metric, **wanted), counted_by(rows)
    step = wanted.get("step", last_step(rows, condition))
    return {Key(case=row.case, seed=row.seed, ask=row.ask, unit=getattr(row, unit)): row.value for row in found if row.step == step}


def at_equal_steps(rows: Sequence[Row], metric: str, *conditions: str) -> list[dict[Key, float]]:
    """The numbers of conditions after the last step that all trained ones have in common; of what is not trained, its only ones."""
    steps = [{row.step for row in chosen(rows, condition=name)} - {0} for name in conditions]
    trained = [each for each in steps if each]
    last = max(set.intersection(*trained), default=None) if trained else 0
    return [values(rows, name, metric, step=last if each else 0) for name, each in zip(conditions, steps, strict=True)]
