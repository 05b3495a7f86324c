"""Every setting on the host's own classes: samplings, masks, several subjects, teachers, precisions, and random legal mixtures of all."""

import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from host_calls import SETTINGS, denoised, encoded, everything, sampled, subject, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def part(pack):
    return lambda name: import_module(f"{pack.__name__}.{name}")


@pytest.fixture(scope="module")
def models(pack):
    import tiny_models

    made = tiny_models.sd15()
    sampled(made)
    return made


def family(name, **arguments):
    import tiny_families

    return tiny_families.FAMILIES[name](**arguments)


# Samplings that users patch in


def patched(models, node, *arguments):
    """The models with the MODEL that one of the host's ModelSampling nodes makes of theirs."""
    import comfy_extras.nodes_model_advanced as advanced

    with torch.inference_mode():
        return replace(models, model=getattr(advanced, node)().patch(models.model, *arguments)[0])


def eps(x, noise, sigma):
    return noise


def v(x, noise, sigma, s=1.0):
    """Salimans & Ho 2022 with data of deviation s: at s = 1, alpha noise - sigma' x, where alpha^2 + sigma'^2 = 1."""
    return (s * noise - sigma / s * x) / (s**2 + sigma**2).sqrt()


def edm(x, noise, sigma, s=0.5):
    """Karras et al. 2022: (x - c_skip noised) / c_out."""
    return (x - s**2 / (sigma**2 + s**2) * (x + sigma * noise)) * (sigma**2 + s**2).sqrt() / (sigma * s)


def image(x, noise, sigma):
    return x


def velocity(x, noise, sigma):
    return noise - x


