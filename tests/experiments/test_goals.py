"""What is said of the goals, on made-up numbers."""

from dataclasses import replace

import pytest

from experiments.goals import goal_lines, prompt_goal, rival_line, subject_goal
from experiments.results import Row
from experiments.world import DIVERSITY, IMAGE, TEXT


def rows(metric, **by_condition):
    """One number for each condition, subject and seed; of each condition a little different in each subject."""
    made = []
    for number, (condition, value) in enumerate(by_condition.items()):
        for place, case in enumerate("abcdef"):
            for seed in range(3):
                apart = 0.01 * ((place * (number + 2)) % 5 - 2) + 0.05 * (seed - 1)
                about = dict(condition=condition, step=100, case=case, category="animals", ask="ask", elements=4, seed=seed)
                made.append(Row(**about, metric=metric, value=value + apart))
    return made


def test_the_share_won_back_is_of_what_none_loses():
    assert "wins back 90%" in prompt_goal(rows(TEXT, base=0.8, none=0.3, palp=0.75))


@pytest.mark.parametrize(("palp", "verdict"), [(0.78, "**reached**"), (0.5, "**missed**"), (0.7, "undecided")])
def test_the_prompt_goal_is_judged_with_its_uncertainty(palp, verdict):
    assert verdict in prompt_goal(rows(TEXT, base=0.8, none=0.3, palp=palp))


def test_the_share_and_its_verdict_are_of_the_same_subjects():
    found = rows(TEXT, base=0.8, none=0.3, palp=0.75)
    easy = [replace(row, value=row.value - 0.3) if row.condition == "base" and row.case == "a" else row for row in found]
    untrained = [row for row in easy if not (row.condition == "palp" and row.case == "a")]
    assert "wins back 90%" in prompt_goal(untrained) and "lost 0.5" in prompt_goal(untrained)


def test_what_is_not_known_to_be_lost_has_no_share():
    found = [
        replace(row, value=row.value + 0.4 * (ord(row.case) - ord("c"))) if row.condition == "base" else row for row in rows(TEXT, base=0.4, none=0.3, palp=0.5)
    ]
    assert "wins back" not in prompt_goal(found) and "not known to lose" in prompt_goal(found)


def test_where_none_loses_nothing_there_is_no_share():
    assert "no share of it can be told" in prompt_goal(rows(TEXT, base=0.3, none=0.4, palp=0.5))


@pytest.mark.parametrize(("palp", "verdict"), [(0.88, "**reached**"), (0.6, "**missed**"), (0.85, "undecided")])
def test_the_subject_may_fall_by_a_twentieth_of_the_way(palp, verdict):
    line = subject_goal(rows(IMAGE, base=-0.5, none=0.9, palp=palp), has_scale=True)
    assert verdict in line and "says little" not in line


def test_a_subject_that_was_not_learned_is_said_to_be():
    assert "says little" in subject_goal(rows(IMAGE, base=0.9, none=0.9, palp=0.9), has_scale=True)


def test_without_a_scale_the_fall_is_not_judged():
    line = subject_goal(rows(IMAGE, none=0.9, palp=0.5), has_scale=False)
    assert "reached" not in line and "missed" not in line


def test_a_rival_is_compared_in_pairs():
    assert "above 0" in rival_line(rows(DIVERSITY, palp=0.5, sds=0.3), "sds", DIVERSITY)


def test_every_rival_is_compared_by_prompt_subject_and_diversity():
    found = [row for metric in (TEXT, IMAGE, DIVERSITY) for row in rows(metric, palp=0.5, sds=0.3, nfsd=0.2)]
    said = [line.split(":")[0] for line in goal_lines(found, has_scale=True) if line.startswith("palp - ")]
    assert said == [f"palp - {rival}, {metric}" for rival in ("sds", "nfsd") for metric in (TEXT, IMAGE, DIVERSITY)]


def test_conditions_that_were_not_studied_are_not_mentioned():
    lines = goal_lines(rows(TEXT, base=0.8, none=0.3, palp=0.75), has_scale=True)
    assert len(lines) == 1 and lines[0].startswith("Prompt")
