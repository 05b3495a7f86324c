"""The notation: ``noised = a x + b noise`` against the paper's ``x_t = sqrt(abar) x + sqrt(1 - abar) eps``."""

import pytest
import torch
from small_models import per_row

from palp_train.denoiser import EpsilonPrediction, RectifiedFlow, SamplePrediction, VelocityPrediction, add_noise, detached, per_sample, predicted_noise

ABAR = torch.tensor([0.9985, 0.7, 0.3, 0.0047], dtype=torch.float64)
SIGMA = (1 - ABAR).sqrt() / ABAR.sqrt()
DISCRETE = pytest.mark.parametrize("parametrization", [EpsilonPrediction(), VelocityPrediction()], ids=lambda p: type(p).__name__)
EVERY = pytest.mark.parametrize(
    "parametrization", [EpsilonPrediction(), VelocityPrediction(), VelocityPrediction(0.5), SamplePrediction(), RectifiedFlow()], ids=repr
)


@pytest.fixture
def image():
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def noise():
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@DISCRETE
def test_noised_is_the_papers_x_t_over_sqrt_abar(image, noise, parametrization):
    x_t = per_row(ABAR.sqrt()) * image + per_row((1 - ABAR).sqrt()) * noise
    torch.testing.assert_close(add_noise(image, noise, SIGMA, parametrization), x_t / per_row(ABAR.sqrt()))


def test_noise_is_added_with_the_signal_scaled_down_where_a_is_not_one(image, noise):
    sigma = torch.tensor([0.1, 0.4, 0.5, 0.9], dtype=torch.float64)
    expected = torch.stack([(1 - s) * x + s * n for s, x, n in zip(sigma, image, noise, strict=True)])
    torch.testing.assert_close(add_noise(image, noise, sigma, RectifiedFlow()), expected)


@EVERY
def test_the_noise_implied_by_the_true_image_is_the_noise_that_was_added(image, noise, parametrization):
    sigma = torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64)
    noised = add_noise(image, noise, sigma, parametrization)
    torch.testing.assert_close(predicted_noise(noised, image, sigma, parametrization), noise)


@DISCRETE
def test_predicted_noise_is_the_papers_eps_hat_of_an_estimate(image, noise, parametrization):
    x0_hat = image + 0.1 * noise.square()
    x_t = per_row(ABAR.sqrt()) * image + per_row((1 - ABAR).sqrt()) * noise
    eps_hat = (x_t - per_row(ABAR.sqrt()) * x0_hat) / per_row((1 - ABAR).sqrt())
    torch.testing.assert_close(predicted_noise(x_t / per_row(ABAR.sqrt()), x0_hat, SIGMA, parametrization), eps_hat)


def test_output_scale_of_epsilon_prediction_is_the_derivative_of_eq_2():
    output = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    x0_hat = (0.4 - (1 - ABAR).sqrt() * output) / ABAR.sqrt()
    (derivative,) = torch.autograd.grad(x0_hat.sum(), output)
    torch.testing.assert_close(EpsilonPrediction().output_scale(SIGMA), derivative.abs())


def test_output_scale_of_velocity_prediction_is_the_derivative_of_x0_in_v():
    output = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    x0_hat = ABAR.sqrt() * 0.4 - (1 - ABAR).sqrt() * output
    (derivative,) = torch.autograd.grad(x0_hat.sum(), output)
    torch.testing.assert_close(VelocityPrediction().output_scale(SIGMA), derivative.abs())


def test_output_scale_of_velocity_prediction_never_exceeds_one():
    assert VelocityPrediction().output_scale(torch.tensor([0.0, 1.0, 1e3, 1e9], dtype=torch.float64)).le(1).all()


@DISCRETE
def test_the_maps_of_a_parametrization_keep_shape_and_dtype_of_sigma(parametrization):
    maps = (parametrization.signal_scale, parametrization.noise_scale, parametrization.output_scale)
    assert {(scale(SIGMA).shape, scale(SIGMA).dtype) for scale in maps} == {(SIGMA.shape, SIGMA.dtype)}


@pytest.mark.parametrize("shape", [(3, 3, 3, 3), (3, 2), (3,)])
def test_per_sample_scales_each_row_by_its_own_value(shape):
    rows = per_sample(torch.tensor([1.0, 2.0, 3.0]), torch.ones(shape)) * torch.ones(shape)
    assert [row.unique().item() for row in rows] == [1.0, 2.0, 3.0]


def test_a_detached_conditioning_carries_no_gradient():
    word = torch.ones(2, requires_grad=True)
    assert not detached({"text": word * 2})["text"].requires_grad


def test_detaching_a_conditioning_keeps_its_values_and_leaves_the_given_one_alone():
    given = {"text": torch.ones(2, requires_grad=True) * 2, "guidance": 3.5}
    cut = detached(given)
    assert (cut["text"].tolist(), cut["guidance"], given["text"].requires_grad) == ([2.0, 2.0], 3.5, True)


# What the network predicts


def derivative(estimate, output):
    """|d x0_hat / d output| of a formula for the estimate, shape (B,): it is affine, so a difference is exact."""
    return (estimate(output + 1) - estimate(output)).abs()[:, 0, 0, 0]


def test_the_output_scale_of_edm_is_karras_c_out(image, noise):
    sigma, s = torch.tensor([0.01, 0.3, 0.7, 80.0], dtype=torch.float64), 0.5
    c_skip = per_row(s**2 / (sigma**2 + s**2))
    c_out = per_row(sigma * s / (sigma**2 + s**2).sqrt())  # Table 1 of Karras et al. 2022
    found = derivative(lambda output: c_skip * image + c_out * output, noise)
    torch.testing.assert_close(VelocityPrediction(s).output_scale(sigma), found)


def test_the_output_scale_of_a_flow_is_that_of_x_minus_sigma_times_velocity(image, noise):
    sigma = torch.tensor([0.01, 0.3, 0.7, 1.0], dtype=torch.float64)
    noised = add_noise(image, noise, sigma, RectifiedFlow())
    torch.testing.assert_close(RectifiedFlow().output_scale(sigma), derivative(lambda velocity: noised - per_row(sigma) * velocity, noise))
    torch.testing.assert_close(noised - per_row(sigma) * (noise - image), image)


def test_a_network_that_predicts_the_image_has_nothing_to_rescale():
    assert SamplePrediction().output_scale(SIGMA).tolist() == [1, 1, 1, 1]
