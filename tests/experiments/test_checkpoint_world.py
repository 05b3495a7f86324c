"""A user's own files as a world."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from experiments.checkpoint_world import CheckpointWorld, Given, mean_similarity
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


def world(files):
    return CheckpointWorld(
        Given(checkpoint=files / "model.safetensors", images=files / "my cat", class_word="cat", prompts=files / "prompts.txt", train={"rank": 4})
    )


def test_the_folder_is_the_subject(files):
    (case,) = world(files).cases("single")
    assert case.name == "my cat" and [image.shape for image in case.taught[0].images] == [(8, 6, 3)]


def test_each_line_is_a_prompt_and_what_is_behind_bars_its_elements(files):
    first, second = world(files).asks("standard", world(files).cases("single")[0])
    assert (first.target, first.clean) == ("a sketch of [V] in Paris", "a sketch of cat in Paris")
    assert first.elements == {"element 1": ("a sketch",), "element 2": ("in Paris",)}
    assert second.elements == {}


def test_a_prompt_without_the_subject_is_refused(files):
    (files / "prompts.txt").write_text("a cat in Paris\n")
    with pytest.raises(SystemExit, match="lacks"):
        world(files).asks("standard", world(files).cases("single")[0])


def test_a_folder_without_pictures_is_refused(files):
    (files / "my cat" / "1.png").unlink()
    with pytest.raises(SystemExit, match="no picture"):
        world(files).cases("single")


def test_another_picture_is_another_world(files):
    before = world(files).identity
    Image.fromarray(np.ones((8, 6, 3), np.uint8)).save(files / "my cat" / "2.png")
    assert world(files).identity != before


def test_without_clip_only_diversity_is_measured_and_the_notes_say_what_is_needed(files):
    there = world(files)
    case = there.cases("single")[0]
    assert set(there.measure(case, there.asks("standard", case)[0], torch.rand(2, 64, 64, 3))) == {DIVERSITY}
    assert sum("--clip-vision" in note for note in there.notes) == 3


def test_with_clip_prompt_elements_and_subject_are_measured(files):
    there = world(files)
    there._vision, there._text = small_clip(files)
    case = there.cases("single")[0]
    measures = there.measure(case, there.asks("standard", case)[0], torch.rand(2, 64, 64, 3))
    assert set(measures) == {DIVERSITY, TEXT, IMAGE, "element 1", "element 2"}
    assert all(-1 <= value <= 1 for value in measures.values())


def test_a_text_encoder_without_projection_is_refused(files):
    from experiments.checkpoint_world import _text_with_projection

    save_file({"text_model.embeddings.position_embedding.weight": torch.zeros(1)}, files / "text.safetensors")
    with pytest.raises(SystemExit, match="no text projection"):
        _text_with_projection(files / "text.safetensors")


def small_clip(folder):
    """The host's own CLIP vision and text models, of few weights that share a space of 32 dimensions."""
    import comfy.clip_vision
    import tiny_models

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 14, "image_size": 28}
    config = {**sizes, "projection_dim": tiny_models.WIDTH_L, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    (folder / "vision.json").write_text(json.dumps({**config, "model_type": "clip_vision_model"}))
    vision = comfy.clip_vision.ClipVisionModel(folder / "vision.json")
    tiny_models.randomize(vision.model, 0)
    return vision, tiny_models.sd15().clip


def test_similarity_is_the_mean_cosine_over_all_pairs():
    assert mean_similarity(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0]])) == pytest.approx(0.5)
