"""A user's own files as a world."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from experiments.checkpoint_world import SAMPLING, CheckpointWorld, Given
from experiments.embedder import Embedder, mean_similarity
from experiments.world import DIVERSITY, IMAGE, TEXT

PROMPTS = "a sketch of [V] in Paris | a sketch | in Paris\n\na photo of [V]\n"


@pytest.fixture
def files(pack, tmp_path):
    pictures = tmp_path / "my cat"
    pictures.mkdir()
    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(pictures / "1.png")
    (pictures / "notes.txt").write_text("not a picture")
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    (tmp_path / "model.safetensors").write_bytes(b"not read before it is needed")
    return tmp_path


def world(files, **more):
    given = {"checkpoint": files / "model.safetensors", "images": [files / "my cat"], "class_word": ["cat"], "prompts": files / "prompts.txt"}
    return CheckpointWorld(Given(**{**given, "train": {"rank": 4}, **more}))


def two(files, prompts="a sketch of [V1] and [V2] in Paris | a sketch\n"):
    """A cat and a toy."""
    (files / "toy").mkdir()
    Image.fromarray(np.full((6, 6, 3), 255, np.uint8)).save(files / "toy" / "1.png")
    (files / "prompts.txt").write_text(prompts)
    return world(files, images=[files / "my cat", files / "toy"], class_word=["cat", "toy robot"])


def names(files, prompts):
    (files / "prompts.txt").write_text(prompts)
    return [ask.name for ask in world(files).asks("standard", world(files).cases("single")[0])]


def test_the_folder_is_the_subject(files):
    (case,) = world(files).cases("single")
    assert case.name == "my cat" and [image.shape for image in case.taught[0].images] == [(8, 6, 3)]


def test_each_line_is_a_prompt_and_what_is_behind_bars_its_elements(files):
    first, second = world(files).asks("standard", world(files).cases("single")[0])
    assert (first.target, first.clean) == ("a sketch of [V] in Paris", "a sketch of cat in Paris")
    assert first.elements == {"element 1": ("a sketch",), "element 2": ("in Paris",)}
    assert second.elements == {}


def test_placeholders_in_elements_are_put_into_words_and_empty_elements_left_out(files):
    (files / "prompts.txt").write_text("a sketch of [V] in Paris | a [V] || in Paris |\n")
    (ask,) = world(files).asks("standard", world(files).cases("single")[0])
    assert ask.elements == {"element 1": ("a cat",), "element 2": ("in Paris",)}


def test_a_clean_prompt_of_its_own_stands_behind_an_arrow(files):
    (files / "prompts.txt").write_text("a cat like [V] => an oil painting of a cat | a cat\n")
    (ask,) = world(files).asks("standard", world(files).cases("single")[0])
    assert (ask.target, ask.clean, ask.elements) == ("a cat like [V]", "an oil painting of a cat", {"element 1": ("a cat",)})


def test_subjects_are_taught_by_their_own_prompts_also_together(files):
    two(files)
    prompts = ["a photo of [V]", "a painting in the manner of [V]"]
    there = world(files, images=[files / "my cat", files / "toy"], class_word=["cat", "painting"], personalization_prompt=prompts)
    assert [case.taught[0].personalization_prompt for case in there.cases("single")] == prompts
    (case,) = there.cases("composed")
    assert [taught.personalization_prompt for taught in case.taught] == ["a photo of [V1]", "a painting in the manner of [V2]"]


def test_prompts_of_one_length_have_no_complexity_to_compare(files):
    (files / "prompts.txt").write_text("a sketch of [V] | a sketch\na photo of [V] | a photo\n")
    with pytest.raises(SystemExit, match="--prompts: complexity compares"):
        world(files).asks("complexity", world(files).cases("single")[0])


def test_prompts_in_another_encoding_are_refused(files):
    (files / "prompts.txt").write_bytes("ein Bild von [V] für mich".encode("latin-1"))
    with pytest.raises(SystemExit, match=r"--prompts: .*prompts\.txt is no text in UTF-8"):
        world(files).asks("standard", world(files).cases("single")[0])


def test_a_checkpoint_that_is_none_is_refused_by_name(files):
    with pytest.raises(SystemExit, match=r"--checkpoint: ComfyUI cannot load model\.safetensors"):
        _ = world(files).models


def test_a_checkpoint_without_a_text_encoder_is_refused(files, checkpoint):
    weights = {name: tensor for name, tensor in load_file(checkpoint).items() if not name.startswith("cond_stage_model.")}
    save_file(weights, files / "model.safetensors")
    with pytest.raises(SystemExit, match=r"--checkpoint: model\.safetensors holds no text encoder\. Give"):
        _ = world(files).models


def test_a_picture_that_is_cut_off_is_refused_and_what_is_hidden_is_left_out(files, capsys):
    whole = (files / "my cat" / "1.png").read_bytes()
    (files / "my cat" / "._1.png").write_bytes(b"what macOS keeps beside a file")
    (files / "my cat" / "3.heic").write_bytes(b"what phones make")
    assert len(world(files).cases("single")[0].taught[0].images) == 1
    assert "3.heic" in capsys.readouterr().out
    (files / "my cat" / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit, match=r"--images: .*2\.png cannot be opened"):
        world(files).cases("single")


def test_a_prompt_without_the_subject_is_refused(files):
    (files / "prompts.txt").write_text("a cat in Paris\n")
    with pytest.raises(SystemExit, match="lacks"):
        world(files).asks("standard", world(files).cases("single")[0])


def test_a_folder_without_pictures_is_refused(files):
    (files / "my cat" / "1.png").unlink()
    with pytest.raises(SystemExit, match="no picture"):
        world(files).cases("single")


def test_a_picture_is_turned_as_the_camera_was_held(files):
    on_its_side = Image.fromarray(np.zeros((8, 6, 3), np.uint8))
    on_its_side.getexif()[274] = 6
    on_its_side.save(files / "my cat" / "1.png", exif=on_its_side.getexif())
    assert world(files).cases("single")[0].taught[0].images[0].shape == (6, 8, 3)


@pytest.mark.parametrize("suffix", ["bmp", "TIFF", "gif"])
def test_every_kind_of_picture_that_can_be_opened_is_taken(files, suffix):
    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(files / "my cat" / f"2.{suffix}")
    assert len(world(files).cases("single")[0].taught[0].images) == 2


def test_a_lone_subject_is_not_taught_together(files):
    with pytest.raises(SystemExit, match=r"--images: .* a folder for each"):
        world(files).cases("composed")


def test_each_of_several_subjects_is_a_case(files):
    there = two(files, PROMPTS)
    cases = there.cases("single")
    assert [(case.name, case.taught[0].placeholder) for case in cases] == [("my cat", "[V]"), ("toy", "[V]")]
    assert there.asks("standard", cases[1])[0].clean == "a sketch of toy robot in Paris"


def test_subjects_are_taught_together_by_words_of_their_own(files):
    there = two(files)
    (case,) = there.cases("composed")
    assert case.name == "my cat+toy" and [taught.placeholder for taught in case.taught] == ["[V1]", "[V2]"]
    (ask,) = there.asks("standard", case)
    assert (ask.name, ask.clean) == ("a sketch of V1 and V2 in Paris", "a sketch of cat and toy robot in Paris")


def test_a_prompt_without_one_of_the_subjects_is_refused(files):
    there = two(files, "a sketch of [V1] in Paris\n")
    with pytest.raises(SystemExit, match=r"lacks \[V2\], which stands for the toy robot"):
        there.asks("standard", there.cases("composed")[0])


def test_similarity_to_subjects_taught_together_is_the_mean(files):
    there = two(files)
    there._embedder = Embedder(name="clip.safetensors", vision=small_vision(files))
    (together,), alone = there.cases("composed"), there.cases("single")
    pictures, ask = torch.rand(2, 64, 64, 3), there.asks("standard", there.cases("composed")[0])[0]
    each = [there.measure(case, ask, pictures)[IMAGE] for case in alone]
    assert there.measure(together, ask, pictures)[IMAGE] == pytest.approx(sum(each) / 2) and each[0] != each[1]


def test_pictures_are_made_as_suits_sd(files):
    assert world(files).sampling is SAMPLING and (SAMPLING.resolution, SAMPLING.guidance) == (512, 7.5)


def test_prompts_that_begin_alike_have_names_of_their_own(files):
    long = "a photo of [V] in a very, very, very long line of other words"
    cut = "a photo of V in a very, very, very long line of other words"
    assert names(files, f"{long} by day\n{long} by night\na photo of [V]\n") == [cut, f"{cut} 2", "a photo of V"]


def test_prompts_whose_files_would_be_the_same_have_names_of_their_own(files):
    assert names(files, "a [V] 2\na [V]\na [V]!\n") == ["a V 2", "a V", "a V! 3"]


def test_another_picture_of_a_subject_is_measured_anew_and_the_model_stays_the_same(files):
    before = world(files)
    identity, ruler = before.identity, before.ruler
    Image.fromarray(np.ones((8, 6, 3), np.uint8)).save(files / "my cat" / "2.png")
    assert world(files).ruler != ruler and world(files).identity == identity


def test_without_clip_only_diversity_is_measured_and_the_notes_say_what_is_needed(files):
    there = world(files)
    case = there.cases("single")[0]
    assert set(there.measure(case, there.asks("standard", case)[0], torch.rand(2, 64, 64, 3))) == {DIVERSITY}
    assert sum("--clip-vision" in note for note in there.notes) == 3


def test_with_clip_prompt_elements_and_subject_are_measured(files):
    there = world(files)
    there._embedder = Embedder(name="clip.safetensors", vision=small_vision(files), text=small_text())
    case = there.cases("single")[0]
    measures = there.measure(case, there.asks("standard", case)[0], torch.rand(2, 64, 64, 3))
    assert set(measures) == {DIVERSITY, TEXT, IMAGE, "element 1", "element 2"}
    assert all(-1 <= value <= 1 for value in measures.values())


@pytest.mark.parametrize(
    ("kind", "metric"), [("clip_vision_model", "CLIP-I, mean cosine similarity of CLIP"), ("dinov2", "DINO, mean cosine similarity of DINOv2")]
)
def test_the_notes_name_the_similarity_after_the_vision_model(files, kind, metric):
    there = world(files)
    there._embedder = Embedder(name="seeing.safetensors", vision=small_vision(files, kind))
    assert f"Subject similarity: {metric} embeddings (seeing.safetensors)" in there.notes[1]
    assert "--clip-text" in there.notes[0]


def test_a_vision_model_that_the_host_does_not_know_is_refused_before_any_work(files):
    save_file({"vision_model.encoder.layers.11.layer_norm1.weight": torch.zeros(1)}, files / "vit_b_32.safetensors")
    with pytest.raises(SystemExit, match=r"--clip-vision: .*vit_b_32\.safetensors"):
        world(files, clip_vision=files / "vit_b_32.safetensors")


def test_a_vision_model_that_embeds_no_whole_picture_is_refused(files):
    with pytest.raises(SystemExit, match=r"--clip-vision: with siglip\.safetensors"):
        Embedder(name="siglip.safetensors", vision=small_vision(files, "siglip_vision_model"))


def test_text_and_vision_models_of_other_widths_are_refused(files):
    with pytest.raises(SystemExit, match=r"--clip-text: its 32 numbers .* the 48 that the CLIP of --clip-vision"):
        Embedder(name="clip.safetensors", vision=small_vision(files, width=48), text=small_text())


def test_a_text_model_beside_a_dino_is_refused_though_their_widths_agree(files):
    with pytest.raises(SystemExit, match=r"--clip-text: its 32 numbers .* the 32 that the DINOv2 of --clip-vision"):
        Embedder(name="dino.safetensors", vision=small_vision(files, "dinov2"), text=small_text())


@pytest.mark.parametrize("option", ["--clip-vision", "--clip-text"])
def test_a_broken_file_of_a_measuring_model_is_refused_by_name(files, option):
    from experiments.embedder import _text_with_projection, _vision_model

    (files / "clip.safetensors").write_bytes(b"cut off")
    with pytest.raises(SystemExit, match=rf"{option}: .*clip\.safetensors"):
        (_vision_model if option == "--clip-vision" else _text_with_projection)(files / "clip.safetensors")


def test_a_text_encoder_without_projection_is_refused(files):
    from experiments.embedder import _text_with_projection

    save_file({"text_model.embeddings.position_embedding.weight": torch.zeros(1)}, files / "text.safetensors")
    with pytest.raises(SystemExit, match="no text projection"):
        _text_with_projection(files / "text.safetensors")


def small_vision(folder, kind="clip_vision_model", width=32):
    """One of the host's own vision models, of few weights; its embeddings have that width."""
    import comfy.clip_vision
    import tiny_models

    sizes = {"hidden_size": width, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 14, "num_channels": 3}
    dino = {"image_size": 518, "use_swiglu_ffn": False}
    config = {**sizes, "image_size": 28, "hidden_act": "gelu", "layer_norm_eps": 1e-5, **(dino if kind == "dinov2" else {})}
    (folder / "vision.json").write_text(json.dumps({**config, **({"projection_dim": width} if kind == "clip_vision_model" else {}), "model_type": kind}))
    vision = comfy.clip_vision.ClipVisionModel(folder / "vision.json")
    tiny_models.randomize(vision.model, 0)
    return vision


def small_text():
    """The host's own CLIP text model, of few weights; its embeddings have width 32."""
    import tiny_models

    return tiny_models.sd15().clip


def test_similarity_is_the_mean_cosine_over_all_pairs():
    assert mean_similarity(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0]])) == pytest.approx(0.5)
