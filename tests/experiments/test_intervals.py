"""Means, intervals and paired differences, against scipy."""

import math

import pytest
from scipy import stats

from experiments.intervals import Interval, Key, average, by_unit, contrast, interval, paired, shared


def of_subjects(values):
    """Numbers of subjects, seeds and prompts, of which each subject is a unit."""
    return {Key(case, seed, ask, unit=case): value for (case, seed, ask), value in values.items()}


FIRST = of_subjects({("a", 0, "sketch"): 0.31, ("a", 1, "sketch"): 0.29, ("b", 0, "sketch"): 0.44, ("b", 1, "sketch"): 0.38})
SECOND = of_subjects({("a", 0, "sketch"): 0.27, ("a", 1, "sketch"): 0.30, ("b", 0, "sketch"): 0.35, ("b", 1, "sketch"): 0.33})


def test_a_paired_difference_is_scipys():
    found = paired(FIRST, SECOND)
    expected = stats.ttest_rel([0.30, 0.41], [0.285, 0.34]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.count == 2


def test_an_interval_is_scipys():
    found = interval(list(FIRST.values()))
    expected = stats.ttest_1samp(list(FIRST.values()), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_pairs_are_made_of_shared_units_only():
    assert paired(FIRST, of_subjects({("b", 1, "sketch"): 0.33, ("c", 0, "sketch"): 9.0})).mean == pytest.approx(0.05)


def test_what_belongs_together_is_of_the_same_units_in_the_same_order():
    first, second = shared(FIRST, {**of_subjects({("c", 0, "sketch"): 9.0}), **dict(reversed(SECOND.items()))})
    assert list(first) == list(second) == sorted(FIRST) and second == SECOND


def test_pairs_are_made_of_the_same_prompts():
    both = of_subjects({("a", 0, "easy"): 0.9, ("a", 0, "hard"): 0.2})
    assert paired(both, of_subjects({("a", 0, "hard"): 0.1})).mean == pytest.approx(0.1)


def test_a_subject_counts_once_however_many_prompts_and_seeds_it_has():
    values = of_subjects({("a", 0, "easy"): 0.9, ("a", 0, "hard"): 0.5, ("a", 1, "easy"): 0.7, ("b", 0, "easy"): 0.3})
    assert by_unit(values) == pytest.approx({"a": 0.7, "b": 0.3})
    assert average(values).mean == pytest.approx(0.5) and average(values).count == 2


def test_values_that_are_all_the_same_decide_nothing():
    assert "nothing can be told" in interval([0.1 + 0.2, 0.3, 0.3]).verdict


def test_without_shared_units_there_is_no_difference():
    assert paired(FIRST, of_subjects({("c", 0, "sketch"): 1.0})) is None


def test_a_contrast_of_one_and_minus_one_is_a_paired_difference():
    assert contrast([(1.0, FIRST), (-1.0, SECOND)]).mean == pytest.approx(paired(FIRST, SECOND).mean)


def test_one_value_has_no_bounds_and_decides_nothing():
    found = interval([0.5])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert "one value" in found.verdict


@pytest.mark.parametrize(("low", "high", "verdict"), [(0.1, 0.3, "above 0"), (-0.3, -0.1, "below 0"), (-0.1, 0.1, "undecided: the interval includes 0")])
def test_the_verdict_says_on_which_side_of_zero_it_lies(low, high, verdict):
    assert Interval(mean=(low + high) / 2, low=low, high=high, count=5).verdict == verdict
