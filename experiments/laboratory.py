"""Carries a study out: trains, samples and measures what is not there yet, and collects the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from experiments.results import Cost, Row
from experiments.sampling import personalized, sampled
from experiments.store import CellFiles, measures_of, read_json, read_pictures, write_json, write_pictures
from experiments.study import Cell, Plan
from experiments.training import files_of, looks_of, steps_missing, train
from experiments.world import Ask


def carry_out(plan: Plan, folder: Path) -> None:
    """Make all files of the study below ``folder`` that are not there; an interruption loses at most the training at hand."""
    cells = plan.cells()
    files = [files_of(cell, plan.world, folder) for cell in cells]
    left = sum(_work_left(plan, cell, each) for cell, each in zip(cells, files, strict=True))
    with tqdm(total=left, desc=plan.study.name, unit="step", smoothing=0.05, mininterval=1) as bar:
        for cell, each in zip(cells, files, strict=True):
            bar.set_postfix_str(cell.title)
            for _ in _done(plan, cell, each):
                bar.update()


def _work_left(plan: Plan, cell: Cell, files: CellFiles) -> int:
    """Training steps and batches to sample or to measure."""
    batches = sum(not _measures(plan, ask, _strip(plan, cell, files, step, ask)).is_file() for step in looks_of(cell, files) for ask in cell.asks)
    return steps_missing(cell, files) + batches


def _done(plan: Plan, cell: Cell, files: CellFiles) -> Iterator[object]:
    """Do a cell's work; yields after each unit of it."""
    if steps_missing(cell, files):
        yield from train(cell, plan.world, files)
    for step in looks_of(cell, files):
        for ask in cell.asks:
            strip = _strip(plan, cell, files, step, ask)
            if not strip.is_file():
                _sample(plan, cell, files, step, ask, strip)
            if not (measures := _measures(plan, ask, strip)).is_file():
                write_json(measures, dict(plan.world.measure(cell.case, ask, read_pictures(strip, plan.study.samples))))
                yield strip


def _sample(plan: Plan, cell: Cell, files: CellFiles, step: int, ask: Ask, strip: Path) -> None:
    """The same noise for every condition: differences between them are the conditions' own."""
    if (draw := plan.world.truth) and cell.condition.pictures == "drawn":
        write_pictures(strip, draw(cell.case, ask, plan.study.samples, cell.seed))
        return
    models = personalized(plan.world.models, files, step) if cell.condition.trained else plan.world.models
    write_pictures(strip, sampled(models, _prompt(cell, ask), plan.world.sampling, plan.study.samples, cell.seed))


def _strip(plan: Plan, cell: Cell, files: CellFiles, step: int, ask: Ask) -> Path:
    return files.pictures(step, ask.name, {**asdict(plan.world.sampling), "prompt": _prompt(cell, ask), "count": plan.study.samples, "seed": cell.seed})


def _measures(plan: Plan, ask: Ask, strip: Path) -> Path:
    return measures_of(strip, [plan.world.ruler, dict(ask.elements)])


def _prompt(cell: Cell, ask: Ask) -> str:
    return ask.target if cell.condition.trained else ask.clean


def strips(plan: Plan, folder: Path) -> Iterator[tuple[Cell, int, Ask, Path]]:
    """Every batch of pictures that is there."""
    for cell in plan.cells():
        files = files_of(cell, plan.world, folder)
        for step in cell.looks:
            for ask in cell.asks:
                if (strip := _strip(plan, cell, files, step, ask)).is_file():
                    yield cell, step, ask, strip


def rows_of(plan: Plan, folder: Path) -> list[Row]:
    """All numbers that are there."""
    rows: list[Row] = []
    for cell, step, ask, strip in strips(plan, folder):
        measures = _measures(plan, ask, strip)
        about = {"condition": cell.condition.name, "step": step, "case": cell.case.name, "category": cell.case.category, "seed": cell.seed}
        found = read_json(measures) if measures.is_file() else {}
        rows += [Row(**about, ask=ask.name, elements=len(ask.elements), metric=metric, value=value) for metric, value in found.items()]
    return rows


def costs_of(plan: Plan, folder: Path) -> list[Cost]:
    """What the trainings that are there took, up to each look."""
    costs: list[Cost] = []
    for cell in plan.cells():
        files = files_of(cell, plan.world, folder)
        for step in [step for step in cell.looks if files.cost(step).is_file()]:
            cost = read_json(files.cost(step))
            about = {"condition": cell.condition.name, "step": step, "case": cell.case.name, "seed": cell.seed, "device": cost["device"]}
            costs.append(Cost(**about, seconds=cost["seconds"], peak_memory=cost["peak memory"]))
    return costs


def unstable(plan: Plan, folder: Path) -> list[str]:
    """Which trainings did not stay finite, and why."""
    found = [(cell, files_of(cell, plan.world, folder).unstable) for cell in plan.cells()]
    return [f"{cell.title}: {read_json(file)['why']}" for cell, file in found if file.is_file()]
