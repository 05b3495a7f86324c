"""After an exception at any point, a cancel and where memory runs out, the user's MODEL and CLIP are what they were, and the error says what to change."""

import itertools
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from host_calls import everything, sampled

pytestmark = pytest.mark.parametrize("models", ["sd15", "sdxl"], indirect=True, scope="module")


@contextmanager
def hooked(models, hook):
    """Within: the hook sees every call of the network; after, no cancel is left behind."""
    import comfy.model_management as mm

    handle = models.model.model.diffusion_model.time_embed.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
        mm.interrupt_current_processing(False)


@pytest.mark.parametrize("call", [1, 2, 3, 6])
def test_an_exception_inside_the_network_gives_everything_back(training, models, call):
    """The host raises in the middle of a forward pass when its user cancels, and when memory runs out."""
    module, job = training
    picture, before = sampled(models), everything(models)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt("in the middle of a forward pass")

    with hooked(models, fail), torch.inference_mode(), pytest.raises(KeyboardInterrupt):
        module.run(job)
    assert len(calls) == call
    assert everything(models) == before
    assert torch.equal(sampled(models), picture)


@contextmanager
def memory_running_out(models, calls):
    """Within: the network has no memory when it is called for one of these times, counted from 1, on real tensors."""
    count = itertools.count(1)

    def run_out(_layer, _args, output):
        if not output.is_meta and next(count) in calls:
            raise torch.OutOfMemoryError("in the middle of a pass")

    with hooked(models, run_out):
        yield


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"gradient_checkpointing": "off"}, "gradient_checkpointing"), ({"gradient_checkpointing": "on", "batch_size": 2}, "batch_size"), ({}, "resolution")],
)
def test_where_memory_runs_out_everything_is_given_back_and_the_error_names_what_to_change(training, models, pack, settings, name):
    module, job = training
    errors = import_module(f"{pack.__name__}.palp_train.errors")
    picture = sampled(models)
    with memory_running_out(models, range(6, 1000)), torch.inference_mode(), pytest.raises(errors.InputError, match=rf"^{name}: memory ran out"):
        module.run(replace(job, train=replace(job.train, **settings)))
    assert torch.equal(sampled(models), picture)


@pytest.mark.parametrize("call", [2, 3, 4, 5])
def test_where_memory_runs_out_once_the_step_is_made_again_with_less_and_nothing_is_lost(training, models, call):
    module, job = training
    with torch.inference_mode():
        expected = module.run(job)
        with memory_running_out(models, [call]):
            outcome = module.run(job)
    assert [step.personalization for step in outcome.steps] == pytest.approx([step.personalization for step in expected.steps], rel=1e-4)
    assert (expected.plan.rows, outcome.plan.rows) == (None, 2)


def test_a_cancel_stops_within_a_step_and_gives_everything_back(training, models):
    import comfy.model_management as mm

    module, job = training
    before = everything(models)
    steps = []

    def cancel_in_the_first_step(*_):
        steps.append(1)
        mm.interrupt_current_processing(True)

    with hooked(models, cancel_in_the_first_step), torch.inference_mode(), pytest.raises(mm.InterruptProcessingException):
        module.run(job)
    assert len(steps) <= 2  # the training pass and the alignment pass of one step
    assert everything(models) == before


def test_a_cancel_while_memory_is_foreseen_stops_before_any_step(training, models):
    import comfy.model_management as mm

    module, job = training
    job = replace(job, train=replace(job.train, batch_size=3))  # of which nothing has been foreseen before
    before, trained = everything(models), []

    def cancel_in_the_trace(_layer, _args, output):
        if output.is_meta:
            mm.interrupt_current_processing(True)
        elif torch.is_grad_enabled():
            trained.append(1)

    with hooked(models, cancel_in_the_trace), torch.inference_mode(), pytest.raises(mm.InterruptProcessingException):
        module.run(job)
    assert not trained
    assert everything(models) == before


def test_a_failure_of_the_device_is_not_blamed_on_the_clip(training, models):
    module, job = training

    def fail(*_):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    with hooked(models, fail), torch.inference_mode(), pytest.raises(RuntimeError, match=r"^CUDA error"):
        module.run(job)
