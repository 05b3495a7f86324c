"""Masks, several subjects, teachers, and text encoders that learn no word, on the host's own classes."""

import json

import pytest
import torch
from devices import assert_same_losses
from host_calls import denoised, encoded, everything, family, sampled, subject, train

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
    assert_same_losses(white, plain)
    assert all(abs(a - b) > 1e-3 for a, b in zip(plain, part_of_it, strict=True))


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


# Text encoders that learn no word


@pytest.mark.parametrize("name", ["z_image", "qwen_image", "hunyuan_image"])
def test_where_the_text_encoder_takes_no_word_the_placeholder_is_trained_as_text_and_the_report_says_so(nodes, output, name):
    models = family(name)
    palp_lora, _, _, report = train(nodes, models)
    assert palp_lora.words == [] and "word_vectors: 0, because" in report
    model, clip, target = nodes.ApplyPalpLora.execute(models.model, models.clip, palp_lora, 1.0).args
    assert torch.equal(encoded(clip, target)[0][0], encoded(models.clip, target)[0][0])
    assert denoised(model, encoded(clip, target)).isfinite().all()
