"""What can be in a picture, and the many ways to ask for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from numpy.random import Generator

from demo.make.art import CODE_POINTS

KINDS = tuple(CODE_POINTS)
STYLES = ("photo", "cartoon", "sketch", "silhouette", "pixel art", "watercolor")
PLACES = ("studio", "Paris", "beach", "forest", "desert", "snow", "space", "city")
TIMES = ("day", "sunset", "night")
COLORS = ("natural", "red", "orange", "yellow", "green", "blue", "purple", "pink", "gray")
MARKS = ("plain", "spotted", "striped")
HATS = ("none", "hat")

IN_PLACE = {
    "studio": ("",),
    "Paris": ("in Paris",),
    "beach": ("on the beach", "at the beach"),
    "forest": ("in the forest", "in a forest"),
    "desert": ("in the desert", "in a desert"),
    "snow": ("in the snow", "in snow"),
    "space": ("in space", "in outer space"),
    "city": ("in the city", "in a city"),
}
AT_TIME = {"day": ("", "", "during the day", "by day"), "sunset": ("at sunset",), "night": ("at night",)}
STYLED = {
    "photo": ("a photo of {}", "photo of {}", "{}, photo", "{}"),
    "cartoon": ("a cartoon of {}", "cartoon of {}", "{}, cartoon", "a flat cartoon of {}"),
    "sketch": ("a sketch of {}", "sketch of {}", "{}, sketch", "a pencil sketch of {}"),
    "silhouette": ("a silhouette of {}", "silhouette of {}", "{}, silhouette", "the silhouette of {}"),
    "pixel art": ("pixel art of {}", "{}, pixel art", "a pixel art picture of {}", "pixel art, {}"),
    "watercolor": ("a watercolor of {}", "watercolor of {}", "{}, watercolor", "a watercolor painting of {}"),
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is asked for; everything else about the picture is left to chance."""

    kind: str
    style: str = "photo"
    place: str = "studio"
    time: str = "day"
    color: str = "natural"
    mark: str = "plain"
    hat: str = "none"


ATTRIBUTES = {"kind": KINDS, "style": STYLES, "place": PLACES, "time": TIMES, "color": COLORS, "mark": MARKS, "hat": HATS}
UNTOLD = {"color": "natural", "mark": "plain", "hat": "none"}
"""What a prompt has no words for."""
NOW_AND_THEN = 0.2
"""Part of the prompts without color, marks and hat."""


def random_scene(rng: Generator) -> Scene:
    """Any scene; plain natural creatures without a hat, studios and days somewhat more often."""
    place = _one(rng, PLACES)
    return Scene(
        kind=_one(rng, KINDS),
        style=_one(rng, (*STYLES, "photo")),
        place=place,
        time="day" if place == "studio" else _one(rng, TIMES),
        color=_one(rng, (*COLORS, "natural", "natural")),
        mark=_one(rng, (*MARKS, "plain")),
        hat=_one(rng, (*HATS, "none", "none")),
    )


def prompt(scene: Scene, rng: Generator, untold: float = NOW_AND_THEN) -> str:
    """One of the ways to ask for the scene; in that part of all cases without its color, marks and hat, which then vary."""
    return phrase(replace(scene, **UNTOLD) if rng.random() < untold else scene, rng)


def phrase(told: Scene, rng: Generator) -> str:
    """One of the ways to say all of the scene that is not taken for granted."""
    words = ["" if getattr(told, name) == UNTOLD[name] else getattr(told, name) for name in ("mark", "color")]
    if rng.random() < 0.3:
        words.reverse()
    creature = " ".join(word for word in (*words, told.kind) if word)
    creature = ("an " if creature[0] in "aeiou" else "a ") + creature
    hat = _one(rng, ("with a hat", "wearing a hat")) if told.hat == "hat" else ""
    where, when = _one(rng, IN_PLACE[told.place]), _one(rng, AT_TIME[told.time])
    return _arranged(rng, _one(rng, STYLED[told.style]), creature, hat, where, when)


def _arranged(rng: Generator, styled: str, creature: str, hat: str, where: str, when: str) -> str:
    comma = ", " if rng.random() < 0.25 else " "
    around = [part for part in (where, when) if part]
    if len(around) == 2 and rng.random() < 0.2:
        around.reverse()
    subject = " ".join(part for part in (creature, hat) if part)
    if rng.random() < 0.7:
        return styled.format(comma.join((subject, *around)))
    return comma.join((styled.format(subject), *around))


def _one(rng: Generator, choices: tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]
