"""Each equation against the paper's own notation, written out again here in float64, with plain autograd through a small network."""

import pytest
import torch
from small_models import NetworkDenoiser, SmallEncoder, per_row

from palp_train.denoiser import EpsilonPrediction, Query, RectifiedFlow, VelocityPrediction, add_noise, predicted_noise
from palp_train.losses import (
    classifier_free_guidance,
    delta_denoising_score,
    noise_free_score,
    personalization_loss,
    prompt_alignment_loss,
    rescale_weight,
    score_distillation,
)

ABAR = torch.tensor([0.9985, 0.7, 0.3, 0.0047], dtype=torch.float64)  # from nearly clean to nearly noise
SA, SN = per_row(ABAR.sqrt()), per_row((1 - ABAR).sqrt())  # sqrt(abar), sqrt(1 - abar)
SIGMA = (1 - ABAR).sqrt() / ABAR.sqrt()
EPS, V = EpsilonPrediction(), VelocityPrediction()
ENCODE = SmallEncoder()


def draw(seed, *shape):
    return torch.randn(*(shape or (4, 2, 3, 3)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, NOISE, NOISE2 = draw(1), draw(2), draw(3)


def texts(prompt):
    return ENCODE(prompt)["text"].detach().expand(4, -1)


def paper_forward(model, parametrization):
    """The training pass in the paper's notation: x_t, the network's output, and x0_hat (Eq. 2; for v: Salimans & Ho 2022)."""
    x_t = SA * X + SN * NOISE
    output = model.output(x_t, ABAR, texts("a photo of [V]"), True)
    x0_hat = (x_t - SN * output) / SA if parametrization == EPS else SA * x_t - SN * output
    return x_t, output, x0_hat


def host_forward(model, parametrization):
    """The same pass as the library sees it: only x0_hat."""
    query = Query(conditioning={"text": texts("a photo of [V]")[0]}, personalized=True)
    return model(add_noise(X, NOISE, SIGMA, parametrization), SIGMA, [query] * 4)


def paper_delta(model, x0_hat, noise, alpha, beta, parametrization):
    """Eqs. (5), (6): the difference of the two guided noises at the re-noised estimate, no gradient."""
    with torch.no_grad():
        x_hat_t = SA * x0_hat + SN * noise

        def eps(prompt, personalized):
            output = model.output(x_hat_t, ABAR, texts(prompt), personalized)
            return output if parametrization == EPS else SA * output + SN * x_hat_t

        pretrained = (1 - alpha) * eps("", False) + alpha * eps("a sketch of a cat", False)
        personalized = (1 - beta) * eps("", True) + beta * eps("a photo of [V]", True)
        return pretrained - personalized


def host_delta(model, x0_hat, noise, alpha, beta, parametrization):
    """The same from the library's functions and estimates of x0."""
    with torch.no_grad():
        noised = add_noise(x0_hat, noise, SIGMA, parametrization)

        def x0(prompt, personalized):
            return model(noised, SIGMA, [Query(conditioning={"text": texts(prompt)[0]}, personalized=personalized)] * 4)

        target = classifier_free_guidance(x0("", False), x0("a sketch of a cat", False), alpha)
        reference = classifier_free_guidance(x0("", True), x0("a photo of [V]", True), beta)
        return delta_denoising_score(target, reference, SIGMA, parametrization)


EPS_AND_V = pytest.mark.parametrize("parametrization", [EPS, V], ids=["eps", "v"])


# Eq. (1)


def test_personalization_loss_of_an_eps_model_is_the_papers_mean_of_eps_hat_minus_eps_squared():
    model = NetworkDenoiser(EPS)
    _, eps_hat, _ = paper_forward(model, EPS)
    torch.testing.assert_close(personalization_loss(host_forward(model, EPS), X, SIGMA, EPS), (eps_hat - NOISE).square().mean())


def test_personalization_loss_of_a_v_model_is_the_literal_mean_of_v_hat_minus_v_squared():
    model = NetworkDenoiser(V)
    _, v_hat, _ = paper_forward(model, V)
    v = SA * NOISE - SN * X
    torch.testing.assert_close(personalization_loss(host_forward(model, V), X, SIGMA, V), (v_hat - v).square().mean())


def test_personalization_loss_of_a_flow_model_is_the_mean_of_velocity_errors_squared():
    sigma = torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64)
    velocity_hat = draw(4)
    x0_hat = add_noise(X, NOISE, sigma, RectifiedFlow()) - per_row(sigma) * velocity_hat
    torch.testing.assert_close(personalization_loss(x0_hat, X, sigma, RectifiedFlow()), (velocity_hat - (NOISE - X)).square().mean())


def test_personalization_loss_counts_each_place_by_its_weight():
    model, weight = NetworkDenoiser(EPS), draw(8, 4, 1, 3, 3).abs()
    _, eps_hat, _ = paper_forward(model, EPS)
    expected = sum((weight[:, 0] * (eps_hat - NOISE)[:, c].square()).mean() for c in range(2)) / 2
    torch.testing.assert_close(personalization_loss(host_forward(model, EPS), X, SIGMA, EPS, weight), expected)


@EPS_AND_V
def test_personalization_loss_has_the_gradient_of_the_papers_loss(parametrization):
    model = NetworkDenoiser(parametrization)
    _, output, _ = paper_forward(model, parametrization)
    target = NOISE if parametrization == EPS else SA * NOISE - SN * X
    (expected,) = torch.autograd.grad((output - target).square().mean(), model.personal)
    (found,) = torch.autograd.grad(personalization_loss(host_forward(model, parametrization), X, SIGMA, parametrization), model.personal)
    torch.testing.assert_close(found, expected)


# Eq. (5)


def test_guidance_scale_one_is_the_conditional_prediction():
    torch.testing.assert_close(classifier_free_guidance(X, NOISE, 1.0), NOISE)


def test_guidance_scale_zero_is_the_unconditional_prediction():
    torch.testing.assert_close(classifier_free_guidance(X, NOISE, 0.0), X)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 7.5, 15.0])
