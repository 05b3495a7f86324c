"""The alignment branch on Gaussian images, where each prompt's score is the gradient of a log-density that torch knows."""

import pytest
import torch
from small_models import CLEAN, EMPTY, PERSONAL, GaussianDenoiser, MeanEncoder, per_row, sd_sigmas

from palp_train.alignment import Conditionings, Guided, alignment_score, guided_estimates, predictions, schedule_position
from palp_train.config import LossConfig
from palp_train.denoiser import EpsilonPrediction, Query, RectifiedFlow, VelocityPrediction

SPREAD, SHIFT = 0.6, 0.35
MEANS = {CLEAN: -0.8, EMPTY: 0.2, "bad": 1.7, PERSONAL: 0.9, "an oil painting of [V]": -1.4, "a toy [V]": 2.1}
PERSONAL_PROMPTS = [PERSONAL, "an oil painting of [V]", "a toy [V]"]
KINDS = pytest.mark.parametrize("parametrization", [EpsilonPrediction(), VelocityPrediction(), RectifiedFlow()], ids=lambda p: type(p).__name__)
SIGMAS = pytest.mark.parametrize("sigma", [(0.03, 0.2, 0.9), (0.9, 0.5, 0.1)], ids=str)
SCALES = pytest.mark.parametrize(("alpha", "beta"), [(15.0, 7.5), (7.5, 1.0), (1.0, 3.0), (1.0, 1.0), (0.0, 0.5)])


def draw(seed):
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


NOISED, NOISE = draw(1), draw(2)


def denoiser(parametrization=None, sigmas=None):
    sigmas = sd_sigmas(torch.float64) if sigmas is None else sigmas
    return GaussianDenoiser(spread=SPREAD, shift=SHIFT, parametrization=parametrization, sigmas=sigmas, width=torch.float64)


def conditionings(bad=True):
    encode = MeanEncoder({prompt: torch.tensor(mean, dtype=torch.float64) for prompt, mean in MEANS.items()})
    empty = encode(EMPTY)
    return Conditionings(
        personal=[encode(p) for p in PERSONAL_PROMPTS], clean=encode(CLEAN), empty=empty, personal_empty=empty, bad=encode("bad") if bad else None
    )


