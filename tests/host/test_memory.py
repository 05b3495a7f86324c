"""What a step takes: traced without data as it is in truth, and the plan, the report and the refusals that follow from it."""

import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from host_calls import family, portrait, train
from trainable import FAMILIES

GIB = 2**30


@contextmanager
def step_memory(part, models, *, side=None, teacher=None, loss=None, device=None, **train_settings):
    """The ``StepMemory`` and the task of a tiny model in a session, as the training node makes them, and the LoRA."""
    import tiny_families

    families, config, trainer, text = (part(name) for name in ("nodes.host.families", "palp_train.config", "palp_train.trainer", "nodes.host.text_encoder"))
    prompts, host, settings = part("palp_train.prompts"), part("nodes.host.denoiser"), config.TrainConfig(rank=4, **train_settings)
    shape = tiny_families.latent_shape(models.model)
    latent = torch.zeros(*shape[:-2], side or shape[-2], side or shape[-1], device=models.model.load_device)
    with part("nodes.host.session").training_session(models.model, models.clip, teacher, settings.precision) as held:
        network = held.model.model.diffusion_model
        with part("palp_train.lora").injected_lora(network, families.adapted_layers(network, "attention"), 4, torch.Generator()) as lora:
            denoiser, checkpointed = part("nodes.host.training").trainable_denoisers(held.model, lora)
            task = trainer.Task(
                denoiser=denoiser,
                checkpointed=checkpointed,
                text_encoder=text.HostTextEncoder(held.clip, []),
                pictures=[trainer.Picture(latent=latent, prompt="a photo of a cat")],
                prompts=prompts.prompt_set([prompts.Subject()], "a sketch of [V] in Paris"),
                teacher=teacher and trainer.Teacher(denoiser=host.HostDenoiser(held.teacher), text_encoder=text.HostTextEncoder(held.clip, [])),
            )
            loss_config = config.LossConfig(**(loss or {}))
            yield part("nodes.host.memory").StepMemory(task, held.networks, settings, loss_config, device), task, lora


def forget(part):
    """What was foreseen is not remembered any more."""
    foreseen = part("nodes.host.foreseen")
    foreseen._found.clear()
    foreseen._path().unlink(missing_ok=True)


@contextmanager
def network_calls(models):
    """A list that grows by one at each call of the network."""
    calls = []
    handle = models.model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def counted_step(part, task, lora, plan):
    """Bytes that the trainer's own step takes on real tensors, by plan."""
    trainer, config = part("palp_train.trainer"), part("palp_train.config")
    loss, train_settings = config.LossConfig(), config.TrainConfig(steps=1, batch_size=2)
    constant = trainer.constant_conditionings(task, loss)
    batch = trainer.draw_batch(task.pictures, 2, task.denoiser.sigmas.tolist(), torch.Generator().manual_seed(0))
    trainer.step_losses(task, batch, constant, loss, align=True)  # what the host makes once and keeps is made now
    optimizer = part("palp_train.optimizer").FiniteAdam(lora.parameters(), [], train_settings, half=False)
    with part("palp_train.tracing").LiveMemory() as live:
        losses = trainer.step_losses(task, batch, constant, loss, align=True, plan=plan)
        optimizer.backward(torch.add(losses.personalization, losses.alignment, alpha=loss.alignment_weight))
        del losses
    for parameter in lora.parameters():
        parameter.grad = None
    return live.peak


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_traced_without_data_is_what_a_step_takes(part, pack, name):
    models, plans = family(name), part("palp_train.plan")
    with step_memory(part, models, side=None if name == "pixart" else 16, batch_size=2) as (memory, task, lora):
        for plan in (plans.FASTEST, plans.Plan(rows=1), plans.Plan(estimate_first=True), plans.Plan(checkpointing=True)):
            optimizer = sum(8 * p.numel() for p in lora.parameters())
            assert memory.peak(plan) - optimizer == pytest.approx(counted_step(part, task, lora, plan), rel=0.1), plan


def test_tracing_leaves_the_network_as_it_was(part, models):
    with step_memory(part, models, side=24) as (memory, _, _):
        network = memory._networks[0]
        before = portrait(network)
        memory.peak(part("palp_train.plan").Plan(checkpointing=True, rows=1))
        assert portrait(network) == before


