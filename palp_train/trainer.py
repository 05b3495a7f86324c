"""The training loop, in the order of the paper's method section: draw, noise, denoise, re-noise, score, losses, backward, step."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch
from torch import Tensor, nn

from .alignment import NFSD_NEGATIVE_PROMPT, Conditionings, alignment_score, schedule_position
from .config import LossConfig, TrainConfig
from .denoiser import Conditioning, Denoiser, Query, TextEncoder, add_noise, detached, per_sample
from .errors import UnstableTrainingError, is_out_of_memory
from .losses import personalization_loss, prompt_alignment_loss, rescale_weight
from .plan import FASTEST, Plan, in_parts
from .prompts import PromptSet

SMALLEST_LOSS_SCALE = 1.0
"""Below it float16 gradients overflow however small the loss is made: they are not finite in themselves."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A training picture: its latent of shape (C, H, W) or (C, T, H, W), scaled as the network takes it, and its personalization prompt y_P."""

    latent: Tensor
    prompt: str
    weight: Tensor | None = None
    """How much each place of the latent counts, shape (1, H, W) or (1, 1, H, W), mean 1; None: all alike."""

    def to(self, device: torch.device) -> "Picture":
        """The same picture on that device."""
        return replace(self, latent=self.latent.to(device), weight=None if self.weight is None else self.weight.to(device))


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Another model over the same latent space, noised the same way: the alignment branch is forward only, so it may be larger."""

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
class Batch:
    """The random draws of one step. Latents and noises: shape (B, C, H, W) or (B, C, T, H, W); sigma: shape (B,); prompts: length B."""

    latent: Tensor
    noise: Tensor
    alignment_noise: Tensor
    """eps', with which the estimate is noised again: ``noise`` itself, or a draw of its own."""
    sigma: Tensor
    prompts: Sequence[str]
    weight: Tensor | None = None
    """How much each place counts, broadcasts to the latents; None: all alike."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did."""

    step: int
    """From 1."""
    personalization: float
    """The reconstruction loss, Eq. (1)."""
    alignment: float
    """Root mean square of the weighted alignment score; 0 on a step without alignment."""
    gradient_norm: float
    sigma: float
    """The batch's highest noise level."""
    seconds: float
    plan: Plan
    """How it went through the network."""


def train(
    task: Task,
    lora: Iterable[nn.Parameter],
    words: Iterable[nn.Parameter],
    config: TrainConfig,
    loss: LossConfig,
    generator: torch.Generator,
    plans: Sequence[Plan] = (FASTEST,),
    ran_out: Callable[[BaseException], bool] = is_out_of_memory,
) -> Iterator[StepReport]:
    """Train the LoRA and the words in place, one step for each item taken.

    Where memory runs out, the step is made again by the next plan, with the same random numbers.

    Args:
        task: models, pictures, prompts.
        lora: the LoRA's parameters, float32.
        words: the new words' vectors, float32; may be empty.
        config: steps, learning rates, batch size.
        loss: the alignment branch.
        generator: on the CPU; every random number comes from it.
        plans: ways to make a step, each of which takes less memory than those before it; not empty.
        ran_out: whether an error means that memory ran out.

    Yields:
        A report after each step.

    Raises:
        UnstableTrainingError: the loss or its gradient is not finite; nothing is stepped.
        RuntimeError: memory ran out by the last plan.
    """
    groups = [{"params": list(lora), "lr": config.learning_rate}, {"params": list(words), "lr": config.word_learning_rate}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])  # ours: Appendix C names no optimizer
    device = task.pictures[0].latent.device.type
    scaler = torch.amp.GradScaler(device, enabled=task.denoiser.dtype == torch.float16)
    constant = constant_conditionings(task, loss)
    left = list(plans)
    for step in range(1, config.steps + 1):
        began = time.perf_counter()
        align, drawn, parts = (step - 1) % loss.every == 0, generator.get_state(), None
        while parts is None:
            optimizer.zero_grad()
            generator.set_state(drawn)
            batches = (draw_batch(task, config.batch_size, loss, generator) for _ in range(config.gradient_accumulation))
            try:
                parts = [_differentiated(task, batch, constant, config, loss, scaler, align=align, plan=left[0]) for batch in batches]
            except RuntimeError as error:
                if not ran_out(error) or len(left) == 1:
                    raise
                del left[0]
        sigma = max(part.sigma for part in parts)
        norm = _gradient_norm(optimizer, scaler)
        if not (all(part.is_finite for part in parts) and (scaler.is_enabled() or norm.isfinite())):
            raise UnstableTrainingError(step, sigma)
        scaler.step(optimizer)
        scaler.update()
        if scaler.is_enabled() and scaler.get_scale() < SMALLEST_LOSS_SCALE:  # it halves at every overflow and skips the step
            raise UnstableTrainingError(step, sigma)
        yield StepReport(
            step=step,
            personalization=mean(part.personalization.item() for part in parts),
            alignment=mean(part.alignment_size.item() for part in parts),
            gradient_norm=norm.item(),
            sigma=sigma,
            seconds=time.perf_counter() - began,
            plan=left[0],
        )


