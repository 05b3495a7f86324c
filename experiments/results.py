"""The numbers of a study: one row for each measure of each batch of pictures, and its CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from experiments.store import write_whole


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
    """What one training took up to a step."""

    condition: str
    step: int
    case: str
    seed: int
    seconds: float
    peak_memory: int
    """Bytes."""
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
    """The last step at which a condition was looked at; 0 for the base model."""
    return max((row.step for row in rows if row.condition == condition), default=0)


def by_unit(rows: Iterable[Row], condition: str, metric: str, **wanted: object) -> dict[tuple[str, int], float]:
    """The mean over prompts of a condition's metric at its last step, for each subject and seed: the units that are compared in pairs."""
    of_condition = chosen(rows, condition=condition, metric=metric, **{name: value for name, value in wanted.items() if value is not None})
    step = wanted.get("step", last_step(of_condition, condition))
    values: dict[tuple[str, int], list[float]] = {}
    for row in of_condition:
        if row.step == step:
            values.setdefault((row.case, row.seed), []).append(row.value)
    return {unit: sum(each) / len(each) for unit, each in values.items()}