def test_the_text_encoders_graph_is_not_held_while_training(part, models):
    with step_memory(part, models, side=24) as (memory, _, _):
        held = [*memory._prompts.personal[0].values(), *(cond.cond for inputs in memory._inputs.values() for cond in inputs.values())]
        assert all(value.grad_fn is None for value in held if isinstance(value, torch.Tensor))


def test_gradients_that_wait_for_the_next_batch_count(part, models):
    memories = []
    for accumulation in (1, 2):
        with step_memory(part, models, side=24, gradient_accumulation=accumulation) as (memory, _, lora):
            memories.append(memory.peak(part("palp_train.plan").FASTEST))
            trained = sum(p.numel() for p in lora.parameters())
    assert memories[1] - memories[0] == 4 * trained


def test_the_users_patches_never_see_tensors_without_data(part, models):
    """They may keep what they are given, as those do that make a mask for each size once."""
    seen = []

    def patch(q, k, v, _options):
        seen.append(q.is_meta)
        return q, k, v

    patched = models.model.clone()
    patched.set_model_attn1_patch(patch)
    with step_memory(part, replace(models, model=patched), side=28) as (memory, task, lora):
        memory.peak(part("palp_train.plan").FASTEST)
        assert not seen
        counted_step(part, task, lora, part("palp_train.plan").FASTEST)
        assert seen and not any(seen)


def test_what_was_traced_for_one_loss_is_not_taken_for_another(part, models):
    import tiny_models

    teacher, found = tiny_models.sd15(seed=1).model, {}
    losses = [dict(alignment_scale=1.0, personalization_scale=1.0), dict(method="sds"), dict(alignment_scale=1.0), dict(personalization_scale=1.0)]
    for order in (losses, losses[::-1]):
        forget(part)
        peaks = []
        for loss in order:
            with step_memory(part, models, side=32, teacher=teacher, loss=loss) as (memory, _, _):
                peaks.append(memory._alignment(None).peak)
        found[len(found)] = peaks
    assert found[0] == found[1][::-1]


def test_aligning_takes_no_more_than_plain_training_where_the_estimate_is_made_first(part, models):
    with step_memory(part, models, side=32) as (memory, _, _):
        plan = part("palp_train.plan").Plan
        plain = memory._training_pass(False).peak
        assert memory.peak(plan(estimate_first=True)) <= 1.02 * (plain + memory.fixed)
        assert memory.peak(plan()) > memory.peak(plan(rows=2)) > memory.peak(plan(rows=1)) > memory.peak(plan(estimate_first=True))
        assert memory.peak(plan(checkpointing=True)) < memory.peak(plan(rows=1))


def test_the_fastest_plan_that_fits_is_chosen_and_leaner_ones_are_kept_for_later(part, models):
    memory_module, config, plans = part("nodes.host.memory"), part("palp_train.config"), part("palp_train.plan")
    with step_memory(part, models, side=32) as (memory, _, _):
        possible = plans.plans("auto", 4)
        for number in (0, 1, 3, 8):
            free = memory_module.MARGIN * memory.peak(possible[number])
            chosen, needed = memory_module.planned(memory, config.TrainConfig(), config.LossConfig(), free, "cuda")
            assert chosen == possible[number:] and needed == memory.peak(possible[number])


@pytest.mark.parametrize(
    ("settings", "name", "advice"),
    [
        ({"gradient_checkpointing": "off"}, "gradient_checkpointing", "Set it to auto"),
        ({"batch_size": 4}, "batch_size", "Set it to 1, where a step needs about .* GiB, and gradient_accumulation 4 times as high"),
        ({"resolution": 512}, "resolution", r"Set it to (64|128|192|256|320|384|448)\."),
    ],
)
def test_where_nothing_fits_the_error_names_the_numbers_and_the_setting_that_helps_most(part, models, settings, name, advice):
    memory_module, config, errors = part("nodes.host.memory"), part("palp_train.config"), part("palp_train.errors")
    with step_memory(part, models, side=32, **settings) as (memory, _, _):
        free = 0.5 * memory.peak(part("palp_train.plan").Plan(checkpointing=settings.get("gradient_checkpointing") != "off", rows=1))
        with pytest.raises(errors.InputError, match=rf"^{name}: .*needs .* GiB beside the models, and .* GiB are free. {advice}"):
            memory_module.planned(memory, config.TrainConfig(**settings), config.LossConfig(), free, "cuda")


