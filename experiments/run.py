"""A study from the command line: python dev.py experiment NAME."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from demo.settings import Sampling
from experiments.studies import STUDIES
from experiments.study import Condition, Plan, Study, quick
from experiments.world import World

OWN = ("checkpoint", "images", "class_word", "prompts")
"""What belongs together for a model of the user's."""


def parse() -> argparse.Namespace:
    """See ``python dev.py experiment -- --help``."""
    listed = "\n".join(f"  {study.name:<11} {study.question}" for study in STUDIES.values())
    parser = argparse.ArgumentParser(prog="dev.py experiment", description=f"{__doc__}\n\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--comfyui", "--base", "--out"):
        parser.add_argument(name, type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--seeds", type=int, metavar="N", help="trainings of each kind, each with noise of its own")
    parser.add_argument("--subjects", type=_names, default=(), metavar="A,B", help="only these")
    parser.add_argument("--conditions", type=_names, default=(), metavar="A,B", help="only these ways of training, for example base,none,palp")
    parser.add_argument("--steps", type=_numbers, metavar="N,M", help="look after these numbers of steps; the last is where training ends")
    parser.add_argument("--samples", type=int, metavar="N", help="pictures of each prompt")
    parser.add_argument("--pictures", type=int, metavar="N", help="of each of the demo model's subjects to learn from, of five; usually 1")
    parser.add_argument("--prompt-count", type=int, metavar="N", help="prompts of each subject; 0: all")
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours: shows that all works and little else")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="share the subjects out among N processes, for processors; on a GPU, leave it at 1")
    parser.add_argument("--helper", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--report-only", action="store_true", help="train and sample nothing: write the report from what is there")
    parser.add_argument("--publish", action="store_true", help="also put the report and its figures into docs/results")
    parser.add_argument("--train", type=json.loads, default={}, metavar="JSON", help="other training settings, for example '{\"learning_rate\": 1e-4}'")
    parser.add_argument("--loss", type=json.loads, default={}, metavar="JSON", help="other settings of the alignment, for example '{\"alignment_weight\": 2}'")
    parser.add_argument("--sampling", type=json.loads, default={}, metavar="JSON", help='how pictures are made, for example \'{"steps": 30, "guidance": 7.5}\'')
    _add_own(parser.add_argument_group("a model of your own instead of the demo model; the first four belong together"))
    return _checked(parser, parser.parse_args())


def _add_own(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help="any checkpoint that ComfyUI loads with its text encoder and VAE")
    group.add_argument("--images", type=Path, metavar="FOLDER", help="pictures of your subject")
    group.add_argument("--class-word", metavar="WORD", help="what it is, for example cat")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="one a line, with [V]; its elements behind bars: a sketch of [V] in Paris | sketch | Paris")
    group.add_argument("--clip-vision", type=Path, metavar="FILE", help="measures the subject and diversity; of the same CLIP as --clip-text")
    group.add_argument("--clip-text", type=Path, metavar="FILE", help="measures the prompt; with its text projection")
    group.add_argument("--resolution", type=int, default=512, metavar="PIXELS")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(number) for number in text.split(",")}))


def _checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    given = [name for name in OWN if getattr(options, name)]
    if given and len(given) < len(OWN):
        parser.error("these belong together: " + " ".join(f"--{name.replace('_', '-')}" for name in OWN))
    if options.publish and options.quick:
        parser.error("--publish: a quick run measures too little to be published")
    if options.pictures is not None and not 1 <= options.pictures <= 5:
        parser.error(f"--pictures: {options.pictures} is out of range: each of the demo model's subjects has 5")
    if options.jobs < 1:
        parser.error(f"--jobs: {options.jobs} is out of range: at least 1")
    if given and options.pictures:
        parser.error("--pictures: is for the demo model's subjects; of your own, all in --images are used")
    for name in ("checkpoint", "images", "prompts", "clip_vision", "clip_text"):
        if (path := getattr(options, name)) and not path.exists():
            parser.error(f"--{name.replace('_', '-')}: there is no {path}")
    return options


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
    study = quick(STUDIES[options.name]) if options.quick else STUDIES[options.name]
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
        from experiments.checkpoint_world import CheckpointWorld, Given

        given = {name: getattr(options, name) for name in (*OWN, "clip_vision", "clip_text", "train", "loss")}
        return CheckpointWorld(Given(**given, sampling=Sampling(**{"resolution": options.resolution, "guidance": 7.5, **options.sampling})))
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
    shares = [names[number::jobs] for number in range(1, min(jobs, len(names)))]
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "experiments.run", *sys.argv[1:], "--helper", "--jobs", "1", "--subjects"]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    with log.open("wb") as file:
        return [subprocess.Popen([*command, ",".join(share)], stdout=file, stderr=file, env={**os.environ, **threads}) for share in shares]


def carry_out_with_helpers(plan: Plan, cells: Path, jobs: int) -> None:
    """Carry a study out in as many processes; what a helper failed to do is still to be done afterwards."""
    import torch

    from experiments.laboratory import carry_out

    helpers = start_helpers(plan, jobs, cells.parent / f"{plan.study.name}-helpers.log")
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // jobs))
    try:
        carry_out(replace(plan, subjects=tuple(case.name for case in plan.cases()[::jobs])), cells)
        for helper in helpers:
            helper.wait()
    finally:
        for helper in helpers:
            helper.terminate()
        torch.set_num_threads(threads)


def publish(report: Path, folder: Path, title: str) -> Path:
    """Copy a report with its figures to ``folder`` and list it in ``results.md`` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(report.parent, folder / report.parent.name, dirs_exist_ok=True)
    index = folder.parent / "results.md"
    text = index.read_text(encoding="utf-8") if index.is_file() else "# Results\n\nWritten by `python dev.py experiment NAME --publish`.\n\n"
    line = f"- [{title}](results/{report.parent.name}/report.md)\n"
    index.write_text(text if line in text else text + line, encoding="utf-8")
    return index


def main() -> None:
    """Carry the study out and report."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that helpers are stopped, too
    from bench.choice import ROOT, use_host

    use_host(options)
    from experiments.laboratory import carry_out
    from experiments.report import write_report

    plan, cells = plan_of(options), options.out / "cells"
    if options.helper:
        carry_out(plan, cells)
        return
    if options.jobs > 1 and not options.report_only:
        carry_out_with_helpers(plan, cells, options.jobs)
    if not options.report_only:
        carry_out(plan, cells)
    report = write_report(plan, cells, options.out / (f"{options.name}-quick" if options.quick else options.name))
    print(f"The report: {report}")
    if options.publish:
        print(f"Listed in {publish(report, ROOT / 'docs' / 'results', plan.study.title)}")


if __name__ == "__main__":
    main()
