"""Carries a study out: trains, samples and measures what is not there yet, and collects the numbers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from experiments.results import Cost, Row
from experiments.sampling import personalized, sampled
from experiments.store import CellFiles, measures_of, read_json, read_pictures, write_json, write_pictures
from experiments.study import Cell, Plan
from experiments.training import files_of, looks_of, steps_missing, train, versions
from experiments.world import Ask

SAMPLED = 1
"""Raise it when the same settings sample something else than before."""
GIB = 2**30


def carry_out(plan: Plan, folder: Path) -> None:
    """Make all files of the study below ``folder`` that are not there; an interruption loses at most the training at hand.

    Raises:
        SystemExit: what is still to be trained will not fit on the disk.
    """
    work = [(cell, files_of(cell, plan.world, folder)) for cell in plan.cells()]
    untrained = sum(len(cell.looks) for cell, files in work if _steps_missing(plan, cell, files))
    with tqdm(total=sum(_work_left(plan, *each) for each in work), desc=plan.study.name, unit="step", smoothing=0.05, mininterval=1) as bar:
        for cell, files in work:
            bar.set_postfix_str(cell.title)
            trained = _steps_missing(plan, cell, files) > 0
            for _ in _done(plan, cell, files):
                bar.update()
            if trained:
                untrained -= len(cell.looks)
                _check_room(files, untrained)


def _check_room(made: CellFiles, count: int) -> None:
    """Return quietly if so many more LoRAs as large as one that was made fit on its disk.

    Raises:
        SystemExit: they do not.
    """
    wanted = count * max((file.stat().st_size for file in made.folder.glob("step-*.safetensors")), default=0)
    if wanted > (free := shutil.disk_usage(made.folder).free):
        raise SystemExit(
            f"The LoRAs that are still to be trained take {wanted / GIB:.1f} GiB below {made.folder.parent}, where {free / GIB:.1f} GiB are free. "
            "Make room, or give less: --steps, --seeds, --prompt-count, --conditions."
        )


def _steps_missing(plan: Plan, cell: Cell, files: CellFiles) -> int:
    """How many steps have to be made for all pictures that are not there yet."""
    looks = looks_of(cell, files)
    return steps_missing(cell, files, [step for step in looks if not all(_strip(plan, cell, files, step, ask).is_file() for ask in cell.asks)])


def _work_left(plan: Plan, cell: Cell, files: CellFiles) -> int:
    """Training steps and batches to sample or to measure."""
    batches = sum(not _measures(plan, ask, _strip(plan, cell, files, step, ask)).is_file() for step in looks_of(cell, files) for ask in cell.asks)
    return _steps_missing(plan, cell, files) + batches


def _done(plan: Plan, cell: Cell, files: CellFiles) -> Iterator[object]:
    """Do a cell's work; yields after each unit of it."""
    if steps := _steps_missing(plan, cell, files):
        yield from train(cell, plan.world, files, steps)
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
    drawn = {"prompt": _prompt(cell, ask), "count": plan.study.samples, "seed": cell.seed}
    return files.pictures(step, ask.name, {**asdict(plan.world.sampling), **versions(), **drawn, "sampled": SAMPLED})


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
    """Which trainings did not stay finite to the last look, and why."""
    found = [(cell, files_of(cell, plan.world, folder)) for cell in plan.cells()]
    return [f"{cell.title}: {read_json(files.unstable)['why']}" for cell, files in found if looks_of(cell, files) != list(cell.looks)]
