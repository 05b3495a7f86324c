"""The training loop, in the order of the paper's method section: draw, noise, denoise, re-noise, score, losses, step."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .alignment import NFSD_NEGATIVE_PROMPT, Conditionings, alignment_score
from .batch import Batch, Picture, draw_batch
from .config import LossConfig, TrainConfig
from .denoiser import (
    Conditioning,
    ConstantConditioning,
    Denoiser,
    Query,
    TextEncoder,
    add_noise,
    detached,
    per_sample,
    taken,
)
from .errors import NoGradientError, UnstableTrainingError, is_out_of_memory
from .losses import personalization_loss, prompt_alignment_loss, rescale_weight
from .optimizer import SMALLEST_LOSS_SCALE, FiniteAdam
from .plan import FASTEST, Plan, in_parts
from .prompts import PromptSet, has_placeholder
from .transfer import Fetched, as_list, release_cache


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Another model over the same latent space, noised the same way; it only runs forward, so it may be larger."""

    denoiser: Denoiser
    text_encoder: TextEncoder


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to train on: the models, the pictures and the prompts."""

    denoiser: Denoiser
    text_encoder: TextEncoder
    pictures: Sequence[Picture]
    prompts: PromptSet
    teacher: Teacher | None = None
    """Whose predictions align instead of the pre-trained model's own."""
    checkpointed: Denoiser | None = None
    """The denoiser once more, with gradient checkpointing: for the training pass of plans that ask for it."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """Something that is to learn."""

    name: str
    """For people."""
    parameter: nn.Parameter
    placeholder: str | None = None
    """Of the word that it belongs to, which learns from prompts that hold it; None: it learns from every prompt."""

    def is_due(self, prompts: Sequence[str]) -> bool:
        """Whether a step on these personalization prompts has to give it a gradient."""
        return self.placeholder is None or any(has_placeholder(prompt, self.placeholder) for prompt in prompts)

    def has_gradient(self) -> bool:
        """Whether it has one that is not zero; waits for the device."""
        return self.parameter.grad is not None and bool(self.parameter.grad.any())


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did. Its losses may still be on their way from the device: who asks for them waits."""

    step: int
    """From 1."""
    sigma: float
    """The batch's highest noise level."""
    seconds: float
    plan: Plan
    """How it went through the network."""
    numbers: Fetched = field(repr=False)
    """Personalization, alignment, gradient norm and loss scale."""

    @property
    def personalization(self) -> float:
        """The reconstruction loss, Eq. (1)."""
        return self.numbers.values()[0]

    @property
    def alignment(self) -> float:
        """Root mean square of the weighted alignment score; 0 on a step without alignment."""
        return self.numbers.values()[1]

    @property
    def gradient_norm(self) -> float:
        """Of the LoRA's and the words' gradients together."""
        return self.numbers.values()[2]