def test_guidance_is_the_papers_affine_mixture(scale):
    torch.testing.assert_close(classifier_free_guidance(X, NOISE, scale), (1 - scale) * X + scale * NOISE)


def test_guiding_estimates_of_x0_is_guiding_predictions_of_noise():
    noised, uncond, cond = draw(4), draw(5), draw(6)
    guided = predicted_noise(noised, classifier_free_guidance(uncond, cond, 7.5), SIGMA, EPS)
    eps_uncond, eps_cond = (predicted_noise(noised, x0, SIGMA, EPS) for x0 in (uncond, cond))
    torch.testing.assert_close(guided, (1 - 7.5) * eps_uncond + 7.5 * eps_cond)


# Eq. (6)


@EPS_AND_V
@pytest.mark.parametrize(("alpha", "beta"), [(15.0, 7.5), (7.5, 1.0), (1.0, 1.0)])
def test_delta_denoising_score_is_the_difference_of_the_guided_noises(parametrization, alpha, beta):
    model = NetworkDenoiser(parametrization)
    x0_hat = paper_forward(model, parametrization)[2].detach()
    expected = paper_delta(model, x0_hat, NOISE2, alpha, beta, parametrization)
    torch.testing.assert_close(host_delta(model, x0_hat, NOISE2, alpha, beta, parametrization), expected)


def test_delta_denoising_score_of_a_flow_model_is_the_difference_of_the_implied_noises():
    sigma = torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64)
    noised, target, reference = draw(4), draw(5), draw(6)
    eps_target, eps_reference = ((noised - (1 - per_row(sigma)) * x0) / per_row(sigma) for x0 in (target, reference))
    torch.testing.assert_close(delta_denoising_score(target, reference, sigma, RectifiedFlow()), eps_target - eps_reference)


@EPS_AND_V
@pytest.mark.parametrize("rescale", [True, False], ids=["rescaled", "plain"])
def test_the_surrogate_has_exactly_the_gradient_w_delta_dx0_dtheta_of_eq_6(parametrization, rescale):
    model = NetworkDenoiser(parametrization)
    x0_hat = paper_forward(model, parametrization)[2]
    delta = paper_delta(model, x0_hat.detach(), NOISE2, 15.0, 7.5, parametrization)
    dx0_doutput = SN / SA if parametrization == EPS else SN
    w = 1 / dx0_doutput if rescale else torch.ones_like(SN)

    def x0_of(personal):  # x0_hat as a function of theta, for the full Jacobian
        output = torch.func.functional_call(_Output(model), {"model.personal": personal}, (SA * X + SN * NOISE,))
        return (SA * X + SN * NOISE - SN * output) / SA if parametrization == EPS else SA * (SA * X + SN * NOISE) - SN * output

    jacobian = torch.autograd.functional.jacobian(x0_of, model.personal.detach())  # (B, C, H, W, *theta)
    expected = torch.einsum("bcij,bcijhk->hk", w * delta, jacobian) / delta.numel()

    denoised = host_forward(model, parametrization)
    score = host_delta(model, denoised.detach(), NOISE2, 15.0, 7.5, parametrization)
    weight = rescale_weight(SIGMA, parametrization) if rescale else torch.ones_like(SIGMA)
    (found,) = torch.autograd.grad(prompt_alignment_loss(denoised, score, weight), model.personal)
    torch.testing.assert_close(found, expected)


class _Output(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x_t):
        return self.model.output(x_t, ABAR, texts("a photo of [V]"), True)


def test_the_score_is_held_constant_by_the_surrogate():
    denoised = X.clone().requires_grad_()
    score = denoised.square()
    (gradient,) = torch.autograd.grad(prompt_alignment_loss(denoised, score, torch.ones(4, dtype=torch.float64)), denoised)
    torch.testing.assert_close(gradient, X.square() / X.numel())


