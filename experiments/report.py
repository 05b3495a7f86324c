"""The report of a study: Markdown with tables, figures and contact sheets; its numbers as CSV beside it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from experiments import figures, sheets
from experiments.goals import goal_lines
from experiments.intervals import Interval, Key, average, paired
from experiments.laboratory import costs_of, rows_of, strips, unstable
from experiments.results import Cost, Row, at_equal_steps, counted_by, values, write_csv
from experiments.store import replaced
from experiments.study import Condition, Plan
from experiments.training import versions
from experiments.world import STYLED_IMAGE, Case

BASELINE = "none"
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a report says."""

    plan: Plan
    rows: Sequence[Row]
    costs: Sequence[Cost]
    unstable: Sequence[str]
    figures: Sequence[Path]
    sheets: Sequence[Path]


def write_report(plan: Plan, cells: Path, folder: Path) -> Path:
    """Write ``report.md``, ``measures.csv``, ``costs.csv``, figures and sheets into ``folder``, in an earlier report's place; the report's path.

    Raises:
        SystemExit: nothing has been measured yet.
    """
    rows, costs = rows_of(plan, cells), costs_of(plan, cells)
    if not rows:
        raise SystemExit(f"Nothing of {plan.study.name} has been measured with these settings: run it without --report-only first.")
    with replaced(folder) as new:
        write_csv(new / "measures.csv", rows, Row)
        write_csv(new / "costs.csv", costs, Cost)
        findings = Findings(
            plan=plan,
            rows=rows,
            costs=costs,
            unstable=unstable(plan, cells),
            figures=figures.draw_all(rows, plan.study.along, new),
            sheets=sheets.write_sheets(strips(plan, cells), plan.study.samples, new),
        )
        (new / "report.md").write_text(report_text(findings), encoding="utf-8")
    return folder / "report.md"


def report_text(found: Findings) -> str:
    """The Markdown."""
    study = found.plan.study
    parts = [f"# {study.title}", study.question, _settings(found), conditions_table(study.conditions)]
    parts += ["## What was found", *_goals(found), "After the last step:", means_table(found.rows)]
    parts += ["## Differences from none, in pairs", differences_table(found.rows)]
    parts += ["## Figures", *(f"![{path.stem}]({path.name})" for path in found.figures)]
    parts += [*_step_table(found), *_along_table(found)]
    parts += ["## Cost", cost_table(found.costs), *(["## Unstable trainings", *(f"- {line}" for line in found.unstable)] if found.unstable else [])]
    parts += ["## How it was measured", *(f"- {note}" for note in (*found.plan.world.notes, *_reading(found)))]
    parts += ["## Pictures", "All that a model made is from the same noise.", *(f"![{path.stem}]({path.name})" for path in found.sheets)]
    return "\n\n".join(parts) + "\n"


def _settings(found: Findings) -> str:
    study, cases = found.plan.study, found.plan.cases()
    sampling = found.plan.world.sampling
    changed = {"resolution": sampling.resolution, **found.plan.world.train, **found.plan.world.loss}
    return (
        f"On {found.plan.world.title}: {', '.join(f'{case.name} (from {_pictures(case)})' for case in cases)}; "
        f"{_counted({len(found.plan.asks(case)) for case in cases}, 'prompt')} each, {_counted({len({row.seed for row in found.rows})}, 'seed')}, "
        f"{study.samples} pictures a prompt; looked at after {', '.join(map(str, study.looks))} steps. "
        f"Training: the pack's defaults but {', '.join(f'{name} {value}' for name, value in changed.items())}. "
        f"Pictures: {sampling.steps} steps of {sampling.sampler}, {sampling.scheduler}, guidance {sampling.guidance:g}. "
        f"{', '.join(f'{name} {version}' for name, version in versions().items())}; {platform.machine()}, {platform.system()}."
    )


def _pictures(case: Case) -> str:
    return " and ".join(_counted({len(taught.images)}, "picture") for taught in case.taught)


def _counted(counts: set[int], noun: str) -> str:
    """The noun with the counts that it has, such as "5 or 6 prompts"."""
    return f"{' or '.join(map(str, sorted(counts)))} {noun}{'s' if max(counts) > 1 else ''}"


def conditions_table(conditions: Sequence[Condition]) -> str:
    """What each condition changes."""
    lines: list[list[str]] = []
    for condition in conditions:
        changed = [f"{name} {value}" for name, value in condition.loss.items()]
        changed += [f"{name} x {factor:.3g}" for name, factor in condition.loss_factors.items()]
        lines.append([condition.name, ", ".join(changed) or "nothing" if condition.trained else f"not trained: {condition.pictures} pictures"])
    return table(["condition", "changes"], lines)


