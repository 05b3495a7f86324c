"""The training loop: whole runs against closed forms, its reports, learning rates and reproducibility."""

import pytest
import torch
from small_models import PERSONAL, GaussianDenoiser
from training_runs import FIVE, drawn, gaussian_task, network_task, paper_step, run

from palp_train.batch import Picture
from palp_train.config import LossConfig, TrainConfig
from palp_train.denoiser import EpsilonPrediction
from palp_train.trainer import train

# Whole runs against closed forms


def settled(loss, **arguments):
    """Where the learned mean settles: the average over the second half of a run on pictures of value 1."""
    task = gaussian_task(denoiser=GaussianDenoiser(spread=0.3, sigmas=(0.5, 1.0, 2.0)), **arguments)
    config, seen = TrainConfig(steps=300, learning_rate=0.03, batch_size=4), []
    for _ in train(task, [task.denoiser.shift], [], config, loss, torch.Generator().manual_seed(1)):
        seen.append(task.denoiser.shift.item())
    return sum(seen[150:]) / 150


def test_without_alignment_the_subject_settles_at_its_pictures():
    assert settled(LossConfig(method="none")) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("weight", [0.5, 2.0])
@pytest.mark.parametrize("noise", ["same", "independent"])
def test_with_palp_the_subject_settles_between_its_pictures_and_the_clean_prompts_mean(weight, noise):
    # dL/d mean = 2 (mean - 1) of Eq. (1) + weight (mean - -2) of Eq. (6), times one factor: sigma^2 / (s^2 + sigma^2)^2 rescaled
    loss = LossConfig(alignment_scale=1.0, personalization_scale=1.0, alignment_weight=weight, noise=noise)
    assert settled(loss) == pytest.approx((2 * 1 + weight * -2) / (2 + weight), abs=0.05)


def test_with_guidance_the_subject_settles_where_both_guided_means_say():
    alpha, beta, clean, empty = 3.0, 2.0, -2.0, 0.3
    # guided personal mean - guided pre-trained mean = mean + (1 - beta) empty - (1 - alpha) empty - alpha clean; personal prompt: mean 0
    constant = (1 - beta) * empty - (1 - alpha) * empty - alpha * clean
    loss = LossConfig(alignment_scale=alpha, personalization_scale=beta, alignment_weight=0.5)
    assert settled(loss) == pytest.approx((2 * 1 - 0.5 * constant) / 2.5, abs=0.05)


def test_a_pictures_weight_decides_where_it_is_learned():
    latent = torch.stack([torch.full((4, 4), -1.0)])
    latent[:, :, 2:] = 1.0
    weight = torch.zeros(1, 4, 4)
    weight[:, :, 2:] = 2.0
    pictures = [Picture(latent=latent, prompt=PERSONAL, weight=weight)]
    assert settled(LossConfig(method="none"), pictures=pictures) == pytest.approx(1.0, abs=0.05)


def test_a_word_learns_through_the_training_pass():
    word = torch.nn.Parameter(torch.tensor(0.0))
    task = gaussian_task(means={PERSONAL: word})
    run(task, lora=[], words=[word], loss=LossConfig(method="none"), config=TrainConfig(steps=100, batch_size=4, word_learning_rate=0.03))
    assert word.item() == pytest.approx(1.0, abs=0.2)


# Reproducibility


def trained(seed, loss=None):
    task = network_task(EpsilonPrediction())
    config = TrainConfig(steps=5, batch_size=2, learning_rate=0.01, word_learning_rate=0.01)
    run(task, lora=[task.denoiser.personal], words=[task.text_encoder.word], config=config, loss=loss, seed=seed)
    return torch.cat([task.denoiser.personal.detach().flatten(), task.text_encoder.word.detach()])


@pytest.mark.parametrize("noise", ["same", "independent"])
def test_the_same_seed_gives_bit_equal_parameters(noise):
    first = trained(7, LossConfig(noise=noise))
    torch.rand(3)  # whatever the global generator does in between
    assert torch.equal(first, trained(7, LossConfig(noise=noise)))


def test_another_seed_gives_other_parameters():
    assert not torch.equal(trained(7), trained(8))


def test_training_leaves_the_global_generator_untouched():
    before = torch.get_rng_state()
    trained(7, LossConfig(noise="independent"))
    assert torch.equal(torch.get_rng_state(), before)


# Learning rates and reports


def test_the_lora_and_the_word_have_learning_rates_of_their_own():
    word = torch.nn.Parameter(torch.tensor(0.0))
    task = gaussian_task(means={PERSONAL: word})
    run(task, words=[word], config=TrainConfig(steps=1, learning_rate=1e-2, word_learning_rate=1e-4), loss=LossConfig(method="none"))
    moved = (task.denoiser.shift.abs().item(), word.abs().item())  # Adam's first step is one learning rate long
    assert moved == pytest.approx((1e-2, 1e-4), rel=1e-3)


def test_a_step_is_taken_only_when_its_report_is_asked_for():
    task = gaussian_task()
    steps = train(task, [task.denoiser.shift], [], TrainConfig(steps=9, learning_rate=1e-2), LossConfig(method="none"), torch.Generator())
    next(steps)
    after_one = task.denoiser.shift.item()
    steps.close()
    assert (abs(after_one), task.denoiser.shift.item()) == (pytest.approx(1e-2, rel=1e-3), after_one)


def test_steps_are_numbered_from_one_to_the_last():
    assert [report.step for report in run(gaussian_task(), config=TrainConfig(steps=4))] == [1, 2, 3, 4]


def test_a_report_names_the_highest_noise_level_of_its_batch():
    task = gaussian_task(denoiser=GaussianDenoiser(sigmas=FIVE))
    reports = run(task, config=TrainConfig(steps=6, batch_size=3), loss=LossConfig(method="none"))
    assert [report.sigma for report in reports] == [call.sigma.max().item() for call in task.denoiser.calls]


def test_the_reported_alignment_is_the_root_mean_square_of_the_weighted_score():
    task = gaussian_task(denoiser=GaussianDenoiser(spread=0.5, sigmas=(2.0,)))
    loss = LossConfig(alignment_scale=1.0, personalization_scale=1.0)
    (report,) = run(task, config=TrainConfig(steps=1), loss=loss)
    assert report.alignment == pytest.approx((1 / 2.0) * (2.0 / (0.5**2 + 2.0**2)) * (0.0 - -2.0))  # w times the exact score


def test_the_reported_personalization_is_eq_1_unweighted():
    task, loss = network_task(EpsilonPrediction()), LossConfig(alignment_weight=500.0)
    batch = drawn(task, 2, loss, torch.Generator().manual_seed(3))
    expected = paper_step(task, batch, 1 / (1 + batch.sigma**2), loss)[0].item()
    (report,) = run(task, lora=[task.denoiser.personal], config=TrainConfig(steps=1, batch_size=2), loss=loss, seed=3)
    assert report.personalization == pytest.approx(expected)
