"""Carries a study out as the command line asks, in one process or several."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from experiments.options import OWN, parse
from experiments.store import replaced, slug
from experiments.studies import STUDIES
from experiments.study import Condition, Plan, Study, quick
from experiments.world import World


def conditions_of(study: Study, wanted: tuple[str, ...]) -> tuple[Condition, ...]:
    """The study's conditions of these names, all where none is named.

    Raises:
        SystemExit: the study has none of such a name.
    """
    known = {condition.name: condition for condition in study.conditions}
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"--conditions: {study.name} has {', '.join(known)}, not {', '.join(unknown)}.")
    return tuple(known[name] for name in known if name in wanted or not wanted)


def study_of(options: argparse.Namespace) -> Study:
    """The study with what the options change."""
    whole = STUDIES[options.name]
    study = quick(whole) if options.quick else replace(whole, prompts=0) if options.checkpoint else whole
    wanted = {
        "seeds": options.seeds,
        "looks": options.steps,
        "samples": options.samples,
        "prompts": options.prompt_count,
        "conditions": conditions_of(study, options.conditions),
    }
    return replace(study, **{name: value for name, value in wanted.items() if value is not None})


def world_of(options: argparse.Namespace) -> World:
    """The demo model's world, or the user's own."""
    if options.checkpoint:
        from experiments.checkpoint_world import SAMPLING, CheckpointWorld, Given

        given = {name: getattr(options, name) for name in (*OWN, "personalization_prompt", "clip_vision", "clip_text", "train", "loss")}
        sampling = replace(SAMPLING, **options.sampling, resolution=options.resolution or SAMPLING.resolution)
        return CheckpointWorld(Given(**given, sampling=sampling))
    from experiments.demo_world import DemoWorld

    world = DemoWorld()
    world.pictures = options.pictures or world.pictures
    world.train, world.loss, world.sampling = {**world.train, **options.train}, {**world.loss, **options.loss}, replace(world.sampling, **options.sampling)
    return world


def plan_of(options: argparse.Namespace) -> Plan:
    """What to do: a quick run takes the first subject unless others are named."""
    plan = Plan(study=study_of(options), world=world_of(options), subjects=options.subjects)
    return replace(plan, subjects=(plan.cases()[0].name,)) if options.quick and not options.subjects else plan


def start_helpers(plan: Plan, jobs: int, log: Path) -> list[subprocess.Popen[bytes]]:
    """Processes that each do the part of a study with some of its subjects; the first share is left to this one."""
    names = [case.name for case in plan.cases()]
    shares = [names[number::jobs] for number in range(1, jobs)]
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "experiments.run", *sys.argv[1:], "--helper", "--jobs", "1", "--subjects"]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    with log.open("wb") as file:
        return [subprocess.Popen([*command, ",".join(share)], stdout=file, stderr=file, env={**os.environ, **threads}) for share in shares]


def carry_out_with_helpers(plan: Plan, cells: Path, jobs: int) -> None:
    """Carry a study out in as many processes, at most one for each subject; what a helper failed to do is still to be done afterwards."""
    import torch

    from experiments.laboratory import carry_out

    jobs, log = min(jobs, len(plan.cases())), cells.parent / f"{plan.study.name}-helpers.log"
    helpers = start_helpers(plan, jobs, log)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // jobs))
    try:
        carry_out(replace(plan, subjects=tuple(case.name for case in plan.cases()[::jobs])), cells)
        if any(helper.poll() is None for helper in helpers):
            print("Other processes are still at the other subjects; their progress is in", log, flush=True)
        if any([helper.wait() for helper in helpers]):
            print("A helper stopped early: what it left is done now. Its log is", log, flush=True)
    finally:
        for helper in helpers:
            helper.terminate()
        torch.set_num_threads(threads)


def report_folder(options: argparse.Namespace) -> Path:
    """Where the report belongs: those of quick runs and of every model and subject of one's own beside those of the demo model."""
    own = [slug(options.checkpoint.stem), *(slug(folder.name) for folder in options.images)] if options.checkpoint else []
    return options.out / "-".join([options.name, *own, *(["quick"] if options.quick else [])])


def publish(report: Path, folder: Path, title: str) -> Path:
    """Copy a report with its figures to ``folder``, in an earlier one's place, and list it in ``results.md`` beside it."""
    with replaced(folder / report.parent.name) as new:
        shutil.copytree(report.parent, new, dirs_exist_ok=True)
    index = folder.parent / "results.md"
    text = index.read_text(encoding="utf-8") if index.is_file() else "# Results\n\nWritten by `python dev.py experiment NAME --publish`.\n\n"
    line = f"- [{title}](results/{report.parent.name}/report.md)\n"
    index.write_text(text if line in text else text + line, encoding="utf-8")
    return index


def main() -> None:
    """Carry the study out and report.

    Raises:
        SystemExit: an input cannot be used as it is given.
    """
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that helpers are stopped, too
    from bench.choice import ROOT, use_host

    use_host(options)
    from experiments.training import part

    try:
        _carry_out_and_report(options, ROOT)
    except part("palp_train.errors").PalpError as error:
        raise SystemExit(str(error)) from error


def _carry_out_and_report(options: argparse.Namespace, root: Path) -> None:
    from experiments.laboratory import carry_out
    from experiments.report import write_report
    from experiments.sampling import check_names

    plan, cells = plan_of(options), options.out / "cells"
    check_names(plan.world.sampling)
    if options.helper:
        carry_out(plan, cells)
        return
    if options.jobs > 1 and not options.report_only:
        carry_out_with_helpers(plan, cells, options.jobs)
    if not options.report_only:
        carry_out(plan, cells)
    report = write_report(plan, cells, report_folder(options))
    print(f"The report: {report}")
    if options.publish:
        print(f"Listed in {publish(report, root / 'docs' / 'results', plan.study.title)}")


if __name__ == "__main__":
    main()