def train(
    task: Task,
    lora: Iterable[nn.Parameter],
    words: Iterable[nn.Parameter],
    config: TrainConfig,
    loss: LossConfig,
    generator: torch.Generator,
    plans: Sequence[Plan] = (FASTEST,),
    ran_out: Callable[[BaseException], bool] = is_out_of_memory,
    learners: Iterable[Learner] = (),
) -> Iterator[StepReport]:
    """Train the LoRA and the words in place, one step for each item taken.

    Where memory runs out, the step is made again by the next plan, with the same random numbers. The device is asked
    for nothing but a step's numbers, and for these only when the next step is on its way.

    Args:
        task: models, pictures, prompts.
        lora: the LoRA's parameters, float32.
        words: the new words' vectors, float32; may be empty.
        config: steps, learning rates, batch size.
        loss: the alignment branch.
        generator: on the CPU; every random number comes from it.
        plans: ways to make a step, each of which takes less memory than those before it; not empty.
        ran_out: whether an error means that memory ran out.
        learners: what has to get a gradient, in the first step that should give it one.

    Yields:
        A report after each step.

    Raises:
        UnstableTrainingError: the loss or its gradient was not finite in the step before, which moved nothing.
        NoGradientError: some of ``learners`` got none; that step moved nothing.
        RuntimeError: memory ran out by the last plan.
    """
    half = task.denoiser.dtype == torch.float16
    run = _Run(
        task=task,
        config=config,
        loss=loss,
        generator=generator,
        ran_out=ran_out,
        plans=list(plans),
        optimizer=FiniteAdam(lora, words, config, half=half),
        constant=constant_conditionings(task, loss),
        sigmas=as_list(task.denoiser.sigmas),
    )
    before: StepReport | None = None
    unproven = list(learners)
    for step in range(1, config.steps + 1):
        began = time.perf_counter()
        parts = run.attempted(step)
        unproven = _still_unproven(unproven, parts)
        norm = run.optimizer.gradient_norm()
        _check(before, half=half)
        run.optimizer.step()
        before = StepReport(
            step=step,
            sigma=max(part.batch.highest for part in parts),
            seconds=time.perf_counter() - began,
            plan=run.plans[0],
            numbers=Fetched(_numbers(parts, norm, run.optimizer.loss_scale())),
        )
        yield before
    _check(before, half=half)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What stays the same from step to step."""

    task: Task
    config: TrainConfig
    loss: LossConfig
    generator: torch.Generator
    ran_out: Callable[[BaseException], bool]
    plans: list[Plan]
    """Those that are left: by earlier ones memory ran out."""
    optimizer: FiniteAdam
    constant: Conditionings
    sigmas: Sequence[float]
    """The schedule."""

    def attempted(self, step: int) -> "list[StepLosses]":
        """The losses of a step's batches; the parameters have their gradient. By the first plan with enough memory."""
        drawn = self.generator.get_state()
        while True:
            self.optimizer.zero_grad()
            try:
                return self._differentiated(step)
            except Exception as error:
                if not self.ran_out(error) or len(self.plans) == 1:
                    raise
            # Only here is the error gone, and with it what the failed attempt had made.
            self.optimizer.zero_grad()
            release_cache(self.task.pictures[0].latent.device)
            self.generator.set_state(drawn)
            del self.plans[0]

    def _differentiated(self, step: int) -> "list[StepLosses]":
        align = (step - 1) % self.loss.every == 0
        parts: list[StepLosses] = []
        for _ in range(self.config.gradient_accumulation):
            batch = self._batch()
            losses = step_losses(self.task, batch, self.constant, self.loss, align=align, plan=self.plans[0])
            total = torch.add(losses.personalization, losses.alignment, alpha=self.loss.alignment_weight)
            self.optimizer.backward(total, share=1 / self.config.gradient_accumulation)
            parts.append(losses.detached())
        return parts

    def _batch(self) -> Batch:
        independent = self.loss.noise == "independent"
        size, pictures = self.config.batch_size, self.task.pictures
        return draw_batch(pictures, size, self.sigmas, self.generator, independent_noise=independent)


def _numbers(parts: "Sequence[StepLosses]", norm: Tensor, scale: Tensor) -> Tensor:
    """Mean losses, gradient norm and loss scale, shape (4,)."""
    personalization = sum((part.personalization for part in parts[1:]), parts[0].personalization)
    alignment = sum((part.alignment_size for part in parts[1:]), parts[0].alignment_size)
    if len(parts) > 1:
        personalization, alignment = personalization / len(parts), alignment / len(parts)
    return torch.stack([one.to(norm) for one in (personalization, alignment, norm, scale)])


def _check(report: StepReport | None, *, half: bool) -> None:
    """Return quietly if the step that the report is of could be applied; waits for its numbers.

    Raises:
        UnstableTrainingError: its losses were not finite; or its gradient was not, also where a float16 network's
            loss was scaled as little as can be (at other times it is scaled less, and the step left out).
    """
    if report is None:
        return
    personalization, alignment, norm, scale = report.numbers.values()
    overflows = not math.isfinite(norm) and not half
    if overflows or scale < SMALLEST_LOSS_SCALE or not math.isfinite(personalization + alignment):
        raise UnstableTrainingError(report.step, report.sigma)


def _still_unproven(learners: "Sequence[Learner]", parts: "Sequence[StepLosses]") -> "list[Learner]":
    """Those whose turn to get a gradient is still to come.

    Raises:
        NoGradientError: it has come for some, and they got none.
    """
    prompts = [prompt for part in parts for prompt in part.batch.prompts]
    due = [learner for learner in learners if learner.is_due(prompts)]
    dead = [learner.name for learner in due if not learner.has_gradient()]
    if dead:
        raise NoGradientError(dead)
    return [learner for learner in learners if learner not in due]


