"""What a step draws: noise, noise levels and pictures."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from small_models import PERSONAL, GaussianDenoiser
from training_runs import drawn, gaussian_task

from palp_train.batch import Picture
from palp_train.config import LossConfig


def test_same_noise_is_the_very_noise_of_the_step():
    batch = drawn(gaussian_task(), 2, LossConfig(noise="same"), torch.Generator())
    assert batch.alignment_noise is batch.noise


def test_independent_noise_is_uncorrelated_with_the_noise_of_the_step():
    task = gaussian_task(pictures=[Picture(latent=torch.zeros(4, 32, 32), prompt=PERSONAL)])
    batch = drawn(task, 4, LossConfig(noise="independent"), torch.Generator().manual_seed(0))
    correlation = torch.corrcoef(torch.stack([batch.noise.flatten(), batch.alignment_noise.flatten()]))
    torch.testing.assert_close(correlation, torch.eye(2), atol=0.04, rtol=0)


@pytest.mark.parametrize("which", ["noise", "alignment_noise"])
def test_noise_is_standard_normal(which):
    task = gaussian_task(pictures=[Picture(latent=torch.zeros(4, 32, 32), prompt=PERSONAL)])
    noise = getattr(drawn(task, 4, LossConfig(noise="independent"), torch.Generator().manual_seed(0)), which)
    moments = torch.stack([noise.mean(), noise.var(), noise.pow(3).mean(), noise.pow(4).mean()])
    torch.testing.assert_close(moments, torch.tensor([0.0, 1.0, 0.0, 3.0]), atol=0.15, rtol=0)


def test_noise_levels_are_drawn_uniformly_over_the_table():
    task, generator = gaussian_task(denoiser=GaussianDenoiser(sigmas=torch.arange(1.0, 11.0))), torch.Generator().manual_seed(3)
    draws = Counter(level for _ in range(20) for level in drawn(task, 200, LossConfig(), generator).sigma.tolist())
    chi_square = sum((draws[level] - 400) ** 2 / 400 for level in range(1, 11))
    assert set(draws) == set(range(1, 11)) and chi_square < 27.9  # 9 degrees of freedom, p = 0.001


def test_pictures_are_drawn_uniformly_with_their_own_prompts():
    pictures = [Picture(latent=torch.full((1, 2, 2), float(n)), prompt=f"picture {n} of [V]") for n in range(5)]
    task, generator = gaussian_task(pictures=pictures), torch.Generator().manual_seed(3)
    draws = Counter()
    for batch in (drawn(task, 3, LossConfig(), generator) for _ in range(500)):
        draws.update(zip(batch.latent[:, 0, 0, 0].tolist(), batch.prompts, strict=True))
    chi_square = sum((draws[float(n), f"picture {n} of [V]"] - 300) ** 2 / 300 for n in range(5))
    assert len(draws) == 5 and chi_square < 18.5  # 4 degrees of freedom, p = 0.001


def test_pictures_of_different_shapes_never_meet_in_one_batch():
    shapes = [(1, 2, 6), (1, 6, 2), (1, 2, 6), (1, 4, 4)]
    task, generator = gaussian_task(pictures=[Picture(latent=torch.ones(s), prompt=PERSONAL) for s in shapes]), torch.Generator().manual_seed(0)
    seen = Counter(tuple(drawn(task, 4, LossConfig(), generator).latent.shape) for _ in range(200))
    assert set(seen) == {(4, *shape) for shape in shapes} and seen[4, 1, 2, 6] > seen[4, 1, 4, 4]


def test_a_batch_lives_in_the_precision_of_the_latents():
    task = gaussian_task(pictures=[Picture(latent=torch.ones(1, 2, 2, dtype=torch.float64), prompt=PERSONAL)])
    batch = drawn(task, 2, LossConfig(noise="independent"), torch.Generator())
    assert {t.dtype for t in (batch.latent, batch.noise, batch.alignment_noise, batch.sigma)} == {torch.float64}


def test_pictures_with_and_without_weights_share_a_batch():
    plain = Picture(latent=torch.ones(1, 4, 4), prompt=PERSONAL)
    weighted = replace(plain, weight=torch.full((1, 4, 4), 3.0))
    batch = drawn(gaussian_task(pictures=[plain, weighted]), 32, LossConfig(), torch.Generator())
    assert {weight.mean().item() for weight in batch.weight} == {1.0, 3.0}
    assert drawn(gaussian_task(pictures=[plain]), 2, LossConfig(), torch.Generator()).weight is None
