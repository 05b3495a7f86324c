"""The command."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.demo_world import DemoWorld
from experiments.options import parse
from experiments.run import conditions_of, publish, report_folder, study_of, world_of
from experiments.studies import STUDIES

ROOT = Path(__file__).resolve().parents[2]


def experiment(out, *arguments):
    places = ("--comfyui", os.environ["COMFYUI_PATH"], "--base", str(out / "base"), "--out", str(out))
    return subprocess.run([sys.executable, "-m", "experiments.run", *places, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def own(folder, checkpoint, class_word="cat", prompts="a sketch of [V] in Paris | sketch | Paris\n"):
    """Options for a checkpoint with one picture of a cat."""
    (folder / "cat").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "cat" / "1.png")
    (folder / "prompts.txt").write_text(prompts)
    files = ("--checkpoint", checkpoint, "--images", folder / "cat", "--class-word", class_word, "--prompts", folder / "prompts.txt", "--resolution", "64")
    return tuple(map(str, files))


def test_a_model_of_ones_own_needs_its_pictures_and_prompts(host, tmp_path):
    done = experiment(tmp_path, "ablation", "--checkpoint", "model.safetensors")
    assert done.returncode == 2 and "belong together" in done.stderr


def test_a_quick_run_is_not_published(host, tmp_path):
    done = experiment(tmp_path, "ablation", "--quick", "--publish")
    assert done.returncode == 2 and "too little" in done.stderr


def test_a_report_of_ones_own_model_is_not_published(host, checkpoint, tmp_path):
    done = experiment(tmp_path, "ablation", *own(tmp_path, checkpoint), "--publish")
    assert done.returncode == 2 and "--publish: docs/results is about the demo model" in done.stderr


def test_every_subject_of_ones_own_needs_a_class(host, checkpoint, tmp_path):
    done = experiment(tmp_path, "ablation", *own(tmp_path, checkpoint), "--class-word", "cat", "dog")
    assert done.returncode == 2 and "--class-word: 2 for 1 folders" in done.stderr


def test_a_file_in_place_of_a_folder_of_pictures_is_refused(host, checkpoint, tmp_path):
    options = list(own(tmp_path, checkpoint))
    options[options.index("--images") + 1] += "/1.png"
    done = experiment(tmp_path, "ablation", *options)
    assert done.returncode == 2 and "--images: there is no folder" in done.stderr


@pytest.mark.parametrize(("changed", "said"), [({"prompts": "\n"}, "--prompts: there is no prompt in "), ({"class_word": "a [V]"}, "class_word: ")])
def test_what_only_the_work_finds_is_refused_in_a_sentence(host, checkpoint, tmp_path, changed, said):
    done = experiment(tmp_path, "noise", *own(tmp_path, checkpoint, **changed))
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(said) and "Traceback" not in done.stderr


def test_all_prompts_of_ones_own_are_studied_and_reports_are_kept_apart(host, tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    (tmp_path / "prompts.txt").touch()
    text = tmp_path / "prompts.txt"
    files = ("--checkpoint", text, "--images", tmp_path / "cat", tmp_path / "cat", "--class-word", "cat", "kitten", "--prompts", text)
    places = ("--comfyui", "c", "--base", "b", "--out", "o")
    monkeypatch.setattr(sys, "argv", ["dev.py experiment", *places, "ablation", *map(str, files)])
    assert study_of(parse()).prompts == 0 and report_folder(parse()) == Path("o/ablation-prompts-cat-cat")
    monkeypatch.setattr(sys, "argv", ["dev.py experiment", *places, "ablation"])
    assert study_of(parse()).prompts == STUDIES["ablation"].prompts and report_folder(parse()) == Path("o/ablation")


def test_a_published_report_is_listed_once(tmp_path):
    report = tmp_path / "noise" / "report.md"
    report.parent.mkdir()
    report.write_text("# Noise")
    for _ in range(2):
        index = publish(report, tmp_path / "docs" / "results", "Noise")
        (index.parent / "results" / "noise" / "stale.jpg").touch()
    index = publish(report, tmp_path / "docs" / "results", "Noise")
    assert not (index.parent / "results" / "noise" / "stale.jpg").exists()
    assert index.read_text().count("results/noise/report.md") == 1
    assert (tmp_path / "docs" / "results" / "noise" / "report.md").is_file()


def test_only_the_conditions_that_are_named_are_studied():
    named = conditions_of(STUDIES["ablation"], ("palp same noise unrescaled", "base"))
    assert [condition.name for condition in named] == ["base", "palp same noise unrescaled"]
    assert conditions_of(STUDIES["ablation"], ()) == STUDIES["ablation"].conditions


def test_a_condition_that_the_study_does_not_have_is_refused_by_name():
    with pytest.raises(SystemExit, match=r"--conditions: noise has base, none, .*, not sds"):
        conditions_of(STUDIES["noise"], ("base", "sds"))


@pytest.mark.parametrize("name", STUDIES)
def test_every_condition_can_be_named_on_the_command_line(name):
    assert not any("," in condition.name for condition in STUDIES[name].conditions)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--pictures", "0"), ("--pictures", "6"), ("--jobs", "0"), ("--samples", "1"), ("--seeds", "0"), ("--steps", "0"), ("--prompt-count", "-1")],
)
def test_a_number_out_of_range_is_refused_by_name(host, tmp_path, option, value):
    done = experiment(tmp_path, "noise", "--quick", option, value)
    assert done.returncode == 2 and f"{option}: {value} is out of range" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--loss", '{"alpha": 5}', "alpha is not a setting; there are "),
        ("--train", "[1]", "[1] is not a setting; there are "),
        ("--train", '{"rank": 0}', "rank: 0 is out of range"),
        ("--resolution", "32", "resolution: 32 is out of range"),
        ("--train", '{"steps": 5}', "steps is the study's own; choose it with --steps"),
        ("--loss", '{"noise": "independent"}', "noise is the study's own; choose it with --conditions"),
        ("--sampling", '{"steps": "30"}', "steps: '30' is not a whole number"),
        ("--sampling", '{"resolution": 128}', "resolution is the study's own; choose it with --resolution"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_can(host, tmp_path, option, value, said):
    done = experiment(tmp_path, "noise", "--quick", option, value)
    assert done.returncode == 2 and f"argument {option}: {said}" in done.stderr


@pytest.mark.parametrize(("name", "others"), [("sampler", "euler"), ("scheduler", "karras")])
def test_a_sampler_that_the_host_does_not_have_is_refused_with_those_it_has(host, tmp_path, name, others):
    done = experiment(tmp_path, "noise", "--quick", "--sampling", f'{{"{name}": "karas"}}')
    assert done.returncode == 1 and re.search(rf"--sampling: ComfyUI has no {name} 'karas'; it has .*{others}", done.stderr)


def test_a_text_model_without_a_vision_model_measures_nothing_and_is_refused(host, checkpoint, tmp_path):
    done = experiment(tmp_path, "noise", *own(tmp_path, checkpoint), "--clip-text", checkpoint)
    assert done.returncode == 2 and "--clip-text: compares with what a vision model sees" in done.stderr


@pytest.mark.parametrize(("prompts", "said"), [(["a painting"], '"a painting" lacks [V]'), (["a [V]", "the [V]"], "2 for 1 folders of --images")])
def test_a_personalization_prompt_that_cannot_be_is_refused(host, checkpoint, tmp_path, prompts, said):
    done = experiment(tmp_path, "noise", *own(tmp_path, checkpoint), "--personalization-prompt", *prompts)
    assert done.returncode == 2 and f"--personalization-prompt: {said}" in done.stderr


@pytest.mark.parametrize(("option", "value"), [("--clip-vision", "clip.safetensors"), ("--resolution", "512")])
def test_what_is_for_a_model_of_ones_own_is_refused_without_one(host, tmp_path, option, value):
    done = experiment(tmp_path, "noise", option, value)
    assert done.returncode == 2 and f"{option}: is for a model of your own" in done.stderr


def test_a_study_is_found_by_its_other_name(host, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dev.py experiment", "--comfyui", "c", "--base", "b", "--out", "o", "sweep"])
    assert parse().name == "scales"


def test_other_settings_go_to_the_world_beside_those_that_suit_it(host, tmp_path, monkeypatch):
    places = ("--comfyui", os.environ["COMFYUI_PATH"], "--base", str(tmp_path), "--out", str(tmp_path))
    changes = ("--train", '{"batch_size": 2}', "--loss", '{"alignment_weight": 1.5}', "--sampling", '{"guidance": 3}')
    monkeypatch.setattr(sys, "argv", ["dev.py experiment", *places, "noise", *changes])
    world = world_of(parse())
    assert world.train == {**DemoWorld.train, "batch_size": 2}
    assert world.loss == {**DemoWorld.loss, "alignment_weight": 1.5}
    assert world.sampling == replace(DemoWorld.sampling, guidance=3)


@pytest.mark.slow
def test_a_quick_ablation_of_the_demo_model_by_two_processes_ends_in_a_report(host, tmp_path):
    done = experiment(tmp_path, "ablation", "--quick", "--steps", "2,4", "--samples", "2", "--subjects", "bolt,mochi", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert "100%" in (tmp_path / "ablation-helpers.log").read_text()
    text = (tmp_path / "ablation-quick" / "report.md").read_text()
    assert ("wins back" in text or "no share of it can be told" in text) and "| palp | 4 |" in text


@pytest.mark.slow
def test_a_quick_study_of_a_checkpoint_ends_in_a_report(host, checkpoint, tmp_path):
    given = own(tmp_path, checkpoint)
    short = ("--quick", "--steps", "1", "--samples", "2", "--seeds", "1", "--train", '{"rank": 2}', "--sampling", '{"steps": 2}')
    done = experiment(tmp_path, "noise", *given, *short)
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("noise-*-cat-quick/report.md")
    assert "## Cost" in report.read_text()
