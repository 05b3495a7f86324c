"""The demo as users start it, on a server of its own, with few steps."""

import os
from pathlib import Path

import pytest
from PIL import Image

from demo import graph, run
from demo.errors import ComfyError
from demo.results import empty_folder, find_loras


def test_the_demo_leaves_two_loras_and_pictures_from_the_same_noise_side_by_side(base, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "STEPS", 2)
    run.run(Path(os.environ["COMFYUI_PATH"]), base, tmp_path)
    assert sorted(path.stem[:-6] for path in tmp_path.glob("*.safetensors")) == ["demo_palp", "demo_plain"]
    pictures = {kind: sorted(tmp_path.glob(f"{kind}_?.png")) for kind in graph.TITLES}
    assert {kind: len(files) for kind, files in pictures.items()} == dict.fromkeys(graph.TITLES, graph.PICTURES)
    report = (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert "Method: none" in report and "Method: palp" in report
    assert report.count(f"Clean prompt: {graph.CLEAN_PROMPT}") == 2
    with Image.open(tmp_path / "side_by_side.png") as sheet:
        assert sheet.width > graph.PICTURES * graph.SAMPLING.resolution and sheet.height > 4 * graph.SAMPLING.resolution
    assert (tmp_path / "loss.png").is_file()


def test_every_kind_of_picture_begins_with_the_same_noise():
    made = graph.demo_graph()
    noises = [(made[f"{kind} sampler"]["inputs"]["seed"], made[f"{kind} sampler"]["inputs"]["latent_image"]) for kind in graph.TITLES]
    assert noises == [noises[0]] * len(graph.TITLES)


def test_a_training_that_left_no_lora_is_an_error(tmp_path):
    with pytest.raises(ComfyError, match="no new LoRA"):
        find_loras(["palp/demo_palp_00001.safetensors"], tmp_path)


def test_only_the_files_of_an_earlier_demo_make_room_for_a_new_one(tmp_path):
    own = {"my cat.png", "my_lora.safetensors", "notes.txt"}
    earlier = {"palp_1.png", "base_6.png", "demo_plain_00002.safetensors", "side_by_side.png", "loss.png", "report.txt", "server.log"}
    for name in own | earlier:
        (tmp_path / name).write_text("")
    assert {path.name for path in empty_folder(tmp_path).iterdir()} == own
