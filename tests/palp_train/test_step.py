"""One training step: against the paper's notation in float64, what it asks of the network, and when it aligns."""

from dataclasses import replace

import pytest
import torch
from small_models import CLEAN, EMPTY, PERSONAL, GaussianDenoiser, per_row, sd_sigmas
from training_runs import FIVE, PAINTING, batch_at, calls_of_each_step, drawn, gaussian_task, network_task, paper_step, run

from palp_train.alignment import NFSD_NEGATIVE_PROMPT
from palp_train.batch import Picture
from palp_train.config import LossConfig, TrainConfig
from palp_train.denoiser import EpsilonPrediction, Query, VelocityPrediction
from palp_train.trainer import Teacher, aligned_rows, constant_conditionings, step_losses

# One step against the paper


@pytest.mark.parametrize("parametrization", [EpsilonPrediction(), VelocityPrediction()], ids=["eps", "v"])
@pytest.mark.parametrize("method", ["palp", "sds", "nfsd"])
@pytest.mark.parametrize("noise", ["same", "independent"])
@pytest.mark.parametrize("rescale", [True, False], ids=["rescaled", "plain"])
def test_a_step_has_the_losses_and_the_gradient_of_the_papers_step(parametrization, method, noise, rescale):
    config = LossConfig(method=method, noise=noise, rescale=rescale, alignment_weight=0.7)
    task = network_task(parametrization)
    batch = drawn(task, 5, config, torch.Generator().manual_seed(2))
    model, encode = task.denoiser, task.text_encoder
    expected_loss, expected_size, expected = paper_step(task, batch, 1 / (1 + batch.sigma**2), config)

    made = step_losses(task, batch, constant_conditionings(task, config), config, align=True)
    found = torch.autograd.grad(made.personalization + config.alignment_weight * made.alignment, [model.personal, encode.word])
    torch.testing.assert_close([made.personalization, made.alignment_size, *found], [expected_loss, expected_size, *expected])


def test_train_reports_the_gradient_norm_of_each_step_alone():
    loss, config = LossConfig(alignment_weight=0.7), TrainConfig(steps=4, batch_size=2, learning_rate=1e-8, word_learning_rate=1e-8)
    task, replayed, generator = network_task(EpsilonPrediction()), [], torch.Generator().manual_seed(9)
    for _ in range(config.steps):
        batch = drawn(task, 2, loss, generator)
        _, _, gradients = paper_step(task, batch, 1 / (1 + batch.sigma**2), loss)
        replayed.append(torch.cat([g.flatten() for g in gradients]).norm().item())
    reports = run(task, lora=[task.denoiser.personal], words=[task.text_encoder.word], config=config, loss=loss, seed=9)
    assert [report.gradient_norm for report in reports] == pytest.approx(replayed, rel=1e-5)


def test_accumulated_gradients_are_the_mean_of_the_batches_own():
    loss, config = LossConfig(alignment_weight=0.7), TrainConfig(steps=2, batch_size=2, gradient_accumulation=3, learning_rate=1e-8, word_learning_rate=1e-8)
    task, expected, generator = network_task(EpsilonPrediction()), [], torch.Generator().manual_seed(9)
    for _ in range(config.steps):
        batches = [drawn(task, 2, loss, generator) for _ in range(3)]
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
    batch = drawn(task, 3, config, torch.Generator().manual_seed(2))
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
    batch = drawn(task, 3, loss, torch.Generator().manual_seed(4))
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
def test_only_noise_levels_between_start_and_end_percent_are_aligned(start, end, aligned):
    rows = aligned_rows(batch_at(FIVE), LossConfig(start_percent=start, end_percent=end))
    assert [FIVE[row] for row in rows] == aligned


def test_the_whole_default_schedule_of_stable_diffusion_is_aligned():
    task = gaussian_task(denoiser=GaussianDenoiser(sigmas=sd_sigmas()))
    batch = drawn(task, 5000, LossConfig(), torch.Generator())
    assert {0.0, 1.0} < set(batch.positions)  # both ends were drawn
    assert aligned_rows(batch, LossConfig()) == list(range(5000))


def test_a_step_outside_the_chosen_part_of_the_schedule_makes_no_alignment_pass():
    task = gaussian_task(denoiser=GaussianDenoiser(sigmas=FIVE))
    assert calls_of_each_step(task, 3, LossConfig(start_percent=0.6, end_percent=0.7)) == [1, 1, 1]


@pytest.mark.parametrize("levels", [(0.4, 20.0), (20.0, 0.4)])
def test_rows_outside_the_chosen_part_of_the_schedule_get_no_alignment_gradient(levels):
    loss = LossConfig(start_percent=0.5, alignment_scale=1.0, personalization_scale=1.0)
    task = gaussian_task(denoiser=GaussianDenoiser(sigmas=FIVE))
    constant = constant_conditionings(task, loss)

    def gradient(batch):
        losses = step_losses(task, batch, constant, loss, align=True)
        return torch.autograd.grad(losses.alignment, task.denoiser.shift)[0]

    both, inside = gradient(batch_at(levels, value=1.0)), gradient(batch_at((0.4,), value=1.0))
    torch.testing.assert_close(2 * both, inside)


def test_the_network_is_asked_only_for_rows_within_the_chosen_part_of_the_schedule():
    task, loss = gaussian_task(denoiser=GaussianDenoiser(sigmas=FIVE)), LossConfig(start_percent=0.5)
    batch = batch_at((8.0, 0.4, 20.0, 3.0), prompts=[PERSONAL, PAINTING, PERSONAL, PAINTING])
    step_losses(task, batch, constant_conditionings(task, loss), loss, align=True)
    training, alignment = task.denoiser.calls
    assert len(training.queries) == 4 and len(alignment.queries) == 4 * 2
    assert [q.conditioning["prompt"] for q in alignment.queries if q.personalized][:2] == [PAINTING, PAINTING]
