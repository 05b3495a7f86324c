"""Figures of a study, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from dev_tools.files import write_whole
from experiments.intervals import Interval, average
from experiments.results import Row, chosen, values
from experiments.store import slug
from experiments.studies import FACTORS, scaled
from experiments.world import DIVERSITY, IMAGE, TEXT

HEADLINES = (TEXT, IMAGE, DIVERSITY)
REFERENCES = {"base": "black", "drawn": "gray"}
"""Colors of what was not trained."""


def names(rows: Sequence[Row]) -> list[str]:
    """The conditions, in the study's order."""
    return list(dict.fromkeys(row.condition for row in rows))


def metrics(rows: Sequence[Row]) -> list[str]:
    """The metrics that the world could tell, the leading ones first."""
    told = list(dict.fromkeys(row.metric for row in rows))
    return [*(metric for metric in HEADLINES if metric in told), *(metric for metric in told if metric not in HEADLINES)]


def draw_all(rows: Sequence[Row], along: str, folder: Path) -> list[Path]:
    """The figures that suit what the study compares along; their files."""
    told = [metric for metric in metrics(rows) if metric in HEADLINES]
    drawn = [_written(folder, "text-and-subject", _trade(rows))] if {TEXT, IMAGE} <= set(told) else []
    if along == "grid":
        return drawn + [_written(folder, metric, _grid(rows, metric)) for metric in told]
    if along == "step":
        return drawn + [_written(folder, metric, _curves(rows, metric)) for metric in told]
    return drawn + [_written(folder, metric, _bars(rows, metric, along)) for metric in told]


def _written(folder: Path, name: str, figure: Figure) -> Path:
    path = folder / f"{slug(name)}.png"
    write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=130, bbox_inches="tight"))
    return path


def _axes(x: str, y: str, width: float = 6.4) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _color(rows: Sequence[Row], condition: str) -> Any:
    colors = [*mpl.color_sequences["tab10"], *mpl.color_sequences["tab20b"]]
    return REFERENCES.get(condition) or colors[names(rows).index(condition) % len(colors)]


def steps(rows: Sequence[Row], condition: str) -> list[int]:
    """After which steps the condition was looked at; 0 for what is not trained."""
    return sorted({row.step for row in rows if row.condition == condition})


def _at(rows: Sequence[Row], condition: str, metric: str, **wanted: object) -> Interval | None:
    return average(values(rows, condition, metric, **wanted))


def _trade(rows: Sequence[Row]) -> Figure:
    """The paper's Figure 6: text against image alignment, a line through the steps of each condition."""
    figure, axes = _axes(IMAGE, TEXT)
    for condition in names(rows):
        points = [(_at(rows, condition, IMAGE, step=step), _at(rows, condition, TEXT, step=step)) for step in steps(rows, condition)]
        known = [(x.mean, y.mean) for x, y in points if x and y]
        if known:
            x, y = zip(*known, strict=True)
            sizes = np.linspace(20, 60, len(known))
            axes.plot(x, y, color=_color(rows, condition), linewidth=1)
            axes.scatter(x, y, s=sizes, color=_color(rows, condition), label=condition)
    axes.set_title("larger dots: more steps" if any(len(steps(rows, name)) > 1 for name in names(rows)) else "", fontsize=9)
    axes.legend(fontsize=7)
    return figure


def _curves(rows: Sequence[Row], metric: str) -> Figure:
    """The metric after each number of steps, with intervals; the base model as a line."""
    figure, axes = _axes("training steps", metric)
    apart = 0.008 * max(row.step for row in rows)
    for number, condition in enumerate(names(rows)):
        found = [(step, at) for step in steps(rows, condition) if (at := _at(rows, condition, metric, step=step))]
        if found and found[0][0] == 0:
            axes.axhline(found[0][1].mean, color=_color(rows, condition), linestyle="--", linewidth=1, label=condition)
        elif found:
            places = [step + (number - len(names(rows)) / 2) * apart for step, _ in found]  # so that intervals do not hide each other
            _with_intervals(axes.errorbar, places, [at for _, at in found], color=_color(rows, condition), label=condition, marker="o")
    axes.legend(fontsize=7)
    return figure


def _bars(rows: Sequence[Row], metric: str, along: str) -> Figure:
    """The metric of each condition for each value of a field, after the last step."""
    groups = list(dict.fromkeys(getattr(row, along) for row in rows))
    figure, axes = _axes(along, metric, width=max(6.4, 1.6 * len(groups)))
    width = 0.8 / len(names(rows))
    for number, condition in enumerate(names(rows)):
        found = [(place, at) for place, group in enumerate(groups) if (at := _at(chosen(rows, **{along: group}), condition, metric))]
        places = [place + (along != "condition") * (number - (len(names(rows)) - 1) / 2) * width for place, _ in found]
        _with_intervals(axes.errorbar, places, [at for _, at in found], color=_color(rows, condition), label=condition, fmt="o")
    axes.set_xticks(range(len(groups)), [str(group) for group in groups], fontsize=8)
    axes.legend(fontsize=7)
    return figure


def _with_intervals(draw: Callable[..., object], x: Sequence[float], found: Sequence[Interval], **style: Any) -> None:
    halves = [at.high - at.mean if np.isfinite(at.high) else 0.0 for at in found]
    draw(x, [at.mean for at in found], yerr=halves, capsize=2, linewidth=1, markersize=4, **style)


def _grid(rows: Sequence[Row], metric: str) -> Figure:
    """The metric over alpha and beta."""
    figure, axes = _axes("times beta", "times alpha")
    cells = [[_at(rows, scaled(alpha, beta).name, metric) for beta in FACTORS] for alpha in FACTORS]
    means = np.array([[cell.mean if cell else np.nan for cell in row] for row in cells])
    axes.imshow(means, origin="lower", cmap="viridis")
    axes.grid(visible=False)
    for y, x in np.ndindex(means.shape):
        axes.text(x, y, f"{means[y, x]:.2f}", ha="center", va="center", color="white")
    axes.set_xticks(range(len(FACTORS)), [f"{beta:g}" for beta in FACTORS])
    axes.set_yticks(range(len(FACTORS)), [f"{alpha:g}" for alpha in FACTORS])
    axes.set_title(_references(rows, metric), fontsize=9)
    return figure


def _references(rows: Sequence[Row], metric: str) -> str:
    known = [(name, _at(rows, name, metric)) for name in ("base", "none")]
    return f"{metric}; " + ", ".join(f"{name} {at.mean:.2f}" for name, at in known if at)
