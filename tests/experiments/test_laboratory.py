"""A study carried out on a tiny model of the host's own classes: files, resuming, report."""

import csv
from dataclasses import replace

import pytest
import torch
from small_world import SmallWorld

from experiments.intervals import Key, by_unit
from experiments.laboratory import _check_room, carry_out, costs_of, rows_of, unstable
from experiments.report import means_table, write_report
from experiments.results import Row, at_equal_steps, values
from experiments.store import CellFiles, read_pictures, write_json, write_pictures
from experiments.studies import STUDIES
from experiments.study import Plan
from experiments.training import files_of, looks_of, steps_missing
from experiments.world import TEXT


@pytest.fixture(scope="module")
def world(pack):
    import tiny_models

    return SmallWorld(models=tiny_models.sd15())


@pytest.fixture(scope="module")
def plan(world):
    return Plan(study=replace(STUDIES["ablation"], looks=(1, 2), samples=2, seeds=2, prompts=1), world=world, subjects=("a",))


@pytest.fixture(scope="module")
def folder(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    carry_out(plan, folder / "cells")
    return folder


@pytest.fixture(scope="module")
def report(plan, folder):
    return write_report(plan, folder / "cells", folder / "ablation")


def test_every_condition_prompt_seed_and_look_is_measured(plan, folder):
    found = {(row.condition, row.ask, row.seed, row.step) for row in rows_of(plan, folder / "cells")}
    looks = {condition.name: (1, 2) if condition.trained else (0,) for condition in plan.study.conditions}
    assert found == {(name, "ask 0", seed, step) for name, steps in looks.items() for step in steps for seed in range(2)}


def test_true_pictures_show_what_the_prompt_asks_for(plan, folder):
    found = {row.value for row in rows_of(plan, folder / "cells") if row.condition == "drawn" and row.metric == TEXT}
    assert found == {1.0}


def test_every_training_has_its_cost(plan, folder):
    costs = costs_of(plan, folder / "cells")
    assert len(costs) == 2 * 2 * 6  # looks x seeds x trained conditions
    assert all(cost.seconds > 0 and cost.peak_memory > 0 for cost in costs)


def test_nothing_half_written_is_left(folder, report):
    assert not list(folder.rglob("partial-*"))


def test_what_is_there_is_not_done_again(plan, folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").rglob("*")}
    plan.world.measured.clear()
    carry_out(plan, folder / "cells")
    assert {path: path.stat().st_mtime_ns for path in (folder / "cells").rglob("*")} == before
    assert not plan.world.measured


def test_only_what_is_missing_is_done(plan, folder):
    lost = sorted((folder / "cells").rglob("*.png"))[0]
    pictures = lost.read_bytes()
    measures = next(lost.parent.glob(f"{lost.stem}-*.json"))
    others = {path: path.stat().st_mtime_ns for path in (folder / "cells").rglob("*.*") if path not in (lost, measures)}
    lost.unlink()
    measures.unlink()
    carry_out(plan, folder / "cells")
    assert lost.read_bytes() == pictures
    assert {path: path.stat().st_mtime_ns for path in others} == others


def test_other_settings_are_other_trainings(plan, folder):
    other = replace(plan.world, train={"rank": 3})
    cell = plan.cells()[1]
    assert steps_missing(cell, files_of(cell, plan.world, folder / "cells")) == 0
    assert steps_missing(cell, files_of(cell, other, folder / "cells")) == 2


def test_other_pictures_of_the_subject_are_another_training(plan, folder):
    cell = next(cell for cell in plan.cells() if cell.condition.name == "none")
    (taught,) = cell.case.taught
    repainted = replace(taught, images=(taught.images[0].flip(0), *taught.images[1:]))
    other = replace(cell, case=replace(cell.case, taught=(repainted,)))
    assert files_of(cell, plan.world, folder).folder != files_of(other, plan.world, folder).folder


def test_conditions_start_from_the_same_noise_and_end_elsewhere(plan, folder):
    none, palp = (values(rows_of(plan, folder / "cells"), name, "subject similarity") for name in ("none", "palp"))
    assert none.keys() == palp.keys() == {Key("a", seed, "ask 0", unit=seed) for seed in range(2)}
    assert all(none[key] != palp[key] for key in none)


def test_the_report_contains_every_condition(plan, report):
    text = report.read_text()
    assert all(f"| {condition.name} |" in text for condition in plan.study.conditions)


def test_the_reports_figures_and_sheets_are_there(report):
    import re

    links = re.findall(r"!\[.*?\]\((.+?)\)", report.read_text())
    assert len(links) == 4 + 1  # the trade-off and three curves; a sheet for the prompt
    assert all((report.parent / link).stat().st_size > 1000 for link in links)


def test_the_numbers_are_there_as_csv(plan, folder, report):
    with (report.parent / "measures.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows_of(plan, folder / "cells"))


@pytest.mark.parametrize("along", sorted({study.along for study in STUDIES.values()}))
def test_other_comparisons_have_their_figures(plan, folder, tmp_path, along):
    other = replace(plan, study=replace(plan.study, along=along))
    assert write_report(other, folder / "cells", tmp_path).is_file()


def test_a_report_of_nothing_is_refused(plan, tmp_path):
    with pytest.raises(SystemExit, match="Nothing of ablation"):
        write_report(plan, tmp_path / "cells", tmp_path)


def test_a_training_that_does_not_stay_finite_is_noted_and_the_study_goes_on(pack, tmp_path):
    import tiny_models

    broken = tiny_models.sd15()
    with torch.inference_mode():
        broken.model.model.diffusion_model.out[2].weight.fill_(float("inf"))
    study = replace(STUDIES["ablation"], conditions=STUDIES["ablation"].conditions[1:3], looks=(1, 2), samples=2, seeds=1, prompts=1)
    plan = Plan(study=study, world=SmallWorld(models=broken), subjects=("a",))
    carry_out(plan, tmp_path)
    assert [line.split(" a ")[0] for line in unstable(plan, tmp_path)] == ["none", "sds"]


def test_a_subject_of_two_is_trained_together(world, tmp_path):
    study = replace(STUDIES["subjects"], looks=(1,), samples=2, seeds=1, prompts=1)
    plan = Plan(study=study, world=world)
    carry_out(plan, tmp_path)
    assert {row.case for row in rows_of(plan, tmp_path)} == {"a+b"}
    assert "goal" not in write_report(plan, tmp_path, tmp_path / "report").read_text()


def test_pictures_come_back_from_their_strip(tmp_path):
    pictures = (torch.rand(3, 8, 6, 3) * 255).round() / 255
    write_pictures(tmp_path / "strip.png", pictures)
    assert torch.equal(read_pictures(tmp_path / "strip.png", 3), pictures)


def test_conditions_are_compared_after_the_last_step_that_both_were_looked_at():
    about = dict(case="a", category="", elements=1, seed=0, metric="m", ask="ask")
    steps = {"base": (0,), "none": (1, 2, 3), "palp": (1, 2)}  # palp became unstable
    rows = [Row(**about, condition=name, step=step, value=float(step)) for name, each in steps.items() for step in each]
    assert values(rows, "none", "m") == {Key("a", 0, "ask", unit=0): 3.0}
    assert at_equal_steps(rows, "m", "base", "none", "palp") == [{Key("a", 0, "ask", unit=0): value} for value in (0.0, 2.0, 2.0)]


def test_what_cannot_be_measured_after_the_last_step_is_not_replaced_by_an_earlier_look():
    about = dict(case="a", category="", elements=1, seed=0, condition="none", ask="ask")
    rows = [Row(**about, metric="m", step=1, value=0.5), Row(**about, metric="other", step=2, value=0.5)]
    assert values(rows, "none", "m") == {} and values(rows, "none", "other") == {Key("a", 0, "ask", unit=0): 0.5}


def test_each_seed_of_a_studys_lone_subject_is_a_unit_and_of_several_each_subject():
    about = dict(category="", elements=1, step=0, condition="base", metric="m")
    measured = (("a", 0, "easy", 0.9), ("a", 0, "hard", 0.5), ("a", 1, "easy", 0.8))
    alone = [Row(**about, case=case, seed=seed, ask=ask, value=value) for case, seed, ask, value in measured]
    assert by_unit(values(alone, "base", "m")) == pytest.approx({0: 0.7, 1: 0.8})
    elsewhere = Row(**{**about, "metric": "other"}, case="b", seed=0, ask="easy", value=0.1)
    assert by_unit(values([*alone, elsewhere], "base", "m")) == pytest.approx({"a": 2.2 / 3})


def test_a_number_of_fewer_subjects_says_so():
    about = dict(category="", elements=1, seed=0, step=0, condition="base", ask="ask")
    rows = [Row(**about, case=case, metric=metric, value=value) for case, metric, value in (("a", "m", 0.1), ("b", "m", 0.3), ("a", "n", 0.1))]
    assert means_table(rows).splitlines()[-1].endswith("| 0.100 (1) |")


def test_a_training_can_be_looked_at_before_it_was_found_unstable(plan, tmp_path):
    cell = next(cell for cell in plan.cells() if cell.condition.trained)
    files = CellFiles(folder=tmp_path)
    write_json(files.unstable, {"step": 2, "why": "not finite"})
    assert looks_of(cell, files) == [1] and steps_missing(cell, files) == 1


def test_what_happened_after_the_last_look_is_not_noted(plan, folder):
    cell = next(cell for cell in plan.cells() if cell.condition.trained)
    note = files_of(cell, plan.world, folder / "cells").unstable
    for step, noted in ((3, []), (2, [f"{cell.title}: not finite"])):
        write_json(note, {"step": step, "why": "not finite"})
        assert unstable(plan, folder / "cells") == noted
    note.unlink()


def test_a_lora_that_is_gone_is_trained_again_only_where_pictures_are_missing(plan, folder):
    cell = next(cell for cell in plan.cells() if cell.condition.trained)
    files = files_of(cell, plan.world, folder / "cells")
    kept = files.checkpoint(2).rename(files.checkpoint(2).with_suffix(".kept"))
    assert (steps_missing(cell, files), steps_missing(cell, files, [1]), steps_missing(cell, files, [2])) == (0, 0, 2)
    kept.rename(files.checkpoint(2))


def test_loras_that_the_disk_has_no_room_for_are_refused_before_they_are_trained(tmp_path):
    made = CellFiles(folder=tmp_path / "made")
    made.folder.mkdir()
    with made.checkpoint(1).open("wb") as file:
        file.truncate(2**42)  # sparse: it takes no room itself
    with pytest.raises(SystemExit, match=r"still to be trained take 8192\.0 GiB below .* GiB are free"):
        _check_room(made, 2)
    _check_room(made, 0)


def test_a_lora_of_a_study_knows_the_class_word_for_encoders_that_learn_no_vectors(plan, folder, pack):
    from experiments.training import part

    file = next((folder / "cells").rglob("step-00002.safetensors"))
    (word,) = part("palp_train.checkpoint").read_checkpoint(file, file.name).words
    assert (word.placeholder, word.class_word) == ("[V]", "cat")


class DarkWorld(SmallWorld):
    """The same prompts, of which one element more is wanted."""

    def asks(self, kind, case):
        return [replace(ask, elements={**ask.elements, "light": ("dark",)}) for ask in super().asks(kind, case)]


def test_a_prompt_with_other_elements_is_measured_anew(plan, tmp_path):
    plan = replace(plan, study=replace(plan.study, conditions=plan.study.conditions[:1], seeds=1))
    carry_out(plan, tmp_path)
    dark = replace(plan, world=DarkWorld(models=plan.world.models))
    carry_out(dark, tmp_path)
    assert {row.metric for row in rows_of(dark, tmp_path)} - {row.metric for row in rows_of(plan, tmp_path)} == {"light"}


def test_a_report_takes_an_earlier_ones_place(plan, folder, tmp_path):
    stale = tmp_path / "report" / "sheet-of-another-prompt.jpg"
    stale.parent.mkdir()
    stale.touch()
    assert write_report(plan, folder / "cells", stale.parent).is_file() and not stale.exists()


def test_an_earlier_report_stays_where_a_new_one_fails(plan, folder, tmp_path):
    earlier = tmp_path / "report" / "report.md"
    earlier.parent.mkdir()
    earlier.touch()
    with pytest.raises(AttributeError):
        write_report(replace(plan, study=replace(plan.study, along="nothing")), folder / "cells", earlier.parent)
    assert list(tmp_path.rglob("*.*")) == [earlier]


def test_every_look_is_in_the_report(plan, report):
    table = report.read_text().split("## By steps")[1].split("##")[0]
    assert all(f"| palp | {step} |" in table for step in plan.study.looks)


def test_pictures_of_other_settings_have_another_name(tmp_path):
    files = CellFiles(folder=tmp_path)
    assert files.pictures(1, "ask", {"count": 2}) != files.pictures(1, "ask", {"count": 3})
