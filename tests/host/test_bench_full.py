"""``bench --full``: rows and ratios on the narrow model, in processes of its own, and what it draws at real size."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.published import PUBLISHED

ROOT = Path(__file__).resolve().parent.parent.parent
FAILING, NO_WORD, HOST = "ours plain", "ours PALP, no word", "host plain"
DIFFUSERS, FORWARD = "diffusers + peft plain", "forward pass"


def bench(out, *flags):
    """(the report, its JSON) of ``bench --full sd15 --narrow`` with these flags."""
    places = ("--comfyui", os.environ["COMFYUI_PATH"], "--base", out, "--out", out)
    command = [sys.executable, "-m", "bench.run", *places, "--full", "sd15", "--narrow", *flags]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout, json.loads((out / "full_sd15_narrow.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, host):
    """Four contenders, two steps each."""
    names = (NO_WORD, HOST, DIFFUSERS, FORWARD)
    return bench(tmp_path_factory.mktemp("bench"), "--quick", "--steps", "2", "--only", *names)


@pytest.mark.slow
def test_every_contender_is_a_row_with_its_figures(measured):
    report, result = measured
    rows = {row["contender"]: row for row in result["rows"]}
    assert list(rows) == [NO_WORD, HOST, DIFFUSERS, FORWARD]
    for name, row in rows.items():
        assert "error" not in row
        assert f"| {name} | 1 | {row['step']:.3f} | {row['kernels']} | {row['waits']} |" in report
        assert len(row["seconds"]) == 2 and row["peak"] > 0 and row["kernels"] > 0
    assert rows[NO_WORD]["foreseen"] > 0 and rows[NO_WORD]["plan"] and rows[NO_WORD]["computed in"] == "float32"
    assert rows[NO_WORD]["before the first step"] >= 0


@pytest.mark.slow
def test_ratios_are_those_of_the_seconds_a_step(measured):
    report, result = measured
    step = {row["contender"]: row["step"] for row in result["rows"]}
    found = {one["ratio"]: one["measured"] for one in result["ratios"]}
    assert found == {
        f"{NO_WORD} / {HOST}": pytest.approx(step[NO_WORD] / step[HOST]),
        f"{NO_WORD} / {FORWARD}": pytest.approx(step[NO_WORD] / step[FORWARD]),
    }
    assert f"| {NO_WORD} / {HOST} | 1 | {step[NO_WORD] / step[HOST]:.2f} | – |" in report


@pytest.mark.slow
def test_the_report_begins_with_the_machine_in_words(measured):
    report, result = measured
    assert report.startswith(result["machine"])
    for said in ("cores", "PyTorch", "Python", "ComfyUI", "PALP"):
        assert said in result["machine"]


@pytest.mark.slow
def test_a_contender_that_fails_is_a_row_with_its_sentence_and_the_others_go_on(tmp_path, host):
    flags = ("--only", FAILING, FORWARD, "--batch", "2", "--steps", "1", "--train", '{"rank": 0}')
    report, result = bench(tmp_path, *flags)
    failed, forward = result["rows"]
    assert failed["error"] == "fails: rank: 0 is out of range: it must be from 1 to 512." and "step" not in failed
    assert f"| {FAILING} | 2 | – |" in report and failed["error"] in report
    assert "error" not in forward and forward["step"] > 0


@pytest.mark.parametrize("flags", [("--full", "sdxl", "--narrow"), ("--full", "z-image", "--only", FAILING)])
def test_what_a_model_cannot_have_is_refused_before_anything_runs(tmp_path, flags):
    places = ("--comfyui", tmp_path, "--base", tmp_path, "--out", tmp_path)
    command = [sys.executable, "-m", "bench.run", *map(str, places), *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and f"{flags[2]}: " in done.stderr


@pytest.mark.slow
def test_a_contender_whose_time_is_over_is_ended_and_the_report_says_so(tmp_path, host):
    report, result = bench(tmp_path, "--only", FORWARD, "--batch", "1", "--limit", "0.5")
    assert result["rows"] == [{"contender": FORWARD, "batch": 1, "error": "ended after 0.5 s, its time"}]
    assert "ended after 0.5 s, its time" in report


def test_what_was_known_before_the_time_was_over_stays_known(tmp_path):
    from bench.full import MARK, last_figures

    log = tmp_path / "log"
    log.write_text(f'loading\n{MARK}{{"step": 1}}\nnoise\n{MARK}{{"step": 1, "kernels": 2}}\nmore', encoding="utf-8")
    assert last_figures(log) == {"step": 1, "kernels": 2}


def asked(name, **changes):
    from bench.full import asked

    given = {"only": None, "quick": False, "batch": None} | changes
    return asked(argparse.Namespace(full=name, **given))


def test_quick_asks_for_batch_one_without_checkpointing_and_all_asks_for_both():
    quick, everything = asked("sdxl", quick=True), asked("sdxl")
    assert set(quick) < set(everything) and 2 * len(quick) <= len(everything)
    assert {batch for _, batch in quick} == {1} and {batch for _, batch in everything} == {1, 8}
    assert not any("checkpointing" in name for name, _ in quick)


def test_rows_that_a_model_cannot_have_are_not_asked_for():
    names = {name for name, _ in asked("z-image")}
    assert DIFFUSERS not in names
    assert all("no word" in name for name in names if name.startswith("ours"))


def test_a_word_that_no_text_encoder_learns_is_said_so(pack):
    from bench import contenders

    run = contenders.OurRun(contenders.our_job(contenders.tiny("z_image"), 8, method="none"))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no text encoder of this model learns a word"):
        run()


def test_wanted_ratios_are_shown_for_batch_one_where_they_hold():
    from bench.full_report import ratios

    rows = [{"contender": "ours PALP", "batch": batch, "step": 3.0} for batch in (1, 8)]
    rows += [{"contender": HOST, "batch": batch, "step": 2.0} for batch in (1, 8)]
    wanted = {(one["batch"], one["wanted"]) for one in ratios(rows, wanted=True)}
    assert wanted == {(1, 0.9), (8, None)}
    assert {one["wanted"] for one in ratios(rows, wanted=False)} == {None}
    assert {one["measured"] for one in ratios(rows, wanted=True)} == {1.5}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_host_takes_what_is_drawn_for_the_published_model(pack, name, caplog):
    import comfy.model_detection
    import comfy.sd

    from bench import full_models

    size = full_models.sizes(name, narrow=False)
    network = size.network.model().diffusion_model.state_dict()
    found = comfy.model_detection.model_config_from_unet(dict(network), "")
    assert type(found).__name__ == size.network.host_class
    taken = found.get_model({}, device=torch.device("meta")).diffusion_model.state_dict()
    assert {key: t.shape for key, t in taken.items()} == {key: t.shape for key, t in network.items()}

    encoders = [full_models.encoder(one, {}).state_dict() for one in size.published.encoders]
    drawn = sum(t.numel() for encoder in encoders for t in encoder.values())
    kind = getattr(comfy.sd.CLIPType, size.published.clip_type)
    meta = {"initial_device": torch.device("meta")}
    clip = comfy.sd.load_text_encoder_state_dicts(encoders, clip_type=kind, model_options=meta)
    loaded = [(key, t) for key, t in clip.cond_stage_model.state_dict().items() if not key.endswith("logit_scale")]
    assert sum(t.numel() for _, t in loaded) == drawn
    assert not [record for record in caplog.records if "missing" in record.getMessage()]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({published.vae for published in PUBLISHED.values()}))
def test_the_host_takes_what_is_drawn_for_a_vae(pack, name, caplog):
    import comfy.sd

    from bench import full_models
    from bench.random_checkpoint import random_weights

    weights = random_weights(full_models.autoencoder(name), torch.Generator().manual_seed(0), torch.bfloat16)
    vae = comfy.sd.VAE(sd=dict(weights))
    taken = vae.first_stage_model.state_dict()
    assert {key: t.shape for key, t in taken.items()} == {key: t.shape for key, t in weights.items()}
    assert str(vae.latent_channels) in name
    assert not [record for record in caplog.records if "Missing" in record.getMessage()]


@pytest.mark.parametrize("name", ["SD 1.5, 512", "SDXL, 1024"])
def test_diffusers_unet_has_the_shape_of_the_hosts(pack, name):
    import comfy.utils
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from bench.diffusers_peft import unet_config
    from bench.full_size import FULL_SIZES

    host = FULL_SIZES[name].model()
    names = comfy.utils.unet_to_diffusers(host.model_config.unet_config)
    with torch.device("meta"):
        own = UNet2DConditionModel(**unet_config(host.model_config.unet_config)).state_dict()
    theirs = host.diffusion_model.state_dict()
    assert len(own) == len(theirs)
    assert {key: t.shape for key, t in own.items()} == {key: theirs[names[key]].shape for key in own}
