"""The demo model, loaded from this repository into the host's own classes."""

import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from host_calls import denoised, encoded, subject, train

MEGABYTES = 12
PLAIN = "a photo of a cat"


@pytest.fixture(scope="module")
def module(pack):
    return import_module(f"{pack.__name__}.nodes.host.demo_model")


@pytest.fixture(scope="module")
def models(module):
    return module.load_demo_model()


def test_the_node_gives_the_hosts_own_objects(nodes):
    import comfy.model_patcher
    import comfy.sd

    model, clip, vae = nodes.PalpDemoModel.execute().args
    assert isinstance(model, comfy.model_patcher.ModelPatcher)
    assert isinstance(clip, comfy.sd.CLIP)
    assert isinstance(vae, comfy.sd.VAE)


def test_it_can_be_trained_where_the_host_loads_weights_as_they_are_used(module, monkeypatch):
    """Newer hosts give every text encoder such a patcher, on some GPUs, unless they are told not to."""
    import comfy.model_patcher

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic, raising=False)
    loaded = module.load_demo_model()
    assert not any(getattr(patcher, "is_dynamic", lambda: False)() for patcher in (loaded.model, loaded.clip.patcher))


def test_every_part_is_in_float32(module, monkeypatch):
    """Also where the host would take bfloat16 for autoencoders, as it does on GPUs."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management.args, "bf16_vae", True)
    models = module.load_demo_model()
    networks = (models.model.model.diffusion_model, models.clip.cond_stage_model, models.vae.first_stage_model)
    assert {tensor.dtype for network in networks for tensor in network.parameters()} == {torch.float32}
    assert models.vae.vae_dtype == torch.float32


def test_the_nodes_help_page_has_its_words(nodes):
    from demo.make import grammar

    page = (Path(nodes.__file__).parent.parent / "js" / "docs" / "PalpDemoModel.md").read_text()
    words = {*grammar.KINDS, *grammar.STYLES, *grammar.COLORS} - {"natural"}
    assert [word for word in sorted(words) if word not in page] == []


def test_it_loads_in_two_seconds(module, models):
    start = time.process_time()
    module.load_demo_model()
    assert time.process_time() - start < 2


def test_all_weights_together_are_small(module):
    assert sum(file.stat().st_size for file in module.WEIGHTS.parent.rglob("*") if file.is_file()) < MEGABYTES * 2**20


def test_our_nodes_take_it_for_an_sd1_model(pack, models):
    families = import_module(f"{pack.__name__}.nodes.host.families")
    assert families.family_of(models.model.model).title == "SD 1.x"


def test_it_samples_twenty_steps_in_six_seconds_of_processor_time(models):
    """Three seconds on two cores, however busy the machine is."""
    denoised(models.model, encoded(models.clip, PLAIN), encoded(models.clip, ""), steps=1, cfg=4.0)
    start = time.process_time()
    latent = denoised(models.model, encoded(models.clip, PLAIN), encoded(models.clip, ""), steps=20, cfg=4.0)
    assert time.process_time() - start < 6
    with torch.inference_mode():
        picture = models.vae.decode(latent)
    assert picture.shape == (1, 64, 64, 3)
    assert torch.isfinite(picture).all()


def test_the_prompt_decides_what_is_sampled(models):
    """Snow is brighter than space, whatever stands in it."""
    with torch.inference_mode():
        snow, space = (
            models.vae.decode(denoised(models.model, encoded(models.clip, f"{PLAIN} {where}"), encoded(models.clip, ""), steps=10, cfg=4.0))
            for where in ("in the snow", "in space")
        )
    assert snow.mean() > space.mean() + 0.1


def test_the_stock_empty_latent_is_understood(models):
    import comfy.sample

    import nodes as stock

    (latent,) = stock.EmptyLatentImage().generate(64, 64, 2)
    assert comfy.sample.fix_empty_latent_channels(models.model, latent["samples"]).shape == (2, 12, 8, 8)


def test_what_the_demos_nodes_read_is_in_the_package_that_is_published(module):
    import pathspec

    root = module.WEIGHTS.parents[2]
    left_out = pathspec.PathSpec.from_lines("gitignore", (root / ".comfyignore").read_text().splitlines())
    read = [module.WEIGHTS, root / "demo" / "weights" / "tokenizer" / "vocab.json", *(root / "demo" / "subjects" / "mochi").iterdir()]
    read.append(root / "demo" / "NOTICE.md")  # nobody reads it, but the pictures' license asks for it
    assert len(read) >= 9 and all(file.is_file() for file in read)
    assert [file for file in read if left_out.match_file(file.relative_to(root))] == []
    assert left_out.match_file("demo/graph.py")


def test_the_autoencoder_gives_back_what_it_gets(module, models):
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    files = sorted((module.WEIGHTS.parents[1] / "subjects").glob("*/*.png"))
    images = torch.stack([pil_to_tensor(Image.open(file).convert("RGB")).permute(1, 2, 0) / 255 for file in files])
    with torch.inference_mode():
        again = models.vae.decode(models.vae.encode(images))
    assert len(files) == 30
    assert (again - images).abs().mean() < 0.06


@pytest.mark.parametrize("text", ["xyzzy quux", "日本 ünïcödé 🐈", "a (cat:1.3) [dog], in? Paris!", "cat " * 100, ""])
def test_any_text_is_tokenized_and_encoded(models, text):
    (conditioning, _), *_ = encoded(models.clip, text)
    assert conditioning.shape[1] % 32 == 0
    assert torch.isfinite(conditioning).all()


def test_words_of_the_world_are_one_token_each(module, models):
    from demo.make import grammar

    for word in (*grammar.KINDS, "sketch", "paris", "sunset", "photo"):
        (section,) = models.clip.tokenize(word)["l"]
        assert section[2][0] == module.vocabulary_size() - 1, word


def test_palp_trains_on_it_and_the_stock_loader_applies_what_it_learned(nodes, models, output):
    import comfy.sd
    import comfy.utils

    taught = subject(nodes, images=[torch.rand(2, 64, 64, 3)])
    palp_lora, _, _, report = train(nodes, models, subject=taught, steps=4).args
    assert "[V]" in report
    tensors = comfy.utils.load_torch_file(str(output / "loras" / palp_lora.file))
    with torch.inference_mode():
        patched, _ = comfy.sd.load_lora_for_models(models.model, models.clip, tensors, 1.0, 1.0)
    conditioning = encoded(models.clip, PLAIN)
    assert len(patched.patches) == len([name for name in tensors if name.startswith("lora_unet") and name.endswith("lora_up.weight")])
    assert not torch.equal(denoised(patched, conditioning), denoised(models.model, conditioning))


def test_a_palp_step_takes_half_a_second_of_processor_time(nodes, models, output):
    """A quarter of a second on two cores, however busy the machine is, with what the demo trains with; what precedes the steps is in both runs."""
    from demo.settings import LOSS, TRAIN

    def taken(steps):
        start = time.process_time()
        train(nodes, models, steps=steps, loss=nodes.PalpLossConfig.execute(**LOSS)[0], **TRAIN)
        return time.process_time() - start

    taken(1)
    assert (taken(21) - taken(1)) / 20 < 0.5


def test_a_subject_comes_with_its_pictures_and_its_class_word(nodes):
    names = nodes.PalpDemoSubject.define_schema().inputs[0].options
    page = (Path(nodes.__file__).parent.parent / "js" / "docs" / "PalpDemoSubject.md").read_text()
    for name in names:
        images, class_word = nodes.PalpDemoSubject.execute(name).args
        assert images.shape == (5, 64, 64, 3) and 0 <= images.min() < images.max() <= 1
        assert f"| {name} | {class_word} |" in page


def test_a_subject_gives_as_many_pictures_as_are_wanted_the_first_ones(nodes, errors):
    (every, _), (some, _) = nodes.PalpDemoSubject.execute("mochi").args, nodes.PalpDemoSubject.execute("mochi", 2).args
    assert torch.equal(some, every[:2])
    for wrong in (0, 6, 1.5):
        with pytest.raises(errors.InputError, match=r"^pictures: "):
            nodes.PalpDemoSubject.execute("mochi", wrong)


def test_a_subject_that_is_not_there_is_refused_by_name(nodes, errors):
    for name in ("nobody", "../subjects/mochi", ""):
        with pytest.raises(errors.InputError, match=r"^name: there is no .* mochi"):
            nodes.PalpDemoSubject.execute(name)