def _goals(found: Findings) -> list[str]:
    if not found.plan.study.has_goals:
        return []
    lines = goal_lines(found.rows, has_scale=found.plan.world.truth is not None)
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _reading(found: Findings) -> list[str]:
    return [
        f"Every number is a mean over units, {units(found.rows)} in all where it does not say how many: subjects, whose seeds, prompts and pictures are "
        "averaged first, as they are much alike. Of a lone subject each seed is a unit, and nothing is said of others. Intervals are 95 % (Student's t).",
        "Seconds: the median, and the least and the most; how busy the machine was is in them.",
        "Peak memory: on a CPU all that the process had, on a GPU what PyTorch had given out.",
        "Differences are taken in pairs, on the same subjects, prompts, seeds and noise, after the last step that both were looked at. "
        "Nothing is corrected for the number of comparisons.",
    ]


def means_table(rows: Sequence[Row]) -> str:
    """Every condition's metrics after its last step."""
    told, count = figures.metrics(rows), units(rows)
    lines = [[name, *(_cell(values(rows, name, metric), count) for metric in told)] for name in figures.names(rows)]
    return table(["condition", *told], lines)


def differences_table(rows: Sequence[Row], baseline: str = BASELINE) -> str:
    """Every condition minus the baseline, with what can be told of the sign."""
    told = [metric for metric in figures.metrics(rows) if metric in (*figures.HEADLINES, STYLED_IMAGE)]
    lines, count = list[list[str]](), units(rows)
    for name in [name for name in figures.names(rows) if name != baseline]:
        for metric in told:
            difference = paired(*at_equal_steps(rows, metric, name, baseline))
            if difference:
                lines.append([name, metric, _of(difference, count), difference.verdict])
    return table(["condition", "metric", f"minus {baseline}", ""], lines)


def _step_table(found: Findings) -> list[str]:
    """The leading metrics after each number of steps, where there are several."""
    if len(found.plan.study.looks) == 1:
        return []
    told = [metric for metric in figures.metrics(found.rows) if metric in figures.HEADLINES]
    looks = [(name, step) for name in figures.names(found.rows) for step in figures.steps(found.rows, name) if step]
    count = units(found.rows)
    lines = [[name, str(step), *(_cell(values(found.rows, name, metric, step=step), count) for metric in told)] for name, step in looks]
    return ["## By steps", table(["condition", "steps", *told], lines)]


def units(rows: Sequence[Row]) -> int:
    """How many there are to average over."""
    return len({getattr(row, counted_by(rows)) for row in rows})


def _along_table(found: Findings) -> list[str]:
    """The metrics for each group, and the goals of each, where the study compares groups."""
    along = found.plan.study.along
    if along not in ("elements", "category", "case"):
        return []
    groups = list(dict.fromkeys(getattr(row, along) for row in found.rows))
    parts: list[str] = []
    for group in groups:
        rows = [row for row in found.rows if getattr(row, along) == group]
        part = replace(found, rows=rows)
        counted = _counted({units(rows)}, "subject") if counted_by(rows) == "case" else f"{_counted({units(rows)}, 'seed')} of one subject"
        parts += [f"### {along}: {group} ({counted})", *_goals(part), means_table(rows)]
    return parts


def cost_table(costs: Sequence[Cost]) -> str:
    """Seconds and memory of a training, by condition, to its last step."""
    lines: list[list[str]] = []
    for name in dict.fromkeys(cost.condition for cost in costs):
        last = max(cost.step for cost in costs if cost.condition == name)
        taken = [cost for cost in costs if cost.condition == name and cost.step == last]
        seconds, peak = [cost.seconds for cost in taken], max(cost.peak_memory for cost in taken)
        spread = f"{median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        lines.append([name, str(last), spread, f"{peak / MIB:.0f}", str(len(taken)), taken[0].device])
    return table(["condition", "steps", "seconds", "peak memory, MiB", "trainings", "device"], lines)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def _cell(measured: Mapping[Key, float], count: int) -> str:
    found = average(measured)
    return _of(found, count) if found else ""


def _of(found: Interval, count: int) -> str:
    """A number, and of how many units where it is not all."""
    return str(found) if found.count == count else f"{found} ({found.count})"
