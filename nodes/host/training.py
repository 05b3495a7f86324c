"""One training run on the host's objects, from pictures to a file."""

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...palp_train.activations import activations_kept, blocks_recomputed, listed_modules
from ...palp_train.alignment import NFSD_NEGATIVE_PROMPT
from ...palp_train.batch import Picture
from ...palp_train.config import LossConfig, TrainConfig
from ...palp_train.denoiser import TextEncoder
from ...palp_train.embedding import WordEmbedding, trainable_word
from ...palp_train.errors import InputError, NoGradientError
from ...palp_train.lora import Lora, injected_lora
from ...palp_train.plan import Plan
from ...palp_train.prompts import PromptSet
from ...palp_train.trainer import Learner, StepReport, Task, Teacher, train
from .checks import ran_out_of_memory, refuse_foreign_clip, refuse_foreign_teacher, refuse_small_pictures, require
from .denoiser import HostDenoiser, parametrization_of
from .families import adapted_layers, family_of, trainable_blocks, unused_layers
from .lora import named_tensors
from .memory import StepMemory, free_memory, planned
from .meter import Meter
from .pictures import SubjectPictures, encode_pictures, mask_weight
from .progress import Progress
from .session import Session, refuse_untrainable, training_session
from .text_encoder import FixedTextEncoder, HostTextEncoder, class_tokens, class_word_notes, learned_encoders
from .weights import HostWeights


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
    teacher_model: Any = None
    teacher_clip: Any = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run leaves."""

    lora: dict[str, Tensor]
    words: list[WordEmbedding]
    steps: list[StepReport]
    seconds: float
    peak_memory: int
    """Bytes."""
    expected_memory: int | None
    """What was foreseen of it; None where that could not be traced."""
    device: str
    dtype: str
    """What the network computed in."""
    notes: list[str]
    """What was done otherwise than asked, for the report."""

    @property
    def plan(self) -> Plan:
        """How the last steps were made: earlier ones may have run out of memory by a faster plan."""
        return self.steps[-1].plan


def run(job: Job) -> Outcome:
    """Train, with progress on the node. The user's models are given back as they were, whatever happens.

    Raises:
        InputError: an input cannot be used, or memory ran out; nothing is kept.
        UnstableTrainingError: the loss stopped being finite.
    """
    with memory_advice(job), prepared(job) as training:
        with Meter(training.session.device) as meter:
            expected = training.needed and training.needed + meter.in_use()
            reports = list(_shown(training.steps(), job.train.steps))
        return Outcome(
            lora=training.learned_lora(),
            words=training.learned_words(),
            steps=reports,
            seconds=meter.seconds,
            peak_memory=meter.peak_memory,
            expected_memory=expected,
            device=str(training.session.device),
            dtype=str(training.task.denoiser.dtype).removeprefix("torch."),
            notes=_notes(job, training),
        )


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run that is ready to make its steps; it may be looked at between them."""

    job: Job
    session: Session
    task: Task
    lora: Lora
    words: Sequence[WordEmbedding]
    generator: torch.Generator
    plans: Sequence[Plan]
    needed: int | None
    """Bytes that a step is expected to take beside what is in use; None where that could not be traced."""

    def steps(self) -> Iterator[StepReport]:
        """The steps, each made when it is asked for."""
        vectors = [vector for word in self.words for vector in word.parameters()]
        reports = train(
            self.task,
            self.lora.parameters(),
            vectors,
            self.job.train,
            self.job.loss,
            self.generator,
            self.plans,
            ran_out_of_memory,
            self.learners(),
        )
        try:
            yield from reports
        except NoGradientError as error:
            raise InputError("model", f"{error} {_what_cuts_gradients(self.session.model)}") from error

    def learners(self) -> list[Learner]:
        """What a first step has to give a gradient: every layer's up matrix (down's is 0 then) and every word's vectors."""
        unused = unused_layers(self.session.model.model)
        layers = {path: layer for path, layer in self.lora.layers.items() if path not in unused}
        found = [Learner(name=f"layer {path}", parameter=layer.up) for path, layer in layers.items()]
        for word in self.words:
            for encoder, vectors in word.vectors.items():
                if isinstance(vectors, nn.Parameter):
                    name = f"the word {word.placeholder} in {encoder}"
                    found.append(Learner(name=name, parameter=vectors, placeholder=word.placeholder))
        return found

    def learned_lora(self) -> dict[str, Tensor]:
        """The LoRA as it is now, by the names that its file has."""
        return named_tensors(self.session.model.model, self.lora)

    def learned_words(self) -> list[WordEmbedding]:
        """The words as they are now, as plain tensors on the CPU."""
        return [_loaded(word) for word in self.words]


