"""The scale from the nearest other instance to the subject, on normal distributions whose answer is known."""

import pytest
import torch

from experiments.likeness import discriminants, likeness_scale

NEAR, FAR = (4.0, 0.0, 0.0), (0.0, 9.0, 0.0)
SPREAD = torch.tensor([1.0, 1.0, 30.0])
"""The third feature says nothing of who it is, loudly: as a style does."""


def drawn(middle, seed, count=400):
    return torch.tensor(middle) + SPREAD * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def others():
    return {"near": drawn(NEAR, 1), "far": drawn(FAR, 2)}


@pytest.fixture(scope="module")
def directions(others):
    return discriminants({"subject": drawn((0.0, 0.0, 0.0), 0), **others}, shrinkage=1e-4)


@pytest.fixture(scope="module")
def scale(directions, others):
    return likeness_scale(directions, drawn((0.0, 0.0, 0.0), 3), others)


def test_discriminants_leave_out_what_says_nothing_of_the_instance(directions):
    assert (directions[2].abs() * SPREAD[2]).max() < 0.2 * (directions[:2].abs() * SPREAD[:2, None]).max()


def test_pictures_of_one_instance_vary_by_one_along_each_discriminant(directions):
    assert (drawn(NEAR, 9).double() @ directions).std(dim=0).tolist() == pytest.approx([1.0, 1.0], rel=0.15)


def test_the_subject_is_at_one(scale):
    assert float(scale.likeness(drawn((0.0, 0.0, 0.0), 4)).mean()) == pytest.approx(1, abs=0.1)


def test_the_nearest_other_instance_is_at_zero(scale):
    assert scale.nearest == "near"
    assert float(scale.likeness(drawn(NEAR, 5)).mean()) == pytest.approx(0, abs=0.1)


def test_an_instance_further_away_is_below_zero(scale):
    assert float(scale.likeness(drawn(FAR, 6)).mean()) < -0.5


def test_an_instance_that_cannot_be_told_apart_is_no_measure(directions, others):
    twin = {"twin": drawn((0.0, 0.0, 0.0), 7), **others}
    assert likeness_scale(directions, drawn((0.0, 0.0, 0.0), 3), twin).nearest == "near"


def test_without_any_other_instance_to_tell_there_is_no_scale(directions):
    assert likeness_scale(directions, drawn((0.0, 0.0, 0.0), 3), {"twin": drawn((0.0, 0.0, 0.0), 7)}) is None