def draw_batch(task: Task, size: int, loss: LossConfig, generator: torch.Generator) -> Batch:
    """Pictures of one shape, noise, and noise levels uniform over the model's own schedule; all drawn on the CPU."""
    first = task.pictures[_draw_index(len(task.pictures), generator)]
    alike = [picture for picture in task.pictures if picture.latent.shape == first.latent.shape]
    chosen = [first, *(alike[_draw_index(len(alike), generator)] for _ in range(size - 1))]
    latent = torch.stack([picture.latent for picture in chosen])
    sigmas = task.denoiser.sigmas
    levels = torch.randint(len(sigmas), (size,), generator=generator)
    noise = _draw_noise(latent, generator)
    return Batch(
        latent=latent,
        noise=noise,
        alignment_noise=noise if loss.noise == "same" else _draw_noise(latent, generator),
        sigma=sigmas[levels.to(sigmas.device)].to(latent),
        prompts=[picture.prompt for picture in chosen],
        weight=_stacked_weights(chosen),
    )


def constant_conditionings(task: Task, loss: LossConfig) -> Conditionings:
    """The prompts that hold no new word, encoded once for the whole run: by the teacher's text encoder what the teacher reads."""
    read = task.teacher.text_encoder if task.teacher else task.text_encoder
    with torch.no_grad():
        empty = read(task.prompts.negative)
        return Conditionings(
            personal=(),
            clean=read(task.prompts.clean),
            empty=empty,
            personal_empty=task.text_encoder(task.prompts.negative) if task.teacher else empty,
            bad=read(NFSD_NEGATIVE_PROMPT) if loss.method == "nfsd" else None,
        )


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """What a batch gives; the losses are scalars with gradient."""

    personalization: Tensor
    alignment: Tensor
    alignment_size: Tensor
    """Root mean square of the weighted score, a scalar."""
    sigma: float
    """The highest noise level."""

    def detached(self) -> "StepLosses":
        """The same numbers without the graph that they came from."""
        return replace(self, personalization=self.personalization.detach(), alignment=self.alignment.detach())

    @property
    def is_finite(self) -> bool:
        """Whether both losses are."""
        return bool(self.personalization.isfinite() & self.alignment.isfinite())


