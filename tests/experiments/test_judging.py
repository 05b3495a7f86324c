"""Metrics on pictures whose measures are known."""

import pytest
import torch
from small_world import VALUES, ColorJudge, plain

from experiments.judging import elements_found, lpips_network, mean_pairwise_distance, mean_pairwise_lpips
from experiments.world import TEXT, Ask

RED, GREEN, DARK_GREEN = (1.0, 0.5, 0.5), (0.5, 1.0, 0.5), (0.0, 0.2, 0.0)


def found(pictures, **elements):
    return elements_found(ColorJudge(), VALUES, Ask(name="", target="", clean="", elements=elements), pictures)


def test_an_element_is_found_in_a_share_of_the_pictures():
    assert found(plain(RED, GREEN, GREEN, GREEN), color=("green",))["color"] == 0.75


def test_text_alignment_is_the_mean_over_elements():
    measures = found(plain(GREEN, DARK_GREEN), color=("green",), light=("bright",))
    assert measures == {"color": 1.0, "light": 0.5, TEXT: 0.75}


def test_any_accepted_value_counts():
    assert found(plain(RED, GREEN), color=("red", "green"))["color"] == 1.0


def test_pictures_that_are_alike_have_no_diversity():
    assert mean_pairwise_distance(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)


def test_diversity_is_the_mean_over_pairs():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert mean_pairwise_distance(rows) == pytest.approx(2 / 3)


def test_lpips_is_not_used_where_its_weights_are_not(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert lpips_network() is None


def test_lpips_is_averaged_over_pairs():
    distance = lambda a, b: (a - b).abs().mean(dim=(1, 2, 3))  # noqa: E731
    assert mean_pairwise_lpips(distance, plain((0, 0, 0), (1, 1, 1), (1, 1, 1))) == pytest.approx(4 / 3)