@pytest.mark.parametrize("read", [lambda output: float(output.mean()), lambda output: output.numpy(), lambda output: output.is_shown])
def test_a_model_that_cannot_be_traced_is_trained_by_what_fits(part, models, caplog, read):
    memory_module, config, plans = part("nodes.host.memory"), part("palp_train.config"), part("palp_train.plan")

    def reads_data(_layer, _args, output):
        read(output)  # as a network does that chooses by what it computes, or asks for what tensors without data have not

    with step_memory(part, models, side=40) as (memory, _, _):
        handle = models.model.model.diffusion_model.time_embed.register_forward_hook(reads_data)
        try:
            chosen, needed = memory_module.planned(memory, config.TrainConfig(), config.LossConfig(), GIB, "cpu")
        finally:
            handle.remove()
    assert chosen == plans.plans("auto", 4) and needed is None and "cannot be foreseen" in caplog.text


def test_the_report_says_what_was_expected_and_how_steps_were_made(nodes, models, output):
    report = train(nodes, models)[3]
    assert re.search(r"peak memory [\d.]+ GiB \([\d.]+ GiB expected\)", report)
    assert "gradient checkpointing off; alignment after the training pass, all its predictions at once" in report


@pytest.mark.parametrize("restart", [False, True])
def test_a_step_that_has_been_traced_once_is_not_traced_again(part, models, restart):
    plan, peaks, counts = part("palp_train.plan").FASTEST, [], []
    forget(part)
    with network_calls(models) as calls:
        for _ in range(2):
            with step_memory(part, models, side=48) as (memory, _, _):
                before = len(calls)
                peaks.append(memory.peak(plan))
                counts.append(len(calls) - before)
            if restart:  # what remains then is the file
                part("nodes.host.foreseen")._found.clear()
    assert peaks[0] == peaks[1] and counts[0] > 0 and counts[1] == 0


def test_what_was_not_traced_to_its_end_is_not_remembered(part, models):
    def interrupt(*_):
        raise KeyboardInterrupt

    forget(part)
    with step_memory(part, models, side=40) as (memory, _, _):
        handle = models.model.model.diffusion_model.time_embed.register_forward_hook(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                memory.peak(part("palp_train.plan").FASTEST)
        finally:
            handle.remove()
    foreseen = part("nodes.host.foreseen")
    assert not foreseen._found and not foreseen._path().exists()


def test_what_was_found_for_one_device_is_not_taken_for_another(part, models):
    found = {}
    for device in (None, "cpu", "cuda"):
        with step_memory(part, models, device=device) as (memory, _, _):
            found[device] = memory._depends_on
    own = memory._picture.latent.device.type
    assert found["cpu"] != found["cuda"] and found[None] == found[own]


def test_no_alignment_is_traced_for_plans_whose_training_pass_alone_does_not_fit(part, models):
    memory_module, config, plan = part("nodes.host.memory"), part("palp_train.config"), part("palp_train.plan").Plan
    with network_calls(models) as calls, step_memory(part, models, side=32) as (memory, _, _):
        forget(part)
        enough_for_checkpointing = memory_module.MARGIN * memory.peak(plan(checkpointing=True))
        assert memory.least(plan()) > enough_for_checkpointing
        forget(part)
        before = len(calls)
        settings = config.TrainConfig(), config.LossConfig()
        chosen, _ = memory_module.planned(memory, *settings, enough_for_checkpointing, "cuda")
    assert chosen[0] == plan(checkpointing=True)
    training, checkpointed_training, alignment = 1, 1, 1
    assert len(calls) - before == training + checkpointed_training + alignment


@pytest.mark.parametrize("name", ["lumina2", "sd15"])
def test_a_step_on_cuda_takes_less_where_a_network_norms_in_16_bits_by_root_mean_squares(part, pack, name):
    models, plan, kept = family(name), part("palp_train.plan").FASTEST, {}
    for device in ("cpu", "cuda"):
        with step_memory(part, models, side=16, device=device, precision="bf16") as (memory, _, _):
            kept[device] = memory.peak(plan)
    has_norms = any(type(module).__name__ == "RMSNorm" for module in models.model.model.diffusion_model.modules())
    assert has_norms == (name == "lumina2")
    assert (kept["cuda"] < kept["cpu"]) == has_norms


def test_a_run_with_a_teacher_is_foreseen_too(nodes, models, output):
    import tiny_models

    assert "GiB expected" in train(nodes, models, teacher_model=tiny_models.sd15(seed=1).model)[3]
