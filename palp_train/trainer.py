"""The training loop, in the order of the paper's method section: draw, noise, denoise, re-noise, score, losses, backward, step."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .alignment import NFSD_NEGATIVE_PROMPT, Conditionings, alignment_score, schedule_position
from .config import LossConfig, TrainConfig
from .denoiser import Denoiser, Query, TextEncoder, add_noise, detached, per_sample
from .errors import UnstableTrainingError
from .losses import personalization_loss, prompt_alignment_loss, rescale_weight
from .prompts import PromptSet

SMALLEST_LOSS_SCALE = 1.0
"""Below it float16 gradients overflow however small the loss is made: they are not finite in themselves."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A training picture: its latent of shape (C, H, W), scaled as the network takes it, and its personalization prompt y_P."""

    latent: Tensor
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to train on: the models, the pictures and the prompts."""

    denoiser: Denoiser
    text_encoder: TextEncoder
    pictures: Sequence[Picture]
    prompts: PromptSet


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The random draws of one step. Latents and noises: shape (B, C, H, W); sigma: shape (B,); prompts: length B."""

    latent: Tensor
    noise: Tensor
    alignment_noise: Tensor
    """eps', with which the estimate is noised again: ``noise`` itself, or a draw of its own."""
    sigma: Tensor
    prompts: Sequence[str]


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


def train(
    task: Task,
    lora: Iterable[nn.Parameter],
    words: Iterable[nn.Parameter],
    config: TrainConfig,
    loss: LossConfig,
    generator: torch.Generator,
) -> Iterator[StepReport]:
    """Train the LoRA and the words in place, one step for each item taken.

    Args:
        task: models, pictures, prompts.
        lora: the LoRA's parameters, float32.
        words: the new words' vectors, float32; may be empty.
        config: steps, learning rates, batch size.
        loss: the alignment branch.
        generator: on the CPU; every random number comes from it.

    Yields:
        A report after each step.

    Raises:
        UnstableTrainingError: the loss or its gradient is not finite; nothing is stepped.
    """
    groups = [{"params": list(lora), "lr": config.learning_rate}, {"params": list(words), "lr": config.word_learning_rate}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])  # ours: Appendix C names no optimizer
    device = task.pictures[0].latent.device.type
    scaler = torch.amp.GradScaler(device, enabled=task.denoiser.dtype == torch.float16)
    constant = constant_conditionings(task, loss)
    for step in range(1, config.steps + 1):
        began = time.perf_counter()
        batch = draw_batch(task, config.batch_size, loss, generator)
        personalization, alignment, size = step_losses(task, batch, constant, loss, align=(step - 1) % loss.every == 0)
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(personalization + loss.alignment_weight * alignment))
        norm = _gradient_norm(optimizer, scaler)
        if not (torch.isfinite(personalization) and torch.isfinite(alignment) and (scaler.is_enabled() or norm.isfinite())):
            raise UnstableTrainingError(step, batch.sigma.max().item())
        scaler.step(optimizer)
        scaler.update()
        if scaler.is_enabled() and scaler.get_scale() < SMALLEST_LOSS_SCALE:  # it halves at every overflow and skips the step
            raise UnstableTrainingError(step, batch.sigma.max().item())
        yield StepReport(
            step=step,
            personalization=personalization.item(),
            alignment=size.item(),
            gradient_norm=norm.item(),
            sigma=batch.sigma.max().item(),
            seconds=time.perf_counter() - began,
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
    )


def constant_conditionings(task: Task, loss: LossConfig) -> Conditionings:
    """The prompts that hold no new word, encoded once for the whole run."""
    with torch.no_grad():
        return Conditionings(
            personal=(),
            clean=task.text_encoder(task.prompts.clean),
            empty=task.text_encoder(task.prompts.negative),
            bad=task.text_encoder(NFSD_NEGATIVE_PROMPT) if loss.method == "nfsd" else None,
        )


def step_losses(task: Task, batch: Batch, constant: Conditionings, config: LossConfig, *, align: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The personalization loss, the alignment loss (both scalars with gradient) and the size of the weighted score."""
    parametrization = task.denoiser.parametrization
    encoded = {prompt: task.text_encoder(prompt) for prompt in dict.fromkeys(batch.prompts)}
    personal = [encoded[prompt] for prompt in batch.prompts]
    noised = add_noise(batch.latent, batch.noise, batch.sigma, parametrization)
    denoised = task.denoiser(noised, batch.sigma, [Query(conditioning=c, personalized=True) for c in personal])
    personalization = personalization_loss(denoised, batch.latent, batch.sigma, parametrization)
    weight = alignment_weights(batch.sigma, task.denoiser, config)
    if config.method == "none" or not align or not weight.any():
        return personalization, denoised.new_zeros(()), denoised.new_zeros(())

    noised_again = add_noise(denoised.detach(), batch.alignment_noise, batch.sigma, parametrization)
    cut = {prompt: detached(conditioning) for prompt, conditioning in encoded.items()}
    prompts = replace(constant, personal=[cut[prompt] for prompt in batch.prompts])
    score = alignment_score(task.denoiser, noised_again, batch.alignment_noise, batch.sigma, prompts, config)
    size = (per_sample(weight, score) * score).square().mean().sqrt()
    return personalization, prompt_alignment_loss(denoised, score, weight), size


def alignment_weights(sigma: Tensor, denoiser: Denoiser, config: LossConfig) -> Tensor:
    """w(t) of each row, shape (B,): 0 outside the chosen part of the schedule, else 1 or the rescaling of Eq. (7)."""
    weight = rescale_weight(sigma, denoiser.parametrization) if config.rescale else torch.ones_like(sigma)
    position = schedule_position(sigma, denoiser.sigmas.to(sigma))
    return weight * ((config.start_percent <= position) & (position <= config.end_percent))


def _gradient_norm(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Tensor:
    scaler.unscale_(optimizer)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return nn.utils.get_total_norm(gradients)


def _draw_index(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
