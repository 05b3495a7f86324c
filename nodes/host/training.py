"""One training run on the host's objects, from pictures to a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...palp_train.config import LossConfig, TrainConfig
from ...palp_train.embedding import WordEmbedding, trainable_word
from ...palp_train.errors import InputError
from ...palp_train.lora import injected_lora
from ...palp_train.prompts import PromptSet
from ...palp_train.trainer import Picture, StepReport, Task, train
from .denoiser import HostDenoiser, attention_projections, parametrization_of
from .lora import named_tensors
from .pictures import SubjectPictures, encode_pictures
from .progress import Meter, Progress
from .session import Session, refuse_untrainable, training_session
from .text_encoder import HostTextEncoder, class_tokens


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the user wired into the node, checked."""

    model: Any
    clip: Any
    vae: Any
    subjects: Sequence[SubjectPictures]
    prompts: PromptSet
    train: TrainConfig
    loss: LossConfig


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run leaves."""

    lora: dict[str, Tensor]
    words: list[WordEmbedding]
    steps: list[StepReport]
    seconds: float
    peak_memory: int
    """Bytes."""
    device: str


def run(job: Job) -> Outcome:
    """Train, with progress on the node. The user's models are given back as they were, whatever happens.

    Raises:
        InputError: an input cannot be used; nothing has been trained.
        UnstableTrainingError: the loss stopped being finite.
    """
    refuse_untrainable(job.model.model)
    parametrization_of(job.model.get_model_object("model_sampling"))
    latents = [encode_pictures(job.vae, job.model, taught.images, job.train.resolution) for taught in job.subjects]
    with training_session(job.model, job.clip) as session:
        _refuse_foreign_clip(session)
        generator = torch.Generator().manual_seed(job.train.seed)
        network = session.model.model.diffusion_model
        with injected_lora(network, attention_projections(network), job.train.rank, generator) as lora:
            words = _new_words(session, job) if job.train.word_vectors else []
            task = Task(
                denoiser=HostDenoiser(session.model, lora),
                text_encoder=HostTextEncoder(session.clip, words),
                pictures=_pictures(job, latents, session.device),
                prompts=job.prompts,
            )
            meter, progress, steps = Meter(session.device), Progress(job.train.steps), list[StepReport]()
            trainable_words = [vectors for word in words for vectors in word.parameters()]
            for report in train(task, lora.parameters(), trainable_words, job.train, job.loss, generator):
                steps.append(report)
                meter.read()
                progress.show(report.step)
            return Outcome(
                lora=named_tensors(session.model.model, lora),
                words=[_loaded(word) for word in words],
                steps=steps,
                seconds=meter.seconds,
                peak_memory=meter.peak_memory,
                device=str(session.device),
            )


def _new_words(session: Session, job: Job) -> list[WordEmbedding]:
    with torch.no_grad():
        subjects = [taught.subject for taught in job.subjects]
        return [trainable_word(subject, class_tokens(session.clip, subject.class_word), job.train.word_vectors) for subject in subjects]


def _pictures(job: Job, latents: Sequence[Sequence[Tensor]], device: torch.device) -> list[Picture]:
    return [
        Picture(latent=latent.to(device), prompt=taught.subject.personalization_prompt)
        for taught, encoded in zip(job.subjects, latents, strict=True)
        for latent in encoded
    ]


def _refuse_foreign_clip(session: Session) -> None:
    """A CLIP of another family would only fail deep inside the network, in words that name no input."""
    width = session.model.model.model_config.unet_config.get("context_dim")
    with torch.no_grad():
        found = HostTextEncoder(session.clip, [])("")["cross_attn"].shape[-1]
    if width is not None and found != width:
        raise InputError("clip", f"it encodes text {found} wide, but the model reads {width}. Use the CLIP that belongs to this model.")


def _loaded(word: WordEmbedding) -> WordEmbedding:
    """The word as plain tensors on the CPU."""
    vectors = {encoder: v.detach().cpu().clone() for encoder, v in word.vectors.items()}
    return WordEmbedding(placeholder=word.placeholder, class_word=word.class_word, vectors=vectors)
