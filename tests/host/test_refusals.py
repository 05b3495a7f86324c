"""What the nodes refuse: each sentence names the input, and nothing is written."""

from dataclasses import replace

import pytest
import torch
from host_calls import family, subject, train


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def models(request, pack):
    import tiny_models

    return getattr(tiny_models, request.param)()


BAD_INPUTS = {
    "target_prompt": dict(target_prompt="a sketch in Paris"),
    "clean_prompt": dict(clean_prompt="a sketch of [V]"),
    "negative_prompt": dict(negative_prompt="ugly [V]"),
    "steps": dict(steps=0),
    "learning_rate": dict(learning_rate=float("nan")),
    "rank": dict(rank=100000),
    "batch_size": dict(batch_size=-1),
    "seed": dict(seed=-1),
    "word_vectors": dict(word_vectors=99),
    "resolution": dict(resolution=7),
    "name": dict(name="../evil"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_a_bad_training_input_is_refused_by_name_before_anything_is_done(nodes, models, errors, output, name):
    with pytest.raises(errors.InputError, match=f"^{name}: "):
        train(nodes, models, **BAD_INPUTS[name])
    assert list(output.rglob("*.safetensors*")) == []


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", "a..b", "", "  ", "CON", "nul.txt", ".hidden", "dot.", "x" * 500, "a:b", "a\nb", "名" * 50])
def test_a_name_that_some_system_cannot_keep_is_refused(nodes, models, errors, output, name):
    with pytest.raises(errors.InputError, match=r"^name: "):
        train(nodes, models, name=name)
    assert list(output.rglob("*.safetensors*")) == []


BAD_SUBJECTS = {
    "an empty class word": ("class_word", dict(class_word=" ")),
    "no placeholder in the personalization prompt": ("personalization_prompt", dict(personalization_prompt="a photo")),
    "parentheses in the placeholder": ("placeholder", dict(placeholder="(V)")),
    "braces in the placeholder": ("placeholder", dict(placeholder="{V}")),
    "a colon in the placeholder": ("placeholder", dict(placeholder="V:1")),
    "an empty placeholder": ("placeholder", dict(placeholder="")),
    "NaN in a picture": ("images", dict(images=[torch.full((1, 64, 64, 3), float("nan"))])),
    "a picture with one channel": ("images", dict(images=[torch.rand(1, 64, 64, 1)])),
    "a picture without a batch": ("images", dict(images=[torch.rand(64, 64, 3)])),
    "a tiny picture": ("images", dict(images=[torch.rand(1, 4, 64, 3)])),
    "an empty batch": ("images", dict(images=[torch.rand(0, 64, 64, 3)])),
}


@pytest.mark.parametrize("case", BAD_SUBJECTS)
def test_a_bad_subject_is_refused_by_name(nodes, errors, case):
    name, changes = BAD_SUBJECTS[case]
    with pytest.raises(errors.InputError, match=f"^{name}: "):
        subject(nodes, **changes)


@pytest.mark.parametrize("name, value", [("method", "magic"), ("alignment_scale", 1e9), ("every", 0), ("start_percent", 1.0), ("noise", "x"), ("rescale", 3)])
def test_a_bad_loss_setting_is_refused_by_name(nodes, errors, name, value):
    with pytest.raises(errors.InputError, match=f"^{name}: "):
        nodes.PalpLossConfig.execute(**{name: value})


def test_a_vae_of_another_family_is_refused(nodes, models, errors, output):
    import comfy.sd
    import comfy.taesd.taesd
    import tiny_models

    taesd = comfy.taesd.taesd.TAESD(latent_channels=16)
    tiny_models.randomize(taesd, 0)
    with torch.inference_mode():
        foreign = comfy.sd.VAE(sd=taesd.state_dict())
    with pytest.raises(errors.InputError, match=r"^vae: .*4 channels"):
        train(nodes, replace(models, vae=foreign))
    assert list(output.rglob("*.safetensors*")) == []


def test_a_clip_of_another_family_is_refused(nodes, models, errors, output):
    import tiny_models

    foreign = tiny_models.sd15().clip if "SDXL" in type(models.model.model).__name__ else tiny_models.sdxl().clip
    with pytest.raises(errors.InputError, match=r"^clip: the model cannot read what it writes"):
        train(nodes, replace(models, clip=foreign))


def test_models_that_cannot_be_trained_are_refused_with_what_they_are(nodes, errors, output):
    import comfy.model_base
    import tiny_models

    models = tiny_models.sd15()
    models.model.model.model_config.unet_config["in_channels"] = 9
    with pytest.raises(errors.InputError, match=r"^model: .*inpainting"):
        train(nodes, models)
    edm = tiny_models.sd15(model_type=comfy.model_base.ModelType.V_PREDICTION_EDM)
    train(nodes, edm, steps=1)  # v prediction on a continuous schedule is fine


@pytest.mark.parametrize("name", ["model", "clip", "vae"])
def test_a_part_that_the_checkpoint_lacks_is_named(nodes, models, errors, output, name):
    with pytest.raises(errors.InputError, match=rf"^{name}: there is none"):
        train(nodes, replace(models, **{name: None}))


def test_apply_without_a_clip_or_on_another_family_is_refused(nodes, models, errors, output):
    import tiny_t5_models

    palp_lora = train(nodes, models, steps=1)[0]
    with pytest.raises(errors.InputError, match=r"^clip: there is none"):
        nodes.ApplyPalpLora.execute(models.model, None, palp_lora, 1.0)
    foreign = tiny_t5_models.flux()
    with pytest.raises(errors.InputError, match=r"^model: it is a Flux model, and palp.test_00001.safetensors was trained on"):
        nodes.ApplyPalpLora.execute(foreign.model, foreign.clip, palp_lora, 1.0)


def test_a_class_word_in_which_the_text_encoder_sees_nothing_is_refused(nodes, models, errors, output):
    with pytest.raises(errors.InputError, match=r'^class_word: "\(\)" means nothing'):
        train(nodes, models, subject=subject(nodes, class_word="()"))


def test_a_folder_that_no_lora_can_be_written_into_is_refused_before_training(nodes, models, errors, output):
    (output / "loras").mkdir(exist_ok=True)
    (output / "loras" / "palp").write_text("a file where the folder belongs")
    with pytest.raises(errors.InputError, match=r"^name: no file can be written into .*palp"):
        train(nodes, replace(models, model=None))


def test_a_lora_of_another_generation_is_refused_though_its_layers_have_the_same_names(nodes, errors, output):
    first, second = family("sd15"), family("sd2")
    palp_lora = train(nodes, first)[0]
    with pytest.raises(errors.InputError, match=r"^model: it is SD 2\.x, and .* was trained on stable-diffusion-v1\."):
        nodes.ApplyPalpLora.execute(second.model, second.clip, palp_lora, 1.0)