def exact_noise(noised, sigma, means, parametrization):
    """``eps = -b grad log p(noised)`` for noised images of N(mean, spread^2), one mean a row: plain autograd of torch's density."""
    a, b = per_row(parametrization.signal_scale(sigma)), per_row(parametrization.noise_scale(sigma))
    x = noised.clone().requires_grad_()
    density = torch.distributions.Normal(a * per_row(torch.tensor(means, dtype=torch.float64)), (a**2 * SPREAD**2 + b**2).sqrt())
    (gradient,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    return -b * gradient


def guided_noise(noised, sigma, cond, uncond, scale, parametrization):
    return (1 - scale) * exact_noise(noised, sigma, uncond, parametrization) + scale * exact_noise(noised, sigma, cond, parametrization)


def personal_means():
    return [MEANS[prompt] + SHIFT for prompt in PERSONAL_PROMPTS]


@KINDS
@SIGMAS
@SCALES
def test_palp_is_the_difference_of_the_exact_guided_scores(parametrization, sigma, alpha, beta):
    sigma = torch.tensor(sigma, dtype=torch.float64)
    config = LossConfig(method="palp", alignment_scale=alpha, personalization_scale=beta)
    pretrained = guided_noise(NOISED, sigma, [MEANS[CLEAN]] * 3, [MEANS[EMPTY]] * 3, alpha, parametrization)
    personalized = guided_noise(NOISED, sigma, personal_means(), [MEANS[EMPTY] + SHIFT] * 3, beta, parametrization)
    found = alignment_score(denoiser(parametrization), NOISED, NOISE, sigma, conditionings(bad=False), config)
    torch.testing.assert_close(found, pretrained - personalized)


@KINDS
@SIGMAS
@pytest.mark.parametrize("alpha", [15.0, 1.0, 0.0])
def test_sds_is_the_exact_guided_score_less_the_noise(parametrization, sigma, alpha):
    sigma = torch.tensor(sigma, dtype=torch.float64)
    config = LossConfig(method="sds", alignment_scale=alpha)
    expected = guided_noise(NOISED, sigma, [MEANS[CLEAN]] * 3, [MEANS[EMPTY]] * 3, alpha, parametrization) - NOISE
    found = alignment_score(denoiser(parametrization), NOISED, NOISE, sigma, conditionings(bad=False), config)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("alpha", [15.0, 1.0, 0.0])
def test_nfsd_is_its_papers_direction_from_exact_scores_on_both_sides_of_t_200(alpha):
    sigmas = sd_sigmas(torch.float64)
    sigma = sigmas[[199, 200, 800]]
    cond, empty, bad = (exact_noise(NOISED, sigma, [MEANS[prompt]] * 3, EpsilonPrediction()) for prompt in (CLEAN, EMPTY, "bad"))
    low_noise = per_row(torch.tensor([True, False, False]))  # Katzir et al.: t < 200 of 1000
    expected = torch.where(low_noise, empty, empty - bad) + alpha * (cond - empty)
    found = alignment_score(denoiser(), NOISED, NOISE, sigma, conditionings(), LossConfig(method="nfsd", alignment_scale=alpha))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("level", [0.05, 1.0, 14.6])
def test_between_two_gaussians_palp_is_sigma_over_total_variance_times_the_distance_of_their_means(level):
    sigma = torch.full((3,), level, dtype=torch.float64)
    config = LossConfig(alignment_scale=1.0, personalization_scale=1.0)
    distance = torch.tensor(personal_means(), dtype=torch.float64) - MEANS[CLEAN]
    expected = per_row(sigma / (SPREAD**2 + sigma**2) * distance).expand_as(NOISED)
    found = alignment_score(denoiser(), NOISED, NOISE, sigma, conditionings(bad=False), config)
    torch.testing.assert_close(found, expected)


def test_descending_palp_brings_an_image_of_the_subject_nearer_to_the_clean_prompts_mean():
    sigma, config = torch.ones(3, dtype=torch.float64), LossConfig(alignment_scale=1.0, personalization_scale=1.0)
    image = per_row(torch.tensor(personal_means(), dtype=torch.float64)).expand_as(NOISED)
    score = alignment_score(denoiser(), image + NOISE, NOISE, sigma, conditionings(bad=False), config)
    assert ((image - 0.1 * score - MEANS[CLEAN]).abs() < (image - MEANS[CLEAN]).abs()).all()


@pytest.mark.parametrize(
    ("config", "passes"),
    [
        (LossConfig(), 4),
        (LossConfig(alignment_scale=1.0), 3),
        (LossConfig(personalization_scale=1.0), 3),
        (LossConfig(alignment_scale=1.0, personalization_scale=1.0), 2),
        (LossConfig(alignment_scale=0.0, personalization_scale=0.0), 4),
        (LossConfig(method="sds"), 2),
        (LossConfig(method="sds", alignment_scale=1.0), 1),
        (LossConfig(method="nfsd"), 3),
    ],
    ids=str,
)
def test_the_network_is_asked_for_no_more_rows_than_the_guidance_scales_need(config, passes):
    model = denoiser()
    alignment_score(model, NOISED, NOISE, torch.ones(3, dtype=torch.float64), conditionings(), config)
    assert [len(call.queries) for call in model.calls] == [passes * 3]


@pytest.mark.parametrize("method", ["palp", "sds", "nfsd"])
def test_the_alignment_branch_runs_without_gradient_even_where_its_inputs_have_some(method):
    model = denoiser()
    score = alignment_score(model, NOISED.clone().requires_grad_(), NOISE, torch.ones(3, dtype=torch.float64), conditionings(), LossConfig(method=method))
    assert (score.requires_grad, [call.grad for call in model.calls]) == (False, [False])


def test_only_the_rows_of_the_personalized_prediction_have_the_lora_on():
    model = denoiser()
    alignment_score(model, NOISED, NOISE, torch.ones(3, dtype=torch.float64), conditionings(), LossConfig())
    asked = {(query.conditioning["prompt"], query.personalized) for query in model.calls[0].queries}
    assert asked == {(CLEAN, False), (EMPTY, False), (EMPTY, True), *((prompt, True) for prompt in PERSONAL_PROMPTS)}


@pytest.mark.parametrize("method", ["sds", "nfsd"])
def test_the_ablations_ask_the_pretrained_model_alone(method):
    model = denoiser()
    alignment_score(model, NOISED, NOISE, torch.ones(3, dtype=torch.float64), conditionings(), LossConfig(method=method))
    assert not any(query.personalized for query in model.calls[0].queries)


def test_predictions_of_one_batch_equal_those_of_a_call_for_each_pass():
    model, prompts, sigma = denoiser(), conditionings(), torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    passes = [[Query(conditioning=c, personalized=on) for c in prompts.personal] for on in (True, False)]
    together = predictions(model, NOISED, sigma, passes)
    torch.testing.assert_close(together, [model(NOISED, sigma, queries) for queries in passes])


def test_guided_estimates_come_back_in_the_order_in_which_they_were_asked():
    model, prompts, sigma = denoiser(), conditionings(), torch.ones(3, dtype=torch.float64)
    wanted = [
        Guided(cond=[prompts.clean] * 3, uncond=prompts.empty, scale=1.0, personalized=False),
        Guided(cond=prompts.personal, uncond=prompts.empty, scale=3.0, personalized=True),
        Guided(cond=[prompts.clean] * 3, uncond=prompts.empty, scale=2.0, personalized=False),
    ]
    alone = [guided_estimates(model, NOISED, sigma, [one])[0] for one in wanted]
    torch.testing.assert_close(guided_estimates(model, NOISED, sigma, wanted), alone)


def test_the_noisiest_level_is_at_position_zero_and_the_cleanest_at_one():
    sigmas = sd_sigmas()
    assert schedule_position(sigmas[[999, 0]], sigmas).tolist() == [0.0, 1.0]


def test_positions_divide_the_schedule_evenly_from_noisy_to_clean():
    sigmas = torch.tensor([0.1, 0.4, 3.0, 8.0, 20.0])
    assert schedule_position(sigmas, sigmas).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_the_only_level_of_a_schedule_of_one_has_a_position():
    assert schedule_position(torch.tensor([1.0]), torch.tensor([1.0])).tolist() == [1.0]
