"""The world that the demo model learned from: scenes, the words for them, and creatures."""

import itertools

import numpy as np
import pytest

from demo.make import dataset
from demo.make.creature import Creature, drawn
from demo.make.grammar import ATTRIBUTES, Scene, phrase, prompt, random_scene
from demo.make.subjects import CREATURES, neighbors, render
from experiments.demo_world import place_sprites

SCENE = Scene(kind="cat", style="sketch", place="Paris", time="night", color="red", mark="striped", hat="hat")


def phrases(scene):
    return {phrase(scene, np.random.default_rng(seed)) for seed in range(300)}


def test_a_phrase_tells_all_of_a_scene():
    words = ("sketch", "cat", "Paris", "night", "red", "striped", "hat")
    assert all(word in told for told in phrases(SCENE) for word in words)
    assert "a sketch of a striped red cat with a hat in Paris at night" in phrases(SCENE)


def test_what_is_taken_for_granted_has_no_words():
    assert "a photo of a cat" in phrases(Scene(kind="cat"))
    assert not any(word in told for told in phrases(Scene(kind="cat")) for word in ("natural", "plain", "none", "day ", "studio", "hat"))


def test_a_prompt_leaves_color_marks_and_hat_untold_as_often_as_is_wanted():
    told = [prompt(SCENE, np.random.default_rng(seed), untold=0.5) for seed in range(1000)]
    assert 430 < sum("red" in each for each in told) < 570
    assert all(("red" in each) == ("striped" in each) == ("hat" in each) for each in told)


def test_scenes_come_back_from_their_labels():
    rng = np.random.default_rng(0)
    for scene in [random_scene(rng) for _ in range(100)]:
        assert dataset.scene_of(np.array(dataset.label_row(scene), np.uint8)) == scene


def test_a_color_without_a_name_is_not_told():
    row = np.array(dataset.label_row(SCENE), np.uint8)
    row[list(ATTRIBUTES).index("color")] = dataset.NAMELESS
    told = dataset.scene_of(row)
    assert told.color == "natural" and told.mark == "striped"


def test_the_model_never_learns_a_subjects_hue():
    rng = np.random.default_rng(0)
    hues = np.array([dataset.hue_of_no_subject(rng) for _ in range(2000)])
    for creature in CREATURES.values():
        assert np.abs(hues - creature.hue).min() >= dataset.APART
    assert np.histogram(hues, bins=36, range=(0, 360))[0].min() == 0 and len(np.unique(hues.round(-1))) > 30


@pytest.mark.parametrize("change", [{"hat": True}, {"mark": "spotted"}, {"hue": 84.0}, {"mark": "striped", "hat": True}], ids=str)
def test_what_makes_a_creature_particular_can_be_seen(change):
    place_sprites()
    plain, other = (drawn(Creature(kind="cat", **each), "solid", 48)[0] for each in ({}, change))
    rows = min(len(plain), len(other))
    assert np.abs(plain[-rows:] - other[-rows:]).max() > 0.2


@pytest.mark.parametrize("name", CREATURES)
def test_a_subjects_neighbors_are_others_of_its_kind(name):
    place_sprites()
    itself, others = CREATURES[name], neighbors(CREATURES[name])
    assert len(others) >= 5 and {other.kind for other in others.values()} == {itself.kind}
    scene = Scene(kind="", style="cartoon", place="desert")
    pictures = {other: render(each, scene, np.random.default_rng(0)) for other, each in {**others, "itself": itself}.items()}
    assert all(np.abs(first - second).max() > 0.05 for first, second in itertools.combinations(pictures.values(), 2))