def constant_conditionings(task: Task, loss: LossConfig) -> Conditionings:
    """The prompts that hold no new word, encoded once for the whole run: by the teacher's text encoder what it reads."""
    read = task.teacher.text_encoder if task.teacher else task.text_encoder
    with torch.no_grad():
        empty = ConstantConditioning(read(task.prompts.negative))
        own = ConstantConditioning(task.text_encoder(task.prompts.negative)) if task.teacher else empty
        return Conditionings(
            personal=(),
            clean=ConstantConditioning(read(task.prompts.clean)),
            empty=empty,
            personal_empty=own,
            bad=ConstantConditioning(read(NFSD_NEGATIVE_PROMPT)) if loss.method == "nfsd" else None,
        )


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """What a batch gives; the losses are scalars with gradient."""

    personalization: Tensor
    alignment: Tensor
    alignment_size: Tensor
    """Root mean square of the weighted score, a scalar."""
    batch: Batch
    """What they are of."""

    def detached(self) -> "StepLosses":
        """The same numbers without the graph that they came from."""
        return replace(self, personalization=self.personalization.detach(), alignment=self.alignment.detach())


def step_losses(task: Task, batch: Batch, constant: Conditionings, config: LossConfig, *, align: bool, plan: Plan = FASTEST) -> StepLosses:
    """The losses of one batch: denoise, re-noise, score. Section 4 of the paper."""
    parametrization = task.denoiser.parametrization
    encoded = {prompt: task.text_encoder(prompt) for prompt in dict.fromkeys(batch.prompts)}
    cut = {prompt: detached(conditioning) for prompt, conditioning in encoded.items()}
    noised = add_noise(batch.latent, batch.noise, batch.sigma, parametrization)
    prompts = replace(constant, personal=[cut[prompt] for prompt in batch.prompts])
    rows = aligned_rows(batch, config) if align and config.method != "none" else []
    score: Tensor | None = None

    if rows and plan.estimate_first:
        with torch.no_grad():
            estimate = task.denoiser(noised, batch.sigma, _personalized(prompts.personal))
            score = _score(task, batch, estimate, rows, prompts, config, plan)
    denoiser = task.checkpointed if plan.checkpointing and task.checkpointed else task.denoiser
    denoised = denoiser(noised, batch.sigma, _personalized([encoded[prompt] for prompt in batch.prompts]))
    if rows and score is None:
        score = _score(task, batch, denoised.detach(), rows, prompts, config, plan)

    personalization = personalization_loss(denoised, batch.latent, batch.sigma, parametrization, batch.weight)
    if score is None:
        zero = torch.zeros_like(personalization)
        return StepLosses(personalization=personalization, alignment=zero, alignment_size=zero, batch=batch)
    weight = rescale_weight(batch.sigma, parametrization) if config.rescale else torch.ones_like(batch.sigma)
    return StepLosses(
        personalization=personalization,
        alignment=prompt_alignment_loss(denoised, score, weight),
        alignment_size=(per_sample(weight, score) * score).square().mean().sqrt(),
        batch=batch,
    )


def aligned_rows(batch: Batch, config: LossConfig) -> list[int]:
    """Rows of the batch whose noise level lies in the part of the schedule in which alignment acts."""
    inside = [config.start_percent <= position <= config.end_percent for position in batch.positions]
    return [row for row, is_inside in enumerate(inside) if is_inside]


def _personalized(conditionings: Sequence[Conditioning]) -> list[Query]:
    return [Query(conditioning=conditioning, personalized=True) for conditioning in conditionings]


def _score(
    task: Task,
    batch: Batch,
    estimate: Tensor,
    rows: Sequence[int],
    prompts: Conditionings,
    config: LossConfig,
    plan: Plan,
) -> Tensor:
    """The alignment score of an estimate of x0 that has no gradient.

    It is 0 but in ``rows``, the only ones that a network is asked for.
    """
    noise, sigma = taken(batch.alignment_noise, rows), taken(batch.sigma, rows)
    noised_again = add_noise(taken(estimate, rows), noise, sigma, task.denoiser.parametrization)
    asked = replace(prompts, personal=[prompts.personal[row] for row in rows])
    teacher = in_parts(task.teacher.denoiser, plan.rows) if task.teacher else None
    score = alignment_score(in_parts(task.denoiser, plan.rows), noised_again, noise, sigma, asked, config, teacher)
    if len(rows) == len(estimate):
        return score
    whole = torch.zeros_like(estimate)
    for place, row in enumerate(rows):
        whole[row].copy_(score[place])
    return whole
