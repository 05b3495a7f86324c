"""The training loop: one step against the paper's notation in float64, whole runs against closed forms, and its promises."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_models import CLEAN, EMPTY, PERSONAL, GaussianDenoiser, MeanEncoder, NetworkDenoiser, SmallEncoder, per_row, sd_sigmas

from palp_train.alignment import NFSD_NEGATIVE_PROMPT
from palp_train.config import LossConfig, TrainConfig
from palp_train.denoiser import EpsilonPrediction, Query, VelocityPrediction
from palp_train.errors import PalpError, UnstableTrainingError
from palp_train.prompts import PromptSet
from palp_train.trainer import Batch, Picture, Task, Teacher, alignment_weights, constant_conditionings, draw_batch, step_losses, train

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


# One step against the paper


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


@pytest.mark.parametrize("parametrization", [EpsilonPrediction(), VelocityPrediction()], ids=["eps", "v"])
@pytest.mark.parametrize("method", ["palp", "sds", "nfsd"])
@pytest.mark.parametrize("noise", ["same", "independent"])
@pytest.mark.parametrize("rescale", [True, False], ids=["rescaled", "plain"])
def test_a_step_has_the_losses_and_the_gradient_of_the_papers_step(parametrization, method, noise, rescale):
    config = LossConfig(method=method, noise=noise, rescale=rescale, alignment_weight=0.7)
    task = network_task(parametrization)
    batch = draw_batch(task, 5, config, torch.Generator().manual_seed(2))
    model, encode = task.denoiser, task.text_encoder
    expected_loss, expected_size, expected = paper_step(task, batch, 1 / (1 + batch.sigma**2), config)

    made = step_losses(task, batch, constant_conditionings(task, config), config, align=True)
    found = torch.autograd.grad(made.personalization + config.alignment_weight * made.alignment, [model.personal, encode.word])
    torch.testing.assert_close([made.personalization, made.alignment_size, *found], [expected_loss, expected_size, *expected])


def test_train_reports_the_gradient_norm_of_each_step_alone():
    loss, config = LossConfig(alignment_weight=0.7), TrainConfig(steps=4, batch_size=2, learning_rate=1e-8, word_learning_rate=1e-8)
    task, replayed, generator = network_task(EpsilonPrediction()), [], torch.Generator().manual_seed(9)
    for _ in range(config.steps):
        batch = draw_batch(task, 2, loss, generator)
        _, _, gradients = paper_step(task, batch, 1 / (1 + batch.sigma**2), loss)
        replayed.append(torch.cat([g.flatten() for g in gradients]).norm().item())
    reports = run(task, lora=[task.denoiser.personal], words=[task.text_encoder.word], config=config, loss=loss, seed=9)
    assert [report.gradient_norm for report in reports] == pytest.approx(replayed, rel=1e-5)


def test_accumulated_gradients_are_the_mean_of_the_batches_own():
    loss, config = LossConfig(alignment_weight=0.7), TrainConfig(steps=2, batch_size=2, gradient_accumulation=3, learning_rate=1e-8, word_learning_rate=1e-8)
    task, expected, generator = network_task(EpsilonPrediction()), [], torch.Generator().manual_seed(9)
    for _ in range(config.steps):
        batches = [draw_batch(task, 2, loss, generator) for _ in range(3)]
        steps = [paper_step(task, batch, 1 / (1 + batch.sigma**2), loss) for batch in batches]
        gradients = [torch.stack([step[2][part].flatten() for step in steps]).mean(dim=0) for part in range(2)]
        expected.append((torch.cat(gradients).norm().item(), sum(step[0].item() for step in steps) / 3, max(b.sigma.max().item() for b in batches)))
    reports = run(task, lora=[task.denoiser.personal], words=[task.text_encoder.word], config=config, loss=loss, seed=9)
    found = [(report.gradient_norm, report.personalization, report.sigma) for report in reports]
    assert found == [pytest.approx(step, rel=1e-5) for step in expected]


@pytest.mark.parametrize("method", ["palp", "sds", "nfsd"])
def test_with_a_teacher_the_pretrained_predictions_are_the_teachers_and_the_personal_ones_the_students(method):
    config, task = LossConfig(method=method), network_task(EpsilonPrediction())
    other = network_task(VelocityPrediction())  # another network, which even predicts something else of the same noised image
    with torch.no_grad():
        other.text_encoder.word.fill_(-1.0)
    taught = replace(task, teacher=Teacher(denoiser=other.denoiser, text_encoder=other.text_encoder))
    batch = draw_batch(task, 3, config, torch.Generator().manual_seed(2))
    score = step_losses(taught, batch, constant_conditionings(taught, config), config, align=True).alignment_size

    noised = task.denoiser(batch.latent + per_row(batch.sigma) * batch.noise, batch.sigma, queries(task, batch.prompts, True)).detach()
    noised = noised + per_row(batch.sigma) * batch.noise

    def eps(who, prompts, personalized):
        with torch.no_grad():
            return (noised - who.denoiser(noised, batch.sigma, queries(who, prompts, personalized))) / per_row(batch.sigma)

    clean, empty, bad = (eps(other, [prompt] * 3, False) for prompt in (CLEAN, EMPTY, NFSD_NEGATIVE_PROMPT))
    if method == "palp":
        own = -6.5 * eps(task, [EMPTY] * 3, True) + 7.5 * eps(task, batch.prompts, True)
        delta = -14 * empty + 15 * clean - own
    elif method == "sds":
        delta = -14 * empty + 15 * clean - batch.noise
    else:
        low = per_row(batch.sigma < task.denoiser.sigmas[200])
        delta = torch.where(low, empty, empty - bad) + 15 * (clean - empty)
    torch.testing.assert_close(score, (delta / per_row(batch.sigma)).square().mean().sqrt())


def queries(task, prompts, personalized):
    return [Query(conditioning=task.text_encoder(prompt), personalized=personalized) for prompt in prompts]


def test_a_pictures_weight_decides_where_it_is_learned():
    latent = torch.stack([torch.full((4, 4), -1.0)])
    latent[:, :, 2:] = 1.0
    weight = torch.zeros(1, 4, 4)
    weight[:, :, 2:] = 2.0
    pictures = [Picture(latent=latent, prompt=PERSONAL, weight=weight)]
    assert settled(LossConfig(method="none"), pictures=pictures) == pytest.approx(1.0, abs=0.05)


def test_pictures_with_and_without_weights_share_a_batch():
    plain = Picture(latent=torch.ones(1, 4, 4), prompt=PERSONAL)
    weighted = replace(plain, weight=torch.full((1, 4, 4), 3.0))
    batch = draw_batch(gaussian_task(pictures=[plain, weighted]), 32, LossConfig(), torch.Generator())
    assert {weight.mean().item() for weight in batch.weight} == {1.0, 3.0}
    assert draw_batch(gaussian_task(pictures=[plain]), 2, LossConfig(), torch.Generator()).weight is None


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


# What a step asks of the network


def test_method_none_calls_the_network_once_a_step():
    assert calls_of_each_step(gaussian_task(), 3, LossConfig(method="none")) == [1, 1, 1]


@pytest.mark.parametrize("method", ["palp", "sds", "nfsd"])
def test_all_alignment_predictions_of_a_step_are_one_call(method):
    assert calls_of_each_step(gaussian_task(), 3, LossConfig(method=method)) == [2, 2, 2]


def test_the_training_pass_has_gradient_and_the_alignment_pass_has_none():
    task = gaussian_task()
    run(task, config=TrainConfig(steps=2))
    assert [call.grad for call in task.denoiser.calls] == [True, False, True, False]


def test_the_training_pass_asks_the_personalized_model_for_each_pictures_own_prompt():
    task = gaussian_task(pictures=[Picture(latent=torch.full((1, 2, 2), v), prompt=p) for v, p in ((1.0, PERSONAL), (2.0, PAINTING))])
    run(task, config=TrainConfig(steps=1, batch_size=8), loss=LossConfig(method="none"))
    (call,) = task.denoiser.calls
    assert {q.personalized for q in call.queries} == {True} and {q.conditioning["prompt"] for q in call.queries} == {PERSONAL, PAINTING}


@pytest.mark.parametrize(("alpha", "beta", "rows"), [(15.0, 7.5, 12), (1.0, 7.5, 9), (7.5, 1.0, 9), (1.0, 1.0, 6)])
def test_guidance_one_costs_no_unconditional_rows(alpha, beta, rows):
    task = gaussian_task()
    run(task, config=TrainConfig(steps=1, batch_size=3), loss=LossConfig(alignment_scale=alpha, personalization_scale=beta))
    assert [len(call.queries) for call in task.denoiser.calls] == [3, rows]


def test_the_alignment_branch_denoises_the_estimate_noised_again_at_the_same_level():
    task, loss = gaussian_task(), LossConfig(noise="independent")
    batch = draw_batch(task, 3, loss, torch.Generator().manual_seed(4))
    step_losses(task, batch, constant_conditionings(task, loss), loss, align=True)
    training, alignment = task.denoiser.calls
    with torch.no_grad():
        estimate = task.denoiser(training.noised, training.sigma, training.queries)
    expected = estimate + per_row(batch.sigma) * batch.alignment_noise
    torch.testing.assert_close((alignment.noised, alignment.sigma), (expected.repeat(4, 1, 1, 1), batch.sigma.repeat(4)))


@pytest.mark.parametrize("method", ["palp", "sds", "nfsd"])
def test_conditionings_of_the_alignment_branch_carry_no_gradient(method):
    task = gaussian_task(means={PERSONAL: torch.tensor(0.4, requires_grad=True)})
    run(task, config=TrainConfig(steps=2), loss=LossConfig(method=method))
    asked = [query.conditioning["mean"].requires_grad for call in task.denoiser.calls if not call.grad for query in call.queries]
    assert asked and not any(asked)


def test_a_word_learns_through_the_training_pass():
    word = torch.nn.Parameter(torch.tensor(0.0))
    task = gaussian_task(means={PERSONAL: word})
    run(task, lora=[], words=[word], loss=LossConfig(method="none"), config=TrainConfig(steps=100, batch_size=4, word_learning_rate=0.03))
    assert word.item() == pytest.approx(1.0, abs=0.2)


def test_constant_prompts_are_encoded_without_gradient():
    task = gaussian_task(means={CLEAN: torch.nn.Parameter(torch.tensor(1.0)), EMPTY: torch.nn.Parameter(torch.tensor(2.0))})
    constant = constant_conditionings(task, LossConfig())
    assert not constant.clean["mean"].requires_grad and not constant.empty["mean"].requires_grad


def test_constant_prompts_are_the_clean_the_negative_and_nfsds_own():
    constant = constant_conditionings(gaussian_task(), LossConfig(method="nfsd"))
    assert [c["prompt"] for c in (constant.clean, constant.empty, constant.bad)] == [CLEAN, EMPTY, NFSD_NEGATIVE_PROMPT]


def test_the_bad_prompt_is_encoded_for_nfsd_alone():
    assert [constant_conditionings(gaussian_task(), LossConfig(method=m)).bad for m in ("palp", "sds", "none")] == [None] * 3


# When the alignment acts


@pytest.mark.parametrize(("every", "expected"), [(1, [2] * 7), (3, [2, 1, 1, 2, 1, 1, 2]), (7, [2, 1, 1, 1, 1, 1, 1]), (1000, [2, 1, 1, 1, 1, 1, 1])])
def test_every_n_aligns_on_the_first_step_and_each_nth_after_it(every, expected):
    assert calls_of_each_step(gaussian_task(), 7, LossConfig(every=every)) == expected


def test_steps_without_alignment_report_an_alignment_of_zero():
    reports = run(gaussian_task(), config=TrainConfig(steps=5), loss=LossConfig(every=2))
    assert [report.alignment > 0 for report in reports] == [True, False, True, False, True]


FIVE = (0.1, 0.4, 3.0, 8.0, 20.0)  # at positions 1, 3/4, 1/2, 1/4, 0


@pytest.mark.parametrize(
    ("start", "end", "aligned"),
    [
        (0.0, 1.0, [0.1, 0.4, 3.0, 8.0, 20.0]),
        (0.5, 1.0, [0.1, 0.4, 3.0]),
        (0.0, 0.5, [3.0, 8.0, 20.0]),
        (0.3, 0.7, [3.0]),
        (0.0, 0.01, [20.0]),
        (0.99, 1.0, [0.1]),
        (0.6, 0.7, []),
    ],
)
@pytest.mark.parametrize("rescale", [True, False], ids=["rescaled", "plain"])
def test_only_noise_levels_between_start_and_end_percent_are_aligned(start, end, aligned, rescale):
    sigma = torch.tensor(FIVE)
    weight = alignment_weights(sigma, GaussianDenoiser(sigmas=FIVE), LossConfig(start_percent=start, end_percent=end, rescale=rescale))
    torch.testing.assert_close(weight, torch.tensor([(1 / s if rescale else 1.0) if s in aligned else 0.0 for s in FIVE]))


def test_the_whole_default_schedule_of_stable_diffusion_is_aligned():
    sigmas = sd_sigmas()
    assert alignment_weights(sigmas, GaussianDenoiser(sigmas=sigmas), LossConfig()).gt(0).all()


def test_rescaling_of_a_v_model_follows_its_own_parametrization():
    sigma = torch.tensor([0.5, 2.0])
    weight = alignment_weights(sigma, GaussianDenoiser(sigmas=(0.5, 2.0), parametrization=VelocityPrediction()), LossConfig())
    torch.testing.assert_close(weight, (1 + sigma**2).sqrt() / sigma)


def test_a_step_outside_the_chosen_part_of_the_schedule_makes_no_alignment_pass():
    task = gaussian_task(denoiser=GaussianDenoiser(sigmas=FIVE))
    assert calls_of_each_step(task, 3, LossConfig(start_percent=0.6, end_percent=0.7)) == [1, 1, 1]


@pytest.mark.parametrize("sigmas", [(0.4, 20.0), (20.0, 0.4)])
def test_rows_outside_the_chosen_part_of_the_schedule_get_no_alignment_gradient(sigmas):
    task, loss = gaussian_task(denoiser=GaussianDenoiser(sigmas=FIVE)), LossConfig(start_percent=0.5, alignment_scale=1.0, personalization_scale=1.0)
    latent, noise = torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    both = Batch(latent=latent, noise=noise, alignment_noise=noise, sigma=torch.tensor(sigmas), prompts=[PERSONAL] * 2)
    inside = Batch(latent=latent[:1], noise=noise[:1], alignment_noise=noise[:1], sigma=torch.tensor([0.4]), prompts=[PERSONAL])
    constant = constant_conditionings(task, loss)
    gradients = [torch.autograd.grad(step_losses(task, batch, constant, loss, align=True).alignment, task.denoiser.shift)[0] for batch in (both, inside)]
    torch.testing.assert_close(2 * gradients[0], gradients[1])


def test_the_network_is_asked_only_for_rows_within_the_chosen_part_of_the_schedule():
    task, loss = gaussian_task(denoiser=GaussianDenoiser(sigmas=FIVE)), LossConfig(start_percent=0.5)
    zeros = torch.zeros(4, 1, 4, 4)
    batch = Batch(latent=zeros, noise=zeros, alignment_noise=zeros, sigma=torch.tensor([8.0, 0.4, 20.0, 3.0]), prompts=[PERSONAL, PAINTING, PERSONAL, PAINTING])
    step_losses(task, batch, constant_conditionings(task, loss), loss, align=True)
    training, alignment = task.denoiser.calls
    assert len(training.queries) == 4 and len(alignment.queries) == 4 * 2
    assert [q.conditioning["prompt"] for q in alignment.queries if q.personalized][:2] == [PAINTING, PAINTING]


# Draws


def test_same_noise_is_the_very_noise_of_the_step():
    batch = draw_batch(gaussian_task(), 2, LossConfig(noise="same"), torch.Generator())
    assert batch.alignment_noise is batch.noise


def test_independent_noise_is_uncorrelated_with_the_noise_of_the_step():
    task = gaussian_task(pictures=[Picture(latent=torch.zeros(4, 32, 32), prompt=PERSONAL)])
    batch = draw_batch(task, 4, LossConfig(noise="independent"), torch.Generator().manual_seed(0))
    correlation = torch.corrcoef(torch.stack([batch.noise.flatten(), batch.alignment_noise.flatten()]))
    torch.testing.assert_close(correlation, torch.eye(2), atol=0.04, rtol=0)


@pytest.mark.parametrize("which", ["noise", "alignment_noise"])
def test_noise_is_standard_normal(which):
    task = gaussian_task(pictures=[Picture(latent=torch.zeros(4, 32, 32), prompt=PERSONAL)])
    noise = getattr(draw_batch(task, 4, LossConfig(noise="independent"), torch.Generator().manual_seed(0)), which)
    moments = torch.stack([noise.mean(), noise.var(), noise.pow(3).mean(), noise.pow(4).mean()])
    torch.testing.assert_close(moments, torch.tensor([0.0, 1.0, 0.0, 3.0]), atol=0.15, rtol=0)


def test_noise_levels_are_drawn_uniformly_over_the_table():
    task, generator = gaussian_task(denoiser=GaussianDenoiser(sigmas=torch.arange(1.0, 11.0))), torch.Generator().manual_seed(3)
    draws = Counter(level for _ in range(20) for level in draw_batch(task, 200, LossConfig(), generator).sigma.tolist())
    chi_square = sum((draws[level] - 400) ** 2 / 400 for level in range(1, 11))
    assert set(draws) == set(range(1, 11)) and chi_square < 27.9  # 9 degrees of freedom, p = 0.001


def test_pictures_are_drawn_uniformly_with_their_own_prompts():
    pictures = [Picture(latent=torch.full((1, 2, 2), float(n)), prompt=f"picture {n} of [V]") for n in range(5)]
    task, generator = gaussian_task(pictures=pictures), torch.Generator().manual_seed(3)
    draws = Counter()
    for batch in (draw_batch(task, 3, LossConfig(), generator) for _ in range(500)):
        draws.update(zip(batch.latent[:, 0, 0, 0].tolist(), batch.prompts, strict=True))
    chi_square = sum((draws[float(n), f"picture {n} of [V]"] - 300) ** 2 / 300 for n in range(5))
    assert len(draws) == 5 and chi_square < 18.5  # 4 degrees of freedom, p = 0.001


def test_pictures_of_different_shapes_never_meet_in_one_batch():
    shapes = [(1, 2, 6), (1, 6, 2), (1, 2, 6), (1, 4, 4)]
    task, generator = gaussian_task(pictures=[Picture(latent=torch.ones(s), prompt=PERSONAL) for s in shapes]), torch.Generator().manual_seed(0)
    seen = Counter(tuple(draw_batch(task, 4, LossConfig(), generator).latent.shape) for _ in range(200))
    assert set(seen) == {(4, *shape) for shape in shapes} and seen[4, 1, 2, 6] > seen[4, 1, 4, 4]


def test_a_batch_lives_in_the_precision_of_the_latents():
    task = gaussian_task(pictures=[Picture(latent=torch.ones(1, 2, 2, dtype=torch.float64), prompt=PERSONAL)])
    batch = draw_batch(task, 2, LossConfig(noise="independent"), torch.Generator())
    assert {t.dtype for t in (batch.latent, batch.noise, batch.alignment_noise, batch.sigma)} == {torch.float64}


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


# Optimizer


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
    batch = draw_batch(task, 2, loss, torch.Generator().manual_seed(3))
    expected = paper_step(task, batch, 1 / (1 + batch.sigma**2), loss)[0].item()
    (report,) = run(task, lora=[task.denoiser.personal], config=TrainConfig(steps=1, batch_size=2), loss=loss, seed=3)
    assert report.personalization == pytest.approx(expected)


# Instability


class Breaking(GaussianDenoiser):
    """Exact before its call of that number, NaN from there on, in value or only in gradient."""

    def __init__(self, call, *, gradient_only=False):
        super().__init__()
        self.last, self.gradient_only = call, gradient_only

    def forward(self, noised, sigma, queries):
        x0 = super().forward(noised, sigma, queries)
        if len(self.calls) < self.last:
            return x0
        return x0 + (self.shift - self.shift.detach()).abs().sqrt() if self.gradient_only else x0 * float("nan")


def broken(denoiser, loss):
    """The error of a run of five steps on it, and the parameter after each finished step and after the error."""
    task = gaussian_task(denoiser=denoiser)
    seen = []
    with pytest.raises(UnstableTrainingError) as error:
        for _ in train(task, [denoiser.shift], [], TrainConfig(steps=5, learning_rate=0.01), loss, torch.Generator()):
            seen.append(denoiser.shift.item())
    return SimpleNamespace(error=error.value, seen=seen, left=denoiser.shift.item())


NONE, PALP = LossConfig(method="none"), LossConfig()
BREAKS = pytest.mark.parametrize(
    ("denoiser", "loss"),
    [
        (lambda: Breaking(3), NONE),
        (lambda: Breaking(3, gradient_only=True), NONE),
        (lambda: Breaking(5), PALP),
        (lambda: Breaking(6), PALP),
    ],
    ids=["in the loss", "in the gradient", "in the estimate", "in the alignment"],
)


@BREAKS
def test_a_nan_stops_training_at_its_step(denoiser, loss):
    assert broken(denoiser(), loss).error.step == 3


@BREAKS
def test_a_nan_leaves_the_parameters_as_the_step_before_left_them(denoiser, loss):
    result = broken(denoiser(), loss)
    assert len(result.seen) == 2 and result.left == result.seen[-1]


def test_the_error_names_the_step_the_noise_level_and_what_to_change():
    denoiser = Breaking(3)
    error = broken(denoiser, NONE).error
    level = denoiser.calls[-1].sigma.max().item()
    assert isinstance(error, PalpError) and all(text in str(error) for text in ("step 3", f"noise level {level:.4g}", "learning_rate", "alignment_weight"))


# Half precision


class HalfDenoiser(GaussianDenoiser):
    """A network that computes in float16: its gradients vanish below 6e-8 and overflow above 65504."""

    def __init__(self, gain, dtype=torch.float16):
        super().__init__(dtype=dtype)
        self.gain = gain

    def forward(self, noised, sigma, queries):
        x0 = super().forward(noised, sigma, queries).detach()
        return x0 + self.gain * self.shift.half().expand(x0.shape).float()


def test_a_gradient_that_vanishes_in_half_precision_is_saved_by_loss_scaling():
    task = gaussian_task(denoiser=HalfDenoiser(1e-9))
    run(task, config=TrainConfig(steps=1, learning_rate=0.01), loss=NONE)
    assert task.denoiser.shift.item() != 0


def test_that_gradient_does_vanish_where_the_network_is_not_said_to_be_half():
    task = gaussian_task(denoiser=HalfDenoiser(1e-9, dtype=torch.float32))
    run(task, config=TrainConfig(steps=1, learning_rate=0.01), loss=NONE)
    assert task.denoiser.shift.item() == 0


def test_loss_scaling_changes_neither_the_path_nor_the_reports():
    full, half = (gaussian_task(denoiser=GaussianDenoiser(dtype=dtype)) for dtype in (torch.float32, torch.float16))
    reports = [run(task, config=TrainConfig(steps=4, learning_rate=0.01)) for task in (full, half)]
    said = [[(r.personalization, r.alignment, pytest.approx(r.gradient_norm)) for r in one] for one in reports]
    assert said[0] == said[1] and full.denoiser.shift.item() == pytest.approx(half.denoiser.shift.item(), rel=1e-6)


def test_an_overflow_of_the_scaled_gradient_skips_steps_until_the_scale_fits():
    task, seen = gaussian_task(denoiser=HalfDenoiser(30.0)), []
    for _ in train(task, [task.denoiser.shift], [], TrainConfig(steps=12, learning_rate=1e-3), NONE, torch.Generator()):
        seen.append(task.denoiser.shift.item())
    assert seen[0] == 0 and seen[-1] != 0


def test_a_half_precision_networks_nan_loss_still_stops_training():
    denoiser = Breaking(3)
    denoiser.dtype = torch.float16
    assert broken(denoiser, NONE).error.step == 3


def test_a_half_precision_networks_gradient_that_no_scale_makes_finite_stops_training():
    denoiser = Breaking(1, gradient_only=True)
    denoiser.dtype = torch.float16
    with pytest.raises(UnstableTrainingError):
        run(gaussian_task(denoiser=denoiser), config=TrainConfig(steps=100), loss=NONE)
