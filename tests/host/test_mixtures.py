"""Every precision, and random legal mixtures of all settings, on the host's own classes."""

import pytest
import torch
from host_calls import SETTINGS, everything, family, sampled, subject, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Precision


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_every_precision_trains_float32_weights_without_nan_and_gives_everything_back(nodes, output, stored, precision):
    import tiny_models

    models = tiny_models.sd15(stored)
    sampled(models)
    before, (palp_lora, _, losses, report) = everything(models), train(nodes, models, precision=precision, learning_rate=1e-3, word_learning_rate=1e-3)
    assert everything(models) == before
    assert all(0 < loss < 100 for loss in losses["loss"])
    assert {tensor.dtype for tensor in palp_lora.tensors().values()} == {torch.float32}
    computed = {"auto": stored, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert f"Computed in {str(computed).removeprefix('torch.')}" in report


def test_weights_stored_in_fp8_train_through_the_hosts_cast(nodes, output):
    import comfy.ops
    import tiny_models

    models = tiny_models.sd15(torch.float8_e4m3fn, operations=comfy.ops.manual_cast)
    models.model.model.manual_cast_dtype = torch.float32
    before = sampled(models)
    losses = train(nodes, models)[2]["loss"]
    assert all(0 < loss < 100 for loss in losses)
    assert torch.equal(sampled(models), before)


# Mixtures


@st.composite
def legal_settings(draw):
    """Random settings of both configurations, small enough for two quick steps."""
    start = draw(st.floats(0, 0.9))
    loss = dict(
        method=draw(st.sampled_from(["palp", "sds", "nfsd", "none"])),
        alignment_scale=draw(st.sampled_from([0.0, 1.0, 7.5, 15.0])),
        personalization_scale=draw(st.sampled_from([0.0, 1.0, 7.5])),
        alignment_weight=draw(st.sampled_from([0.0, 0.5, 2.0])),
        noise=draw(st.sampled_from(["same", "independent"])),
        rescale=draw(st.booleans()),
        start_percent=start,
        end_percent=draw(st.floats(start + 0.01, 1.0)),
        every=draw(st.integers(1, 3)),
    )
    run = dict(
        rank=draw(st.sampled_from([1, 4, 33])),
        batch_size=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**64 - 1)),
        word_vectors=draw(st.integers(0, 3)),
        gradient_accumulation=draw(st.integers(1, 2)),
        resolution=draw(st.sampled_from([64, 96])),
        layers=draw(st.sampled_from(["attention", "all linear"])),
        precision=draw(st.sampled_from(["auto", "fp32", "bf16"])),
        gradient_checkpointing=draw(st.sampled_from(["auto", "on", "off"])),
    )
    extras = dict(masked=draw(st.booleans()), chained=draw(st.booleans()), taught=draw(st.booleans()), clean=draw(st.sampled_from(["", "a fine cat"])))
    return loss, run, extras


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=legal_settings())
def test_any_legal_settings_train_two_steps_and_give_everything_back(nodes, models, output, chosen):
    loss, run, extras = chosen
    taught = subject(nodes, images=[torch.rand(1, 64, 48, 3), torch.rand(1, 40, 64, 3)], **({"masks": [torch.rand(2, 40, 40)]} if extras["masked"] else {}))
    if extras["chained"]:
        taught = subject(nodes, placeholder="sks", class_word="toy", personalization_prompt="a sks", previous=[taught])
    before = everything(models)
    results = train(
        nodes,
        models,
        **{**SETTINGS, "steps": 2, **run},
        subject=taught,
        target_prompt="[V] by sks" if extras["chained"] else "[V]",
        clean_prompt=extras["clean"],
        loss=nodes.PalpLossConfig.execute(**loss)[0],
        **({"teacher_model": family("sd15").model} if extras["taught"] else {}),
    )
    assert everything(models) == before
    assert len(results[2]["loss"]) == 2 and results[0].file
