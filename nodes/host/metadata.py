"""The strings in a LoRA's header: for model browsers, for LoRA managers, and for us."""

import dataclasses
import datetime
import json
import math

import comfyui_version
import torch

from ...palp_train import __version__
from ...palp_train.checkpoint import ARCHITECTURE_KEY, CLASS_WORDS_KEY, FORMAT, FORMAT_KEY, TARGET_PROMPT_KEY
from .exports import network_metadata
from .families import family_of
from .training import Job, Outcome

MAX_POINTS = 1000


def describe(job: Job, outcome: Outcome, title: str) -> dict[str, str]:
    """``modelspec.*``, ``ss_*`` and ``palp.*`` of a finished run. No paths, nothing of the user's machine but versions."""
    return {**_modelspec(job, title), **_kohya(job, outcome, title), **_palp(job, outcome)}


def _modelspec(job: Job, title: str) -> dict[str, str]:
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        ARCHITECTURE_KEY: f"{family_of(job.model.model).architecture}/lora",
        "modelspec.trigger_phrase": ", ".join(taught.subject.placeholder for taught in job.subjects),
        "modelspec.description": f'PALP LoRA for the prompt "{job.prompts.target}"',
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{job.train.resolution}x{job.train.resolution}",
    }


def _kohya(job: Job, outcome: Outcome, title: str) -> dict[str, str]:
    return {
        "ss_output_name": title,
        "ss_base_model_version": family_of(job.model.model).base_model,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(job.train.rank),
        "ss_network_alpha": str(float(job.train.rank)),
        "ss_learning_rate": str(job.train.learning_rate),
        "ss_text_encoder_lr": str(job.train.word_learning_rate),
        "ss_optimizer": "torch.optim.adam.Adam",
        "ss_steps": str(len(outcome.steps)),
        "ss_max_train_steps": str(job.train.steps),
        "ss_total_batch_size": str(job.train.batch_size * job.train.gradient_accumulation),
        "ss_gradient_accumulation_steps": str(job.train.gradient_accumulation),
        "ss_gradient_checkpointing": str(outcome.plan.checkpointing),
        "ss_num_train_images": str(sum(len(taught.images) for taught in job.subjects)),
        "ss_seed": str(job.train.seed),
        "ss_training_comment": "PALP, arXiv:2401.06105",
    }


def _palp(job: Job, outcome: Outcome) -> dict[str, str]:
    subjects = [taught.subject for taught in job.subjects]
    return {
        FORMAT_KEY: FORMAT,
        TARGET_PROMPT_KEY: job.prompts.target,
        **network_metadata(job.model.model),
        "palp.clean_prompt": job.prompts.clean,
        "palp.negative_prompt": job.prompts.negative,
        "palp.personalization_prompts": json.dumps([subject.personalization_prompt for subject in subjects]),
        "palp.placeholders": json.dumps([subject.placeholder for subject in subjects]),
        CLASS_WORDS_KEY: json.dumps({subject.placeholder: subject.class_word for subject in subjects}),
        "palp.loss": json.dumps(dataclasses.asdict(job.loss)),
        "palp.train": json.dumps(dataclasses.asdict(job.train)),
        "palp.steps": str(len(outcome.steps)),
        "palp.seed": str(job.train.seed),
        "palp.losses": _curve([step.personalization for step in outcome.steps]),
        "palp.alignments": _curve([step.alignment for step in outcome.steps]),
        "palp.seconds": f"{outcome.seconds:.2f}",
        "palp.peak_memory_bytes": str(outcome.peak_memory),
        "palp.device": outcome.device,
        "palp.versions": json.dumps({"palp": __version__, "comfyui": comfyui_version.__version__, "torch": torch.__version__}),
    }


def _curve(values: list[float]) -> str:
    """At most ``MAX_POINTS`` numbers, means of equal stretches: browsers of LoRAs read headers of up to 1 MB."""
    stretch = math.ceil(len(values) / MAX_POINTS)
    parts = [values[start : start + stretch] for start in range(0, len(values), stretch)]
    return json.dumps([round(sum(part) / len(part), 6) for part in parts])