@contextmanager
def prepared(job: Job) -> Generator[Training, None, None]:
    """Within: everything is checked, loaded and encoded, and the LoRA is in the network; after: the user's models are as they were.

    Raises:
        InputError: an input cannot be used.
    """
    require("model", job.model, "Load a checkpoint with a diffusion model.")
    require("clip", job.clip, "Load the text encoders with Load CLIP or Dual CLIP Loader.")
    require("vae", job.vae, "Load the model's VAE with Load VAE.")
    refuse_untrainable(job.model.model)
    parametrization_of(job.model.get_model_object("model_sampling"))
    refuse_foreign_teacher(job.model, job.teacher_model)
    pictures = _pictures(job)
    refuse_small_pictures(job.model.model, pictures, job.train.resolution)
    networks = [patcher for patcher in (job.model, job.teacher_model) if patcher is not None]
    learned = learned_encoders(job.clip, *networks) if job.train.word_vectors else frozenset[str]()
    fixed_encoder = None if learned else FixedTextEncoder(job.clip, {picture.prompt for picture in pictures} | _constant_prompts(job))
    teacher_encoder = FixedTextEncoder(job.teacher_clip or job.clip, _constant_prompts(job)) if job.teacher_model else None
    with training_session(job.model, job.clip if learned else None, job.teacher_model, job.train.precision, learned) as session:
        generator = torch.Generator().manual_seed(job.train.seed)
        network = session.model.model.diffusion_model
        with injected_lora(network, adapted_layers(network, job.train.layers), job.train.rank, generator, HostWeights()) as lora:
            words = _new_words(session, job, learned) if learned else []
            text_encoder = fixed_encoder or HostTextEncoder(session.clip, words)
            task = _task(job, session, lora, [picture.to(session.device) for picture in pictures], text_encoder, teacher_encoder)
            memory, free = StepMemory(task, session.networks, job.train, job.loss), free_memory(session.device)
            plans, needed = planned(memory, job.train, job.loss, free, session.device.type)
            yield Training(job=job, session=session, task=task, lora=lora, words=words, generator=generator, plans=plans, needed=needed)


def _task(job: Job, session: Session, lora: Lora, pictures: Sequence[Picture], text_encoder: TextEncoder, teacher_encoder: TextEncoder | None) -> Task:
    """The models as the method sees them; refuses text encoders that the models cannot read."""
    refuse_foreign_clip(HostDenoiser(session.model, lora), text_encoder, pictures[0].prompt, pictures[0])
    if teacher_encoder:
        refuse_foreign_clip(HostDenoiser(session.teacher), teacher_encoder, job.prompts.clean, pictures[0], "teacher_clip")
    teacher = Teacher(denoiser=HostDenoiser(session.teacher), text_encoder=teacher_encoder) if teacher_encoder else None
    denoiser, checkpointed = trainable_denoisers(session.model, lora)
    return Task(denoiser=denoiser, checkpointed=checkpointed, text_encoder=text_encoder, pictures=pictures, prompts=job.prompts, teacher=teacher)


