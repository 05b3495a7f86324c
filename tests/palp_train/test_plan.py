"""Plans: every one computes the same step, takes what it says at once, and is left for the next where memory runs out."""

import itertools
from dataclasses import replace

import pytest
import torch
from small_models import CLEAN, EMPTY, PERSONAL, NetworkDenoiser, SmallEncoder
from torch import nn

from palp_train.batch import Picture
from palp_train.config import LossConfig, TrainConfig
from palp_train.denoiser import EpsilonPrediction, Query
from palp_train.errors import is_out_of_memory
from palp_train.plan import FASTEST, Plan, in_parts, plans
from palp_train.prompts import PromptSet
from palp_train.trainer import Task, train


class LimitedDenoiser(nn.Module):
    """Has memory for so many rows, and notes what it is asked: (rows, whether with gradient)."""

    def __init__(self, network, *, rows_with_gradient=100, rows_without=100):
        super().__init__()
        self.network, self.limits, self.asked = network, {True: rows_with_gradient, False: rows_without}, []
        self.sigmas, self.parametrization, self.dtype = network.sigmas, network.parametrization, network.dtype

    def forward(self, noised, sigma, queries):
        self.asked.append((len(queries), torch.is_grad_enabled()))
        if len(queries) > self.limits[torch.is_grad_enabled()]:
            raise torch.OutOfMemoryError(f"no memory for {len(queries)} rows")
        return self.network(noised, sigma, queries)


def task_of(network, checkpointed=None):
    generator = torch.Generator().manual_seed(5)
    pictures = [Picture(latent=torch.randn(2, 3, 3, generator=generator, dtype=torch.float64), prompt=PERSONAL) for _ in range(2)]
    prompts = PromptSet(target="a sketch of [V]", clean=CLEAN, negative=EMPTY)
    return Task(denoiser=network, checkpointed=checkpointed, text_encoder=SmallEncoder(), pictures=pictures, prompts=prompts)


def run(task, network, possible, **train_settings):
    config = TrainConfig(**{"steps": 3, "batch_size": 2, **train_settings})
    return list(train(task, [network.personal], [task.text_encoder.word], config, LossConfig(), torch.Generator().manual_seed(0), possible))


def learned(possible, limits=None, **train_settings):
    """(the LoRA, the word, reports, what the denoiser was asked) of a run."""
    network = NetworkDenoiser(EpsilonPrediction())
    limited = LimitedDenoiser(network, **(limits or {}))
    task = task_of(limited, checkpointed=LimitedDenoiser(network))
    reports = run(task, network, possible, **train_settings)
    return network.personal.detach(), task.text_encoder.word.detach(), reports, limited.asked


def test_auto_goes_from_the_fastest_plan_to_the_leanest():
    assert plans("auto", 4) == [
        FASTEST,
        Plan(rows=2),
        Plan(rows=1),
        Plan(estimate_first=True),
        Plan(estimate_first=True, rows=2),
        Plan(estimate_first=True, rows=1),
        Plan(checkpointing=True),
        Plan(checkpointing=True, rows=2),
        Plan(checkpointing=True, rows=1),
    ]


def test_on_and_off_are_what_auto_chooses_from():
    assert plans("off", 6) + plans("on", 6) == plans("auto", 6)
    assert not any(plan.checkpointing for plan in plans("off", 6)) and all(plan.checkpointing for plan in plans("on", 6))


def test_without_an_alignment_branch_there_is_nothing_to_divide():
    assert plans("auto", 0) == [FASTEST, Plan(checkpointing=True)]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_parts_give_what_the_whole_gives_and_are_no_larger_than_asked(rows):
    whole = LimitedDenoiser(NetworkDenoiser(EpsilonPrediction()))
    noised, sigma, encode = torch.randn(5, 2, 3, 3, dtype=torch.float64), whole.sigmas[[1, 200, 400, 600, 999]], SmallEncoder()
    queries = [Query(conditioning=encode(f"prompt {row}"), personalized=row % 2 == 0) for row in range(5)]
    torch.testing.assert_close(in_parts(whole, rows)(noised, sigma, queries), whole(noised, sigma, queries))
    assert max(count for count, _ in whole.asked[:-1]) == min(rows, 5)


@pytest.mark.parametrize("plan", plans("auto", 8), ids=str)
def test_every_plan_trains_the_same(plan):
    lora, word, reports, _ = learned([plan])
    expected_lora, expected_word, expected, _ = learned([FASTEST])
    torch.testing.assert_close((lora, word), (expected_lora, expected_word))
    assert [report.plan for report in reports] == [plan] * 3
    assert [report.alignment for report in reports] == pytest.approx([report.alignment for report in expected])


def test_estimating_first_is_one_pass_more_and_keeps_nothing_during_the_alignment():
    assert [grad for _, grad in learned([Plan(estimate_first=True)])[3][:3]] == [False, False, True]
    assert [grad for _, grad in learned([FASTEST])[3][:2]] == [True, False]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_where_memory_runs_out_the_step_is_made_again_by_halves_and_nothing_is_lost(accumulation):
    lora, word, reports, asked = learned(plans("auto", 8), {"rows_without": 2}, gradient_accumulation=accumulation)
    expected_lora, expected_word, _, _ = learned([FASTEST], gradient_accumulation=accumulation)
    torch.testing.assert_close((lora, word), (expected_lora, expected_word))
    assert [report.plan for report in reports] == [Plan(rows=2)] * 3
    assert [rows for rows, grad in asked if not grad][:4] == [8, 4, 2, 2]


def test_gradients_of_a_step_that_failed_half_way_are_forgotten():
    """Memory runs out on the second of three batches, when the first has left its gradient."""
    network, calls = NetworkDenoiser(EpsilonPrediction()), itertools.count(1)
    task = task_of(network)
    encode = task.text_encoder

    def runs_out_once(prompt):
        if next(calls) == 4:  # two constant prompts, the first batch's, the second's
            raise torch.OutOfMemoryError("once")
        return encode(prompt)

    failing = replace(task, text_encoder=runs_out_once)
    config, loss = TrainConfig(steps=1, batch_size=2, gradient_accumulation=3), LossConfig()
    found = list(train(failing, [network.personal], [encode.word], config, loss, torch.Generator().manual_seed(0), plans("auto", 8)))
    assert found[0].plan == Plan(rows=4)
    expected = learned([FASTEST], gradient_accumulation=3, steps=1)[2]
    assert found[0].gradient_norm == pytest.approx(expected[0].gradient_norm)


def test_where_the_training_pass_itself_runs_out_its_blocks_are_recomputed():
    reports = learned(plans("auto", 8), {"rows_with_gradient": 1})[2]
    assert reports[0].plan == Plan(checkpointing=True)


def test_a_plan_that_failed_is_not_tried_again():
    asked = learned(plans("auto", 8), {"rows_without": 4})[3]
    assert [rows for rows, _ in asked].count(8) == 1


def test_where_the_last_plan_runs_out_too_the_error_goes_on():
    with pytest.raises(torch.OutOfMemoryError):
        learned(plans("off", 8), {"rows_with_gradient": 0})


def test_other_errors_are_not_taken_for_missing_memory():
    network = NetworkDenoiser(EpsilonPrediction())
    task = replace(task_of(network), text_encoder=SmallEncoder(text=4))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(task, network, plans("auto", 8))


def test_pytorchs_own_word_for_missing_memory_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError("shapes differ"))