def step_losses(task: Task, batch: Batch, constant: Conditionings, config: LossConfig, *, align: bool, plan: Plan = FASTEST) -> StepLosses:
    """The losses of one batch: denoise, re-noise, score. Section 4 of the paper."""
    parametrization = task.denoiser.parametrization
    encoded = {prompt: task.text_encoder(prompt) for prompt in dict.fromkeys(batch.prompts)}
    cut = {prompt: detached(conditioning) for prompt, conditioning in encoded.items()}
    noised = add_noise(batch.latent, batch.noise, batch.sigma, parametrization)
    weight = alignment_weights(batch.sigma, task.denoiser, config)
    rows = [row for row, counts in enumerate(weight.cpu()) if counts] if align and config.method != "none" else []
    prompts = replace(constant, personal=[cut[prompt] for prompt in batch.prompts])
    score: Tensor | None = None

    if rows and plan.estimate_first:
        with torch.no_grad():
            score = _score(task, batch, task.denoiser(noised, batch.sigma, _personalized(prompts.personal)), rows, prompts, config, plan)
    denoiser = task.checkpointed if plan.checkpointing and task.checkpointed else task.denoiser
    denoised = denoiser(noised, batch.sigma, _personalized([encoded[prompt] for prompt in batch.prompts]))
    if rows and score is None:
        score = _score(task, batch, denoised.detach(), rows, prompts, config, plan)

    personalization = personalization_loss(denoised, batch.latent, batch.sigma, parametrization, batch.weight)
    zero = denoised.new_zeros(())
    return StepLosses(
        personalization=personalization,
        alignment=zero if score is None else prompt_alignment_loss(denoised, score, weight),
        alignment_size=zero if score is None else (per_sample(weight, score) * score).square().mean().sqrt(),
        sigma=batch.sigma.max().item(),
    )


def _personalized(conditionings: Sequence[Conditioning]) -> list[Query]:
    return [Query(conditioning=conditioning, personalized=True) for conditioning in conditionings]


def _score(task: Task, batch: Batch, estimate: Tensor, rows: Sequence[int], prompts: Conditionings, config: LossConfig, plan: Plan) -> Tensor:
    """The alignment score of an estimate of x0 that has no gradient; 0 but in ``rows``, the only ones that a network is asked for."""
    noise, sigma = batch.alignment_noise[rows], batch.sigma[rows]
    noised_again = add_noise(estimate[rows], noise, sigma, task.denoiser.parametrization)
    asked = replace(prompts, personal=[prompts.personal[row] for row in rows])
    teacher = in_parts(task.teacher.denoiser, plan.rows) if task.teacher else None
    score = torch.zeros_like(estimate)
    score[rows] = alignment_score(in_parts(task.denoiser, plan.rows), noised_again, noise, sigma, asked, config, teacher)
    return score


def _differentiated(
    task: Task, batch: Batch, constant: Conditionings, config: TrainConfig, loss: LossConfig, scaler: torch.amp.GradScaler, *, align: bool, plan: Plan
) -> StepLosses:
    """The losses of one batch, whose gradient has been added to the parameters' own; nothing is kept of the graph."""
    losses = step_losses(task, batch, constant, loss, align=align, plan=plan)
    total = (losses.personalization + loss.alignment_weight * losses.alignment) / config.gradient_accumulation
    torch.autograd.backward(scaler.scale(total))
    return losses.detached()


def alignment_weights(sigma: Tensor, denoiser: Denoiser, config: LossConfig) -> Tensor:
    """w(t) of each row, shape (B,): 0 outside the chosen part of the schedule, else 1 or the rescaling of Eq. (7)."""
    weight = rescale_weight(sigma, denoiser.parametrization) if config.rescale else torch.ones_like(sigma)
    position = schedule_position(sigma, denoiser.sigmas.to(sigma))
    return weight * ((config.start_percent <= position) & (position <= config.end_percent))


def _gradient_norm(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Tensor:
    scaler.unscale_(optimizer)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return nn.utils.get_total_norm(gradients)


def _stacked_weights(pictures: Sequence[Picture]) -> Tensor | None:
    """The pictures' weights, shape (B, 1, H, W) or (B, 1, 1, H, W); None where no picture has any."""
    if all(picture.weight is None for picture in pictures):
        return None
    return torch.stack([torch.ones_like(picture.latent[:1]) if picture.weight is None else picture.weight for picture in pictures])


def _draw_index(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
