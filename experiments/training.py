"""A cell's training by the pack's own session, kept after each step that is looked at."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.contenders import PACK
from dev_tools.files import write_whole
from experiments.store import CellFiles, fingerprint, read_json, slug, write_json
from experiments.study import Cell
from experiments.world import World

TRAINING = 1
"""Raise it when the same settings train something else than before."""


def part(name: str) -> Any:
    """A module of the pack, which is loaded as the host loads it."""
    return import_module(f"{PACK}.{name}")


def files_of(cell: Cell, world: World, folder: Path) -> CellFiles:
    """Where a cell's files are: a folder named after everything that its training depends on."""
    if not cell.condition.trained:
        return _folder_of(cell, [world.identity, cell.seed, *([world.ruler] if cell.condition.pictures == "drawn" else [])], folder)
    facts = [
        TRAINING,
        versions(),
        world.identity,
        asdict(loss_config(cell, world)),
        _without_steps(cell, world),
        [(t.personalization_prompt, t.class_word, *t.fingerprints) for t in cell.case.taught],
    ]
    if cell.condition.sees_prompt:
        facts.append([cell.asks[0].target, cell.asks[0].clean])
    return _folder_of(cell, facts, folder)


def versions() -> dict[str, str]:
    """What trains and samples, other than this repository."""
    import comfyui_version
    import torch

    return {"ComfyUI": comfyui_version.__version__, "PyTorch": torch.__version__}


def _folder_of(cell: Cell, facts: object, folder: Path) -> CellFiles:
    return CellFiles(folder=folder / f"{slug(cell.title)}-{fingerprint(facts)}")


def loss_config(cell: Cell, world: World) -> Any:
    """The cell's LossConfig."""
    suited = part("palp_train.config").LossConfig(**{**(world.loss if cell.condition.sees_prompt else {}), **cell.condition.loss})
    return replace(suited, **{name: factor * getattr(suited, name) for name, factor in cell.condition.loss_factors.items()})


def train_config(cell: Cell, world: World) -> Any:
    """The cell's TrainConfig."""
    settings = {"steps": max(1, *cell.looks), "seed": cell.seed, "resolution": world.sampling.resolution}
    return part("palp_train.config").TrainConfig(**{**settings, **world.train})


def _without_steps(cell: Cell, world: World) -> dict[str, object]:
    """What a training depends on: how long it goes on changes nothing before that."""
    return {name: value for name, value in asdict(train_config(cell, world)).items() if name != "steps"}


def job_of(cell: Cell, world: World) -> Any:
    """What the training node makes of its inputs."""
    prompts, pictures, training = part("palp_train.prompts"), part("nodes.host.pictures"), part("nodes.host.training")
    words = [prompts.Subject(placeholder=t.placeholder, class_word=t.class_word, personalization_prompt=t.personalization_prompt) for t in cell.case.taught]
    taught = [pictures.SubjectPictures(subject=word, images=t.images) for word, t in zip(words, cell.case.taught, strict=True)]
    models = world.models
    return training.Job(
        model=models.model,
        clip=models.clip,
        vae=models.vae,
        subjects=taught,
        prompts=prompts.prompt_set(words, cell.asks[0].target, cell.asks[0].clean),
        train=train_config(cell, world),
        loss=loss_config(cell, world),
    )


def steps_missing(cell: Cell, files: CellFiles, to_sample: Collection[int] = ()) -> int:
    """How many steps have to be made: training begins anew if a look is missing that comes before it was found unstable, or a LoRA ``to_sample`` from."""
    there = [step for step in looks_of(cell, files) if files.cost(step).is_file() and (step not in to_sample or files.checkpoint(step).is_file())]
    return max(set(looks_of(cell, files)) - set(there), default=0) if cell.condition.trained else 0


def looks_of(cell: Cell, files: CellFiles) -> list[int]:
    """After which steps a cell can be looked at: all that are wanted, or those before its training was found unstable."""
    end = read_json(files.unstable)["step"] if files.unstable.is_file() else math.inf
    return [step for step in cell.looks if step < end]


def train(cell: Cell, world: World, files: CellFiles, last: int) -> Iterator[int]:
    """Train for ``last`` steps and keep what was learned at each look; yields the number of each step made. An unstable training ends early, which is noted."""
    job, seconds, host = job_of(cell, world), dict[int, float](), part("nodes.host.training")
    with host.memory_advice(job), host.prepared(job) as training, part("nodes.host.meter").Meter(training.session.device) as meter:
        try:
            for report in training.steps():
                seconds[report.step] = report.seconds
                if report.step in cell.looks:
                    _keep(training, job, files, report.step)
                yield report.step
                if report.step == last:
                    break
        except part("palp_train.errors").UnstableTrainingError as error:
            write_json(files.unstable, {"step": len(seconds) + 1, "why": str(error)})
    for step in [step for step in cell.looks if step in seconds]:
        taken = sum(each for number, each in seconds.items() if number <= step)
        write_json(files.cost(step), {"seconds": taken, "peak memory": meter.peak_memory, "device": str(training.session.device)})


def _keep(training: Any, job: Any, files: CellFiles, step: int) -> None:
    checkpoint = part("palp_train.checkpoint")
    words = {taught.subject.placeholder: taught.subject.class_word for taught in job.subjects}
    metadata = {checkpoint.FORMAT_KEY: checkpoint.FORMAT, checkpoint.TARGET_PROMPT_KEY: job.prompts.target, checkpoint.CLASS_WORDS_KEY: json.dumps(words)}
    learned = checkpoint.PalpLora(lora=training.learned_lora(), words=training.learned_words(), metadata=metadata, file="")
    write_whole(files.checkpoint(step), lambda partial: _save(partial, learned))


def _save(path: Path, learned: Any) -> None:
    import safetensors.torch

    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in learned.tensors().items()}, path, metadata=dict(learned.metadata))
