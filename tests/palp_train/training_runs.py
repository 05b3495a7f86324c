"""Tasks that the tests of training share, runs of them, and one step in the paper's notation."""

import torch
from small_models import CLEAN, EMPTY, PERSONAL, GaussianDenoiser, MeanEncoder, NetworkDenoiser, SmallEncoder, per_row

from palp_train.alignment import NFSD_NEGATIVE_PROMPT, schedule_position
from palp_train.batch import Batch, Picture, draw_batch
from palp_train.config import LossConfig, TrainConfig
from palp_train.denoiser import VelocityPrediction
from palp_train.prompts import PromptSet
from palp_train.trainer import Task, train

PROMPTS = PromptSet(target="a sketch of [V]", clean=CLEAN, negative=EMPTY)
PAINTING = "an oil painting of [V]"


def gaussian_task(*, denoiser=None, means=None, pictures=None):
    """Flat pictures of value 1, learned by the denoiser's ``shift`` and, where ``means`` holds a parameter, by that."""
    pictures = pictures or [Picture(latent=torch.ones(1, 4, 4), prompt=PERSONAL)]
    return Task(
        denoiser=denoiser or GaussianDenoiser(), text_encoder=MeanEncoder({CLEAN: -2.0, EMPTY: 0.3} | (means or {})), pictures=pictures, prompts=PROMPTS
    )


def run(task, *, lora=None, words=(), config=None, loss=None, seed=0):
    """All reports of a run; by default the denoiser's shift is what trains."""
    lora = [task.denoiser.shift] if lora is None else lora
    return list(train(task, lora, words, config or TrainConfig(steps=3), loss or LossConfig(), torch.Generator().manual_seed(seed)))


def calls_of_each_step(task, steps, loss):
    """How many times each step called the network."""
    counts, before = [], 0
    for _ in train(task, [task.denoiser.shift], [], TrainConfig(steps=steps), loss, torch.Generator()):
        counts.append(len(task.denoiser.calls) - before)
        before = len(task.denoiser.calls)
    return counts


def drawn(task, size, loss, generator):
    """A batch as a step of training draws it."""
    independent = loss.noise == "independent"
    return draw_batch(task.pictures, size, task.denoiser.sigmas.tolist(), generator, independent_noise=independent)


def batch_at(levels, value=0.0, prompts=None):
    """A batch of flat latents without noise at these levels of ``FIVE``."""
    latent, sigma = torch.full((len(levels), 1, 4, 4), value), torch.tensor(levels)
    zeros, positions = torch.zeros_like(latent), schedule_position(sigma, torch.tensor(FIVE)).tolist()
    given = dict(latent=latent, noise=zeros, alignment_noise=zeros, sigma=sigma, positions=positions, highest=max(levels))
    return Batch(prompts=prompts or [PERSONAL] * len(levels), **given)


NONE, PALP = LossConfig(method="none"), LossConfig()
FIVE = (0.1, 0.4, 3.0, 8.0, 20.0)  # at positions 1, 3/4, 1/2, 1/4, 0


def network_task(parametrization):
    generator = torch.Generator().manual_seed(5)
    pictures = [Picture(latent=torch.randn(2, 3, 3, generator=generator, dtype=torch.float64), prompt=prompt) for prompt in (PERSONAL, PAINTING)]
    return Task(denoiser=NetworkDenoiser(parametrization), text_encoder=SmallEncoder(), pictures=pictures, prompts=PROMPTS)


def paper_step(task, batch, abar, config):
    """The personalization loss, and what the step's gradient should be, in the paper's notation: x_t, abar, eps_hat or v_hat."""
    model, encode, sa, sn = task.denoiser, task.text_encoder, per_row(abar.sqrt()), per_row((1 - abar).sqrt())
    predicts_v = isinstance(model.parametrization, VelocityPrediction)
    own = torch.stack([encode(prompt)["text"] for prompt in batch.prompts])

    x_t = sa * batch.latent + sn * batch.noise
    output = model.output(x_t, abar, own, True)
    x0_hat = sa * x_t - sn * output if predicts_v else (x_t - sn * output) / sa
    target = sa * batch.noise - sn * batch.latent if predicts_v else batch.noise
    personalization = (output - target).square().mean()

    with torch.no_grad():
        x_hat_t = sa * x0_hat + sn * batch.alignment_noise

        def eps(text, personalized):
            out = model.output(x_hat_t, abar, text.expand(len(x_hat_t), -1), personalized)
            return sa * out + sn * x_hat_t if predicts_v else out

        clean, empty, bad = (eps(encode(prompt)["text"], False) for prompt in (CLEAN, EMPTY, NFSD_NEGATIVE_PROMPT))
        alpha, beta = config.alignment_scale, config.personalization_scale
        pretrained = (1 - alpha) * empty + alpha * clean
        if config.method == "palp":
            delta = pretrained - ((1 - beta) * eps(encode(EMPTY)["text"], True) + beta * eps(own, True))
        elif config.method == "sds":
            delta = pretrained - batch.alignment_noise
        else:
            low_noise = per_row(abar > ((1 + model.sigmas[200] ** 2) ** -1))
            delta = torch.where(low_noise, empty, empty - bad) + alpha * (clean - empty)
        w = 1 if not config.rescale else 1 / sn if predicts_v else sa / sn

    trained = [model.personal, encode.word]
    reconstruction = torch.autograd.grad(personalization, trained, retain_graph=True)
    alignment = torch.autograd.grad(x0_hat, trained, grad_outputs=w * delta / delta.numel())  # Eq. (6)
    return personalization, (w * delta).square().mean().sqrt(), [r + config.alignment_weight * a for r, a in zip(reconstruction, alignment, strict=True)]