def test_the_surrogate_weighs_each_row_by_its_own_weight():
    denoised, weight = X.clone().requires_grad_(), torch.tensor([1.0, 2.0, 0.0, 5.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(prompt_alignment_loss(denoised, NOISE, weight), denoised)
    torch.testing.assert_close(gradient, per_row(weight) * NOISE / X.numel())


def test_descending_the_surrogate_moves_the_estimate_towards_the_target_and_away_from_the_reference():
    denoised = X.clone().requires_grad_()
    target, reference = X + 1, X - 1
    score = delta_denoising_score(target, reference, SIGMA, EPS)
    (gradient,) = torch.autograd.grad(prompt_alignment_loss(denoised, score, rescale_weight(SIGMA, EPS)), denoised)
    moved = X - 0.1 * gradient / gradient.abs().max()
    assert ((target - moved).abs() < (target - X).abs()).all() and ((reference - moved).abs() > (reference - X).abs()).all()


# Eq. (7)


def test_rescaling_of_an_eps_model_is_sqrt_abar_over_sqrt_one_minus_abar():
    torch.testing.assert_close(rescale_weight(SIGMA, EPS), ABAR.sqrt() / (1 - ABAR).sqrt())


def test_rescaling_of_a_v_model_is_one_over_sqrt_one_minus_abar():
    torch.testing.assert_close(rescale_weight(SIGMA, V), 1 / (1 - ABAR).sqrt())


@EPS_AND_V
def test_rescaled_the_gradient_in_the_networks_output_is_minus_delta_at_every_noise_level(parametrization):
    output, score = draw(4).requires_grad_(), draw(5)
    x_t = SA * X + SN * NOISE
    x0_hat = (x_t - SN * output) / SA if parametrization == EPS else SA * x_t - SN * output
    (gradient,) = torch.autograd.grad(prompt_alignment_loss(x0_hat, score, rescale_weight(SIGMA, parametrization)), output)
    torch.testing.assert_close(gradient * output.numel(), -score)


def test_without_rescaling_the_gradient_in_an_eps_models_output_carries_sqrt_one_minus_abar_over_sqrt_abar():
    output, score = draw(4).requires_grad_(), draw(5)
    x0_hat = (SA * X + SN * NOISE - SN * output) / SA
    (gradient,) = torch.autograd.grad(prompt_alignment_loss(x0_hat, score, torch.ones_like(SIGMA)), output)
    torch.testing.assert_close(gradient * output.numel(), -score * SN / SA)


# Eq. (4), NFSD


@EPS_AND_V
def test_score_distillation_is_eps_hat_minus_the_noise_that_was_added(parametrization):
    x0_hat, noise, eps_hat = draw(4), draw(5), draw(6)
    x_hat_t = SA * x0_hat + SN * noise
    target = (x_hat_t - SN * eps_hat) / SA
    torch.testing.assert_close(score_distillation(target, x_hat_t / SA, noise, SIGMA, parametrization), eps_hat - noise)


def test_score_distillation_of_a_flow_model_is_the_implied_noise_minus_the_noise():
    sigma = torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64)
    noise, target = draw(5), draw(6)
    noised = (1 - per_row(sigma)) * X + per_row(sigma) * noise
    expected = (noised - (1 - per_row(sigma)) * target) / per_row(sigma) - noise
    torch.testing.assert_close(score_distillation(target, noised, noise, sigma, RectifiedFlow()), expected)


def test_score_distillation_of_a_perfect_estimate_is_zero():
    noised = add_noise(X, NOISE, SIGMA, EPS)
    torch.testing.assert_close(score_distillation(X, noised, NOISE, SIGMA, EPS), torch.zeros_like(X))


def test_noise_free_score_of_noisy_rows_cancels_the_noise_by_the_negative_prompt():
    cond, uncond, negative = draw(4), draw(5), draw(6)
    expected = (uncond - negative) + 7.5 * (cond - uncond)
    torch.testing.assert_close(noise_free_score(cond, uncond, negative, 7.5, torch.zeros(4, dtype=torch.bool)), expected)


def test_noise_free_score_of_nearly_clean_rows_leaves_the_negative_prompt_out():
    cond, uncond, negative = draw(4), draw(5), draw(6)
    expected = uncond + 7.5 * (cond - uncond)
    torch.testing.assert_close(noise_free_score(cond, uncond, negative, 7.5, torch.ones(4, dtype=torch.bool)), expected)


def test_noise_free_score_chooses_its_branch_row_by_row():
    cond, uncond, negative = draw(4), draw(5), draw(6)
    score = noise_free_score(cond, uncond, negative, 2.0, torch.tensor([True, False, False, True]))
    noisy, clean = uncond - negative + 2 * (cond - uncond), uncond + 2 * (cond - uncond)
    torch.testing.assert_close(score, torch.stack([clean[0], noisy[1], noisy[2], clean[3]]))


@pytest.mark.parametrize(
    "score",
    [
        lambda x: delta_denoising_score(x, NOISE, SIGMA, EPS),
        lambda x: delta_denoising_score(NOISE, x, SIGMA, EPS),
        lambda x: score_distillation(x, X, NOISE, SIGMA, EPS),
        lambda x: noise_free_score(x, x, x, 7.5, torch.zeros(4, dtype=torch.bool)),
    ],
    ids=["delta of its target", "delta of its reference", "sds", "nfsd"],
)
def test_no_score_carries_gradient(score):
    assert not score(X.clone().requires_grad_()).requires_grad