SAMPLINGS = {
    "eps": ("sd15", eps, None),
    "v": ("sd15-v", v, None),
    "eps, zero terminal SNR": ("sd15", eps, ("ModelSamplingDiscrete", "eps", True)),
    "v, zero terminal SNR": ("sd15", v, ("ModelSamplingDiscrete", "v_prediction", True)),
    "the consistency sampling, whose boundary its schedule leaves out": ("sd15", eps, ("ModelSamplingDiscrete", "lcm", False)),
    "x0": ("sd15", image, ("ModelSamplingDiscrete", "x0", False)),
    "continuous v": ("sd15", v, ("ModelSamplingContinuousEDM", "v_prediction", 80.0, 0.002)),
    "continuous eps": ("sd15", eps, ("ModelSamplingContinuousEDM", "eps", 80.0, 0.002)),
    "EDM": ("sd15", edm, ("ModelSamplingContinuousEDM", "edm", 80.0, 0.002)),
    "EDM of Playground 2.5": ("sdxl", edm, ("ModelSamplingContinuousEDM", "edm_playground_v2.5", 80.0, 0.002)),
    "flow": ("sd3", velocity, None),
    "flow, shifted": ("sd3", velocity, ("ModelSamplingSD3", 9.0)),
    "flow of AuraFlow, shifted": ("auraflow", velocity, ("ModelSamplingAuraFlow", 5.0)),
    "flow of Flux, shifted": ("flux", velocity, ("ModelSamplingFlux", 1.15, 0.5, 1024, 1024)),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_personalization_loss_is_the_one_that_the_networks_raw_output_was_trained_with(part, name):
    tiny, target, patch = SAMPLINGS[name]
    models = family(tiny)
    models = patched(models, *patch) if patch else models
    method, seen, generator = part("palp_train.denoiser"), [], torch.Generator().manual_seed(0)
    import tiny_families

    with part("nodes.host.session").training_session(models.model, models.clip) as held, torch.no_grad():
        denoiser = part("nodes.host.denoiser").HostDenoiser(held.model)
        conditioning = part("nodes.host.text_encoder").HostTextEncoder(held.clip, [])("a cat")
        x, noise = torch.randn(2, 3, *tiny_families.latent_shape(models.model), generator=generator).double()
        sigma = denoiser.sigmas[[len(denoiser.sigmas) * part // 10 for part in (1, 5, 9)]].double()
        handle = held.model.model.diffusion_model.register_forward_hook(lambda *all: seen.append(all[-1]))
        noised = method.add_noise(x, noise, sigma, denoiser.parametrization)
        denoised = denoiser(noised, sigma, [method.Query(conditioning=conditioning, personalized=False)] * 3)
        handle.remove()
        loss = part("palp_train.losses").personalization_loss(denoised, x, sigma, denoiser.parametrization)
    expected = (seen[0].double() - target(x, noise, method.per_sample(sigma, x))).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, (_, _, patch) in SAMPLINGS.items() if patch])
def test_a_model_with_a_patched_sampling_trains(nodes, output, name):
    tiny, _, patch = SAMPLINGS[name]
    losses = train(nodes, patched(family(tiny), *patch))[2]["loss"]
    assert len(losses) == 3 and all(0 < loss < 1e4 for loss in losses)


@pytest.mark.parametrize(
    "patch",
    [("ModelSamplingDiscrete", "img_to_img", False), ("ModelSamplingContinuousEDM", "cosmos_rflow", 80.0, 0.002)],
    ids=lambda patch: patch[1],
)
def test_a_sampling_that_is_none_of_these_is_refused(nodes, models, errors, output, patch):
    with pytest.raises(errors.InputError, match=r"^model: its sampling"):
        train(nodes, patched(models, *patch))


def test_the_refiner_and_models_that_take_a_picture_are_refused_by_name(nodes, models, errors, output):
    import comfy.model_base
    import comfy.supported_models
    import tiny_models

    with torch.inference_mode():
        unet = tiny_models._unet(model_channels=64, context_dim=48, use_linear_in_transformer=True, adm_in_channels=48 + 5 * 256, num_classes="sequential")
        refiner = comfy.model_base.SDXLRefiner(comfy.supported_models.SDXLRefiner(unet | {"dtype": torch.float32}))
    with pytest.raises(errors.InputError, match=r"^model: an SDXL refiner cannot be trained"):
        train(nodes, replace(models, model=tiny_models._patcher(refiner, 0)))


# Masks and subjects


def test_a_mask_follows_its_picture_and_has_mean_one(part, models):
    pictures = part("nodes.host.pictures")
    mask = torch.zeros(1, 100, 50)
    mask[:, :50] = 1
    (image,), (scaled,) = (
        pictures.checked_pictures([torch.rand(1, 200, 100, 3)]),
        pictures.checked_masks([mask], pictures.checked_pictures([torch.rand(1, 200, 100, 3)])),
    )
    assert scaled.shape == (200, 100)
    (latent,) = pictures.encode_pictures(models.vae, models.model, [image], 96)
    weight = pictures.mask_weight(models.vae, scaled, latent, 96)
    assert weight.shape == (1, *latent.shape[1:]) and weight.mean().item() == pytest.approx(1.0)
    half = latent.shape[1] // 2
    assert weight[:, : half - 1].min() > 1.5 and weight[:, half + 1 :].max() < 0.1


def test_a_white_mask_changes_nothing_and_half_a_mask_does(nodes, models, output):
    images, half = [torch.rand(1, 64, 64, 3)], torch.ones(1, 64, 64)
    half[:, :, :32] = 0
    plain, white, part_of_it = (
        train(nodes, models, subject=subject(nodes, images=images, **more))[2]["loss"] for more in ({}, {"masks": [torch.ones(1, 9, 9)]}, {"masks": [half]})
    )
    assert white == plain and all(abs(a - b) > 1e-3 for a, b in zip(plain, part_of_it, strict=True))


BAD_MASKS = {
    "not one for each picture": [torch.ones(1, 64, 48)],
    "all black": [torch.zeros(2, 64, 48)],
    "no batch": [torch.ones(64, 48)],
    "not numbers": [torch.full((2, 64, 48), float("nan"))],
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_a_bad_mask_is_refused_by_name(nodes, errors, case):
    with pytest.raises(errors.InputError, match=r"^masks: "):
        subject(nodes, masks=BAD_MASKS[case])


def two_subjects(nodes):
    return subject(nodes, placeholder="[W]", class_word="toy", personalization_prompt="an oil painting of [W]", previous=[subject(nodes)])


def test_two_subjects_learn_a_word_each_and_both_are_applied(nodes, models, output):
    target = "a photo of [V] with [W]"
    palp_lora = train(nodes, models, subject=two_subjects(nodes), target_prompt=target, steps=4, batch_size=2)[0]
    assert [word.placeholder for word in palp_lora.words] == ["[V]", "[W]"]
    assert palp_lora.metadata["palp.clean_prompt"] == "a photo of cat with toy"
    clip = nodes.ApplyPalpLora.execute(models.model, models.clip, palp_lora, 1.0)[1]
    inserted = [token for token, _ in clip.tokenize(target)["l"][0] if isinstance(token, torch.Tensor)]
    assert torch.equal(torch.stack(inserted), torch.cat([word.vectors["clip_l"] for word in palp_lora.words]))


def test_each_picture_is_trained_under_its_own_subjects_prompt(part, nodes, models):
    job = part("nodes.host.training").Job(
        model=models.model,
        clip=models.clip,
        vae=models.vae,
        subjects=two_subjects(nodes),
        prompts=None,
        train=part("palp_train.config").TrainConfig(resolution=64),
        loss=None,
    )
    assert [picture.prompt for picture in part("nodes.host.training")._pictures(job)] == ["a photo of [V]"] * 2 + ["an oil painting of [W]"] * 2


def test_two_subjects_with_one_placeholder_are_refused(nodes, models, errors, output):
    with pytest.raises(errors.InputError, match=r"^placeholder: \[V\] stands for more than one"):
        train(nodes, models, subject=subject(nodes, previous=[subject(nodes)]))


# Teachers


def test_an_equal_model_as_teacher_changes_nothing_and_another_teacher_does(nodes, models, output):
    import tiny_models

    taught, equal, other = subject(nodes), tiny_models.sd15(), tiny_models.sd15(seed=7)
    before = everything(other)
    plain, same, foreign = (
        train(nodes, models, subject=taught, **more)[0]
        for more in ({}, {"teacher_model": equal.model, "teacher_clip": equal.clip}, {"teacher_model": other.model, "teacher_clip": other.clip})
    )
    said = [json.loads(made.metadata["palp.alignments"]) for made in (plain, same, foreign)]
    # Other batches round otherwise, and steps amplify that: but by the third, a LoRA of this learning rate would show in the teacher.
    assert said[1] == pytest.approx(said[0], rel=1e-2) and said[1][0] == pytest.approx(said[0][0], rel=1e-4)
    assert all(abs(a - b) > 1e-2 for a, b in zip(said[0], said[2], strict=True))
    sampled(other)
    assert [p["bits"] for p in everything(other)[:2]] == [p["bits"] for p in before[:2]]


def test_the_model_itself_as_teacher_is_refused_also_with_patches(nodes, models, errors, output):
    with pytest.raises(errors.InputError, match=r"^teacher_model: it is the model itself"):
        train(nodes, models, teacher_model=models.model.clone())


def test_a_teacher_of_a_family_that_takes_more_than_a_prompt_is_refused_by_its_input(nodes, models, errors, output):
    teacher = family("sd15")
    teacher.model.model.model_config.unet_config["in_channels"] = 9
    with pytest.raises(errors.InputError, match=r"^teacher_model: .*inpainting"):
        train(nodes, models, teacher_model=teacher.model)


def test_a_teacher_that_cannot_read_the_models_clip_asks_for_its_own(nodes, models, errors, output):
    with pytest.raises(errors.InputError, match=r"^teacher_clip: the model cannot read"):
        train(nodes, models, teacher_model=family("sd2").model)


def test_a_teacher_over_other_latents_is_refused(nodes, models, errors, output):
    with pytest.raises(errors.InputError, match=r"^teacher_model: its latents \(SDXL\) are not the model's \(SD15\)"):
        train(nodes, models, teacher_model=family("sdxl").model)


def test_a_teacher_that_is_noised_otherwise_is_refused(nodes, models, errors, output):
    import comfy.model_base
    import tiny_models

    flow = tiny_models.sd15(model_type=comfy.model_base.ModelType.FLOW)
    with pytest.raises(errors.InputError, match=r"^teacher_model: noise enters"):
        train(nodes, models, teacher_model=flow.model)


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


# Text encoders that learn no word


@pytest.mark.parametrize("name", ["z_image", "qwen_image", "hunyuan_image"])
def test_where_the_text_encoder_takes_no_word_the_placeholder_is_trained_as_text_and_the_report_says_so(nodes, output, name):
    models = family(name)
    palp_lora, _, _, report = train(nodes, models)
    assert palp_lora.words == [] and "word_vectors: 0, because" in report
    model, clip, target = nodes.ApplyPalpLora.execute(models.model, models.clip, palp_lora, 1.0).args
    assert torch.equal(encoded(clip, target)[0][0], encoded(models.clip, target)[0][0])
    assert denoised(model, encoded(clip, target)).isfinite().all()


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
