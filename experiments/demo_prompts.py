"""The prompts of the demo model's studies, in the words of its world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from demo.make.grammar import AT_TIME, IN_PLACE, STYLED
from experiments.world import Ask, Case


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All that a prompt asks for beside the subject."""

    style: str
    place: str = ""
    time: str = ""
    mark: str = ""
    color: str = ""
    hat: str = ""


STANDARD = (
    Setting(style="sketch", place="Paris", time="night"),
    Setting(style="watercolor", place="desert", time="sunset"),
    Setting(style="cartoon", place="space", time="night"),
    Setting(style="pixel art", place="city", time="night"),
    Setting(style="watercolor", place="Paris", time="night"),
    Setting(style="cartoon", place="desert", time="sunset"),
    Setting(style="sketch", place="city", time="sunset"),
    Setting(style="pixel art", place="beach", time="sunset"),
    Setting(style="cartoon", place="forest", time="night"),
    Setting(style="watercolor", place="snow", time="sunset"),
)
"""Four elements each, as in the paper: style, class, place, time."""
PLACES = ("Paris", "desert", "space", "city", "beach", "forest", "snow")
"""All but the plain studio, which has no words."""
NOTHING = ("",)
INSPIRED_BY = " inspired by "


def standard(case: Case) -> list[Ask]:
    """The ten prompts of four elements."""
    return [_ask(case, setting) for setting in STANDARD]


def growing(case: Case, others: Mapping[str, str]) -> list[Ask]:
    """Prompts of two elements, three, and so on: after style and class, place and time, then one more of the ``others``, which the subject does not have."""
    first = STANDARD[0]
    settings = [Setting(style=first.style), Setting(style=first.style, place=first.place), first]
    for name, value in others.items():
        settings.append(replace(settings[-1], **{name: value}))
    return [_ask(case, setting) for setting in settings]


def inspired(case: Case) -> list[Ask]:
    """Prompts for a subject in an artwork's manner; the clean one describes it instead, as the paper advises."""
    asks = [_ask(case, Setting(style="watercolor", place=place)) for place in ("desert", "city", "space")]
    return [Ask(name=ask.name, target=ask.target + INSPIRED_BY + case.taught[1].placeholder, clean=ask.clean, elements=ask.elements) for ask in asks]


def _ask(case: Case, setting: Setting) -> Ask:
    subjects = [taught for taught in case.taught if taught.class_word not in STYLED]
    words, classes = [taught.placeholder for taught in subjects], tuple(taught.class_word for taught in subjects)
    elements = {
        "style": (setting.style,),
        "kind": classes,
        "place": (setting.place,),
        "time": (setting.time,),
        "mark": (setting.mark,),
        "color": (setting.color,),
        "hat": (setting.hat,),
    }
    asked = {name: accepted for name, accepted in elements.items() if any(accepted)}
    name = " ".join(accepted[0] for attribute, accepted in asked.items() if attribute != "kind")
    clean = [_with_article(_described(word, setting)) for word in classes]
    target = [_described(word, setting) for word in words]
    return Ask(name=name, target=_phrase(target, setting), clean=_phrase(clean, setting), elements=asked)


def _described(noun: str, setting: Setting) -> str:
    return " ".join(word for word in (setting.mark, setting.color, noun, setting.hat and "with a hat") if word)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _phrase(subjects: list[str], setting: Setting) -> str:
    said = (STYLED[setting.style][0].format(" and ".join(subjects)), IN_PLACE.get(setting.place, NOTHING)[0], AT_TIME.get(setting.time, NOTHING)[0])
    return " ".join(part for part in said if part)
