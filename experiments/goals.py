"""What a study says about the method's two goals, and about its rivals."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.intervals import Interval, contrast, paired, shared
from experiments.results import Row, at_equal_steps
from experiments.world import DIVERSITY, IMAGE, TEXT

LEAD = "palp"
"""The condition that the goals are about."""
WON_BACK = 0.8
"""Of the text alignment that plain personalization loses against the base model: what alignment should win back at least."""
FALL = 0.05
"""Of the way from the subject to the nearest other instance: what alignment may cost at most."""
RIVALS = ("sds", "nfsd")


def goal_lines(rows: Sequence[Row], *, has_scale: bool) -> list[str]:
    """One line for each goal that the study's conditions allow to judge.

    Args:
        rows: the study's numbers.
        has_scale: whether a subject similarity of 0 is the nearest other instance and 1 the subject.
    """
    lines = [prompt_goal(rows), subject_goal(rows, has_scale=has_scale)]
    lines += [rival_line(rows, rival, metric) for rival in RIVALS for metric in (TEXT, IMAGE, DIVERSITY)]
    return [line for line in lines if line]


def prompt_goal(rows: Sequence[Row]) -> str | None:
    """The share of the lost text alignment that is won back; none where it is not known that any is lost.

    Whether it reaches the goal is judged by ``palp - none - 0.8 (base - none)``, whose sign is that of the share's excess over the goal.
    """
    base, none, ours = shared(*at_equal_steps(rows, TEXT, "base", "none", LEAD))
    lost, won = paired(base, none), paired(ours, none)
    margin = contrast([(1.0, ours), (WON_BACK - 1.0, none), (-WON_BACK, base)])
    if not (lost and won and margin):
        return None
    if lost.verdict != "above 0":
        return f"Prompt: none is not known to lose text alignment against base here ({lost}), so no share of it can be told; {LEAD} has {won} more than none."
    share = f"Prompt: {LEAD} wins back {won.mean / lost.mean:.0%} of the text alignment that none loses (lost {lost}, won back {won})"
    return f"{share}; goal at least {WON_BACK:.0%}: {_reached(margin)} (excess over the goal {margin})."


def subject_goal(rows: Sequence[Row], *, has_scale: bool) -> str | None:
    """The fall of subject similarity against plain personalization, which says little unless that has learned the subject."""
    base, none, ours = at_equal_steps(rows, IMAGE, "base", "none", LEAD)
    fall, learned = paired(none, ours), paired(none, base)
    if not fall:
        return None
    if not has_scale:
        return f"Subject: similarity falls by {fall} from none to {LEAD}; there is no other instance here that would give that a scale."
    said = f"Subject: similarity falls by {fall} of the way from the subject to the nearest other instance, from none to {LEAD}; goal at most {FALL}:"
    doubt = "" if learned and learned.verdict == "above 0" else " This says little: none itself is not known to be more like the subject than base."
    return f"{said} {_reached(fall.below(FALL))}.{doubt}"


def rival_line(rows: Sequence[Row], rival: str, metric: str) -> str | None:
    """The difference from another method."""
    difference = paired(*at_equal_steps(rows, metric, LEAD, rival))
    return f"{LEAD} - {rival}, {metric}: {difference}: {difference.verdict}." if difference else None


def _reached(margin: Interval) -> str:
    return {"above 0": "**reached**", "below 0": "**missed**"}.get(margin.verdict, f"**{margin.verdict}**")
