"""What a study does, before anything is trained."""

from dataclasses import replace

import pytest
from small_world import SmallWorld

from experiments.studies import STUDIES
from experiments.study import Cell, Plan, quick


def plan(name, **changes):
    return Plan(study=STUDIES[name], world=SmallWorld(), **changes)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_compares_with_the_base_model_and_with_no_alignment(name):
    names = [condition.name for condition in STUDIES[name].conditions]
    assert names[:2] == ["base", "none"] and "palp" in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", STUDIES)
def test_every_setting_of_every_study_is_one_of_the_packs(name):
    from palp_train.config import LossConfig

    for condition in STUDIES[name].conditions:
        LossConfig(**condition.loss)


def test_the_scales_hold_what_suits_the_model_once():
    factors = [condition.loss_factors for condition in STUDIES["scales"].conditions if condition.loss_factors]
    assert "palp" in [condition.name for condition in STUDIES["scales"].conditions] and len(factors) == 15
    assert {"alignment_scale": 1.0, "personalization_scale": 1.0} not in factors


def test_factors_are_of_what_suits_the_model(pack):
    from experiments.training import loss_config

    composed = next(condition for condition in STUDIES["subjects"].conditions if condition.name == "palp")
    cell = Cell(condition=composed, case=SmallWorld().cases("single")[0], asks=(), seed=0, looks=(1,))
    appendix_c, halved = loss_config(cell, SmallWorld()), loss_config(cell, SmallWorld(loss={"alignment_scale": 4.0}))
    assert (appendix_c.alignment_scale, appendix_c.personalization_scale) == (7.5, 1.0)
    assert (halved.alignment_scale, halved.personalization_scale) == (2.0, 1.0)


def test_what_suits_the_alignment_is_nothing_to_plain_personalization(pack, tmp_path):
    from experiments.training import files_of

    suited = SmallWorld(loss={"alignment_weight": 4.0})
    first = {cell.condition.name: cell for cell in reversed(plan("ablation").cells())}
    folders = {name: [files_of(first[name], world, tmp_path).folder for world in (SmallWorld(), suited)] for name in ("none", "sds", "palp")}
    assert {name: plain == other for name, (plain, other) in folders.items()} == {"none": True, "sds": False, "palp": False}


def test_what_does_not_see_the_prompt_is_trained_once_for_all_prompts():
    cells = [cell for cell in plan("noise").cells() if cell.condition.name == "none"]
    assert len(cells) == 2 * 3 and all(len(cell.asks) == 2 for cell in cells)


def test_alignment_is_trained_for_each_prompt():
    cells = [cell for cell in plan("noise").cells() if cell.condition.name == "palp"]
    assert len(cells) == 2 * 3 * 2 and all(len(cell.asks) == 1 for cell in cells)


def test_a_world_that_cannot_draw_the_subject_has_no_true_pictures():
    able, unable = ({cell.condition.name for cell in each.cells()} for each in (plan("ablation"), replace(plan("ablation"), world=SmallWorld(truth=None))))
    assert able - unable == {"drawn"}


def test_the_base_model_is_looked_at_without_training():
    assert {cell.looks for cell in plan("steps").cells() if cell.condition.name == "base"} == {(0,)}


def test_a_whole_comparison_is_done_before_the_next_seed():
    seeds = [cell.seed for cell in plan("noise").cells()]
    assert seeds == sorted(seeds)


@pytest.mark.parametrize("name", STUDIES)
def test_a_quick_study_is_short(name):
    short = quick(STUDIES[name])
    assert max(short.looks) <= 100 and short.samples <= 4


def test_an_unknown_subject_is_refused_with_those_there_are():
    with pytest.raises(SystemExit, match="has a, b"):
        plan("ablation", subjects=("c",)).cases()
