"""What is said of the goals, on made-up numbers."""

import pytest

from experiments.goals import goal_lines, prompt_goal, rival_line, subject_goal
from experiments.results import Row
from experiments.world import DIVERSITY, IMAGE, TEXT


def rows(metric, **by_condition):
    """One number for each condition and unit; of palp a little different in each seed."""
    made = []
    for condition, value in by_condition.items():
        for case in "ab":
            for seed in range(3):
                apart = 0.002 * (seed - 1) if condition == "palp" else 0.0
                about = dict(condition=condition, step=100, case=case, category="animals", ask="ask", elements=4, seed=seed)
                made.append(Row(**about, metric=metric, value=value + apart))
    return made


def test_the_share_won_back_is_of_what_none_loses():
    assert "wins back 90%" in prompt_goal(rows(TEXT, base=0.8, none=0.3, palp=0.75), "palp")


@pytest.mark.parametrize(("palp", "verdict"), [(0.78, "**reached**"), (0.5, "**missed**"), (0.7, "undecided")])
def test_the_prompt_goal_is_judged_with_its_uncertainty(palp, verdict):
    assert verdict in prompt_goal(rows(TEXT, base=0.8, none=0.3, palp=palp), "palp")


def test_where_none_loses_nothing_there_is_nothing_to_win_back():
    assert "nothing to win back" in prompt_goal(rows(TEXT, base=0.3, none=0.4, palp=0.5), "palp")


@pytest.mark.parametrize(("palp", "verdict"), [(0.88, "**reached**"), (0.6, "**missed**"), (0.85, "undecided")])
def test_the_subject_may_fall_by_a_twentieth_of_the_way(palp, verdict):
    line = subject_goal(rows(IMAGE, base=-0.5, none=0.9, palp=palp), "palp", has_scale=True)
    assert verdict in line and "says little" not in line


def test_a_subject_that_was_not_learned_is_said_to_be():
    assert "says little" in subject_goal(rows(IMAGE, base=0.9, none=0.9, palp=0.9), "palp", has_scale=True)


def test_without_a_scale_the_fall_is_not_judged():
    line = subject_goal(rows(IMAGE, none=0.9, palp=0.5), "palp", has_scale=False)
    assert "reached" not in line and "missed" not in line


def test_a_rival_is_compared_in_pairs():
    assert "above 0" in rival_line(rows(DIVERSITY, palp=0.5, sds=0.3), "palp", "sds", DIVERSITY)


def test_conditions_that_were_not_studied_are_not_mentioned():
    lines = goal_lines(rows(TEXT, base=0.8, none=0.3, palp=0.75), "palp", has_scale=True)
    assert len(lines) == 1 and lines[0].startswith("Prompt")