def trainable_denoisers(patcher: Any, lora: Lora) -> tuple[HostDenoiser, HostDenoiser]:
    """The model as a denoiser through which the right gradient flows, and the same whose blocks run twice to save memory."""
    network, in_place = patcher.model.diffusion_model, family_of(patcher.model).writes_in_place
    blocks = list(trainable_blocks(network).values())
    inside = {id(module) for block in blocks for module in block.modules()}
    listed = listed_modules(network)
    elsewhere = [module for module in listed if id(module) not in inside]

    def kept(modules: Sequence[nn.Module]) -> AbstractContextManager[None]:
        return activations_kept(modules) if in_place else nullcontext()

    @contextmanager
    def recomputed() -> Generator[None, None, None]:
        # Blocks that run again work on copies of their inputs.
        with kept(elsewhere), blocks_recomputed(blocks, write_in_place=in_place):
            yield

    return HostDenoiser(patcher, lora, lambda: kept(listed)), HostDenoiser(patcher, lora, recomputed)


@contextmanager
def memory_advice(job: Job) -> Generator[None, None, None]:
    """Within: where memory runs out, the error names the input to change first."""
    try:
        yield
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        settings = job.train
        if settings.gradient_checkpointing == "off":
            raise InputError("gradient_checkpointing", "memory ran out. Set it to auto: blocks then keep only their inputs.") from error
        if settings.batch_size > 1:
            raise InputError("batch_size", f"memory ran out at {settings.batch_size} at once. Lower it, and raise gradient_accumulation as much.") from error
        raise InputError("resolution", f"memory ran out at {settings.resolution}, with gradient checkpointing. Lower it, or use a smaller model.") from error


def _what_cuts_gradients(patcher: Any) -> str:
    """What most likely stands in a gradient's way, and what to do."""
    options = patcher.model_options.get("transformer_options", {})
    patches = [*options.get("patches_replace", {}), *options.get("patches", {})]
    nodes = f"a node patches the model ({', '.join(map(str, patches))})" if patches else "a node patches the model's attention"
    return f"Most likely {nodes}, a block of it is compiled, or ComfyUI runs with --fast. Leave that out before PALP Train LoRA."


def _shown(steps: Iterable[StepReport], total: int) -> Iterator[StepReport]:
    """The steps, each shown on the node as it is done."""
    progress = Progress(total)
    for report in steps:
        progress.show(report.step)
        yield report


def _constant_prompts(job: Job) -> set[str]:
    return {job.prompts.clean, job.prompts.negative, *([NFSD_NEGATIVE_PROMPT] if job.loss.method == "nfsd" else [])}


def _new_words(session: Session, job: Job, learned: Collection[str]) -> list[WordEmbedding]:
    with torch.no_grad():
        subjects = [taught.subject for taught in job.subjects]
        return [trainable_word(subject, class_tokens(session.clip, subject.class_word, learned), job.train.word_vectors) for subject in subjects]


def _pictures(job: Job) -> list[Picture]:
    """All subjects' pictures as latents, with the personalization prompt of each."""
    made: list[Picture] = []
    for taught in job.subjects:
        latents = encode_pictures(job.vae, job.model, taught.images, job.train.resolution)
        for number, latent in enumerate(latents):
            weight = mask_weight(job.vae, taught.masks[number], latent, job.train.resolution) if taught.masks else None
            made.append(Picture(latent=latent, prompt=taught.subject.personalization_prompt, weight=weight))
    return made


def _notes(job: Job, training: Training) -> list[str]:
    learned = {encoder for word in training.words for encoder in word.vectors}
    if job.train.word_vectors and not learned:
        encoder = type(job.clip.cond_stage_model).__name__
        words = " ".join(taught.subject.placeholder for taught in job.subjects)
        return [
            f"word_vectors: 0, because {encoder} cannot learn a new word (or not in this memory). {words} was trained as plain text: prompt with it as it is."
        ]
    return class_word_notes(job.clip, learned)


def _loaded(word: WordEmbedding) -> WordEmbedding:
    """The word as plain tensors on the CPU."""
    vectors = {encoder: v.detach().cpu().clone() for encoder, v in word.vectors.items()}
    return WordEmbedding(placeholder=word.placeholder, class_word=word.class_word, vectors=vectors)
