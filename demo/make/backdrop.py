"""What is behind and around the subject: places drawn from polygons, no two alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

SIDE = 128
"""Drawn at twice the picture's size, so that edges come out smooth."""
Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Light:
    """What the time of the day does to a place."""

    sky: tuple[Color, Color]
    """At the top and at the horizon."""
    tint: tuple[float, float, float]
    """What everything lit is multiplied by."""


LIGHTS = {
    "day": Light(sky=((95, 165, 235), (200, 230, 250)), tint=(1.0, 1.0, 1.0)),
    "sunset": Light(sky=((120, 70, 140), (255, 150, 60)), tint=(1.0, 0.76, 0.62)),
    "night": Light(sky=((10, 12, 45), (40, 50, 110)), tint=(0.36, 0.42, 0.68)),
}


class Canvas:
    """A picture being drawn, in units of its side, lit by one light."""

    def __init__(self, time: str, rng: Generator) -> None:
        """Start with the sky."""
        self.rng, self.time, self.light = rng, time, LIGHTS[time]
        self.image = _gradient(*(self._varied(color, 12) for color in self.light.sky))
        self._pen = ImageDraw.Draw(self.image)

    def between(self, low: float, high: float) -> float:
        """A random number."""
        return float(self.rng.uniform(low, high))

    def lit(self, color: Color, vary: float = 14) -> Color:
        """The color, varied a little, in this light."""
        red, green, blue = (round(min(255, part * tint)) for part, tint in zip(self._varied(color, vary), self.light.tint, strict=True))
        return red, green, blue

    def polygon(self, points: list[tuple[float, float]], color: Color) -> None:
        """A filled polygon; the color is taken as it is."""
        self._pen.polygon([(x * SIDE, y * SIDE) for x, y in points], fill=color)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        """A filled rectangle."""
        self._pen.rectangle((left * SIDE, top * SIDE, right * SIDE, bottom * SIDE), fill=color)

    def disk(self, x: float, y: float, radius: float, color: Color, flat: float = 1.0) -> None:
        """A filled ellipse, ``flat`` times as high as wide."""
        high = radius * flat
        self._pen.ellipse(((x - radius) * SIDE, (y - high) * SIDE, (x + radius) * SIDE, (y + high) * SIDE), fill=color)

    def ridge(self, base: float, rise: float, waves: float, color: Color) -> None:
        """Everything below a wavy line around the height ``base``."""
        shift, x = self.between(0, 6.3), np.linspace(0, 1, 17)
        y = base + rise * np.sin(waves * x * 6.3 + shift)
        self.polygon([(0, 1.01), *zip(x.tolist(), y.tolist(), strict=True), (1, 1.01)], color)

    def _varied(self, color: Color, by: float) -> Color:
        red, green, blue = (int(np.clip(part + self.rng.uniform(-by, by), 0, 255)) for part in color)
        return red, green, blue


def backdrop(place: str, time: str, rng: Generator) -> Image.Image:
    """A place at a time of the day, RGB, ``SIDE`` pixels wide and high."""
    canvas = Canvas(time, rng)
    if place not in ("studio", "space", "forest"):
        _sun_moon_or_clouds(canvas)
    _DRAWN[place](canvas)
    return canvas.image


def _gradient(top: Color, bottom: Color) -> Image.Image:
    rows = np.linspace(top, bottom, SIDE * 5 // 8).clip(0, 255)
    rows = np.concatenate([rows, np.repeat(rows[-1:], SIDE - len(rows), axis=0)])
    return Image.fromarray(np.repeat(rows[:, None], SIDE, axis=1).astype(np.uint8))


def _sun_moon_or_clouds(canvas: Canvas) -> None:
    x = canvas.between(0.08, 0.92)
    if canvas.time == "night":
        _stars(canvas, 14)
        canvas.disk(x, canvas.between(0.08, 0.2), 0.06, (240, 240, 215))
    elif canvas.time == "sunset":
        canvas.disk(x, canvas.between(0.42, 0.52), 0.1, (255, 230, 130))
    else:
        for _ in range(canvas.rng.integers(1, 4)):
            x, y = canvas.between(0, 1), canvas.between(0.05, 0.3)
            for shift in (-0.07, 0.0, 0.08):
                canvas.disk(x + shift, y, 0.07, (250, 252, 255), 0.55)


def _stars(canvas: Canvas, count: int) -> None:
    for _ in range(count):
        canvas.disk(canvas.between(0, 1), canvas.between(0, 0.6), canvas.between(0.006, 0.012), (245, 245, 225))


def _studio(canvas: Canvas) -> None:
    wall = tuple(int(part) for part in canvas.rng.integers(150, 245, 3))
    canvas.box(0, 0, 1, 1, (wall[0], wall[1], wall[2]))
    horizon = canvas.between(0.66, 0.8)
    canvas.box(0, horizon, 1, 1, (wall[0] * 5 // 6, wall[1] * 5 // 6, wall[2] * 5 // 6))


def _paris(canvas: Canvas) -> None:
    ground = canvas.between(0.68, 0.76)
    _houses(canvas, ground)
    left = canvas.rng.random() < 0.5
    _tower(canvas, canvas.between(0.12, 0.26) if left else canvas.between(0.74, 0.88), ground)
    canvas.box(0, ground, 1, 1, canvas.lit((110, 165, 95)))
    canvas.box(0, ground + 0.08, 1, 1, canvas.lit((190, 185, 175)))


def _houses(canvas: Canvas, ground: float) -> None:
    x = -canvas.between(0, 0.1)
    while x < 1:
        wide, top = canvas.between(0.13, 0.2), ground - canvas.between(0.16, 0.26)
        canvas.box(x, top, x + wide, ground, canvas.lit((232, 216, 186)))
        canvas.polygon([(x, top), (x + 0.02, top - 0.08), (x + wide - 0.02, top - 0.08), (x + wide, top)], canvas.lit((95, 110, 135)))
        pane = (255, 220, 120) if canvas.time == "night" else canvas.lit((110, 130, 160))
        for row in np.arange(top + 0.03, ground - 0.03, 0.07):
            for column in np.arange(x + 0.025, x + wide - 0.03, 0.05):
                canvas.box(column, row, column + 0.02, row + 0.035, pane)
        x += wide


def _tower(canvas: Canvas, x: float, ground: float) -> None:
    """The Eiffel tower."""
    high, iron = canvas.between(0.58, 0.66), canvas.lit((125, 95, 75))
    at = lambda up, side: (x + side, ground - up * high)  # noqa: E731 - one use, a line each
    for side in (-1, 1):
        canvas.polygon([at(0, side * 0.15), at(0, side * 0.08), at(0.32, side * 0.02), at(0.95, 0), at(0.95, side * 0.012), at(0.35, side * 0.065)], iron)
    canvas.polygon([at(0.55, -0.034), at(0.55, 0.034), at(1, 0.006), at(1, -0.006)], iron)
    for up, side in ((0.26, 0.1), (0.5, 0.055)):
        canvas.box(x - side, ground - up * high - 0.018, x + side, ground - up * high + 0.012, iron)
    canvas.box(x - 0.006, ground - 1.08 * high, x + 0.006, ground - high * 0.9, iron)


def _beach(canvas: Canvas) -> None:
    horizon = canvas.between(0.48, 0.56)
    canvas.box(0, horizon, 1, 1, canvas.lit((40, 140, 205)))
    for _ in range(4):
        x, y = canvas.between(0, 0.9), horizon + canvas.between(0.02, 0.14)
        canvas.box(x, y, x + 0.16, y + 0.012, canvas.lit((130, 200, 235)))
    canvas.ridge(horizon + 0.19, 0.02, 1.2, canvas.lit((240, 250, 250)))
    canvas.ridge(horizon + 0.21, 0.02, 1.2, canvas.lit((238, 214, 150)))
    left = canvas.rng.random() < 0.5
    _palm(canvas, canvas.between(0.06, 0.18) if left else canvas.between(0.82, 0.94), horizon + 0.24)


def _palm(canvas: Canvas, x: float, foot: float) -> None:
    top, lean = foot - canvas.between(0.45, 0.55), canvas.between(-0.05, 0.05)
    canvas.polygon([(x - 0.025, foot), (x + 0.025, foot), (x + lean + 0.014, top), (x + lean - 0.014, top)], canvas.lit((140, 95, 55)))
    leaf = canvas.lit((45, 150, 65))
    for reach, drop in ((-0.22, 0.09), (0.22, 0.09), (-0.17, -0.04), (0.17, -0.04), (-0.1, 0.16), (0.1, 0.16)):
        middle = (x + lean + reach * 0.55, top + drop * 0.3 - 0.05)
        canvas.polygon([(x + lean, top - 0.015), middle, (x + lean + reach, top + drop), (middle[0], middle[1] + 0.05), (x + lean, top + 0.02)], leaf)


def _forest(canvas: Canvas) -> None:
    ground = canvas.between(0.66, 0.74)
    canvas.box(0, 0, 1, 1, canvas.lit((150, 200, 140)))
    for depth, green in ((0, (85, 150, 85)), (1, (40, 110, 55))):
        for x in np.arange(-0.05, 1.1, 0.24 - 0.02 * depth) + canvas.between(-0.1, 0.1):
            _tree(canvas, float(x) + canvas.between(-0.04, 0.04), ground, green, depth)
    canvas.ridge(ground, 0.015, 2, canvas.lit((80, 150, 60)))


def _tree(canvas: Canvas, x: float, ground: float, green: Color, depth: int) -> None:
    wide = 0.02 + 0.016 * depth
    canvas.box(x - wide, 0.2, x + wide, ground + 0.02, canvas.lit((105, 75, 50)))
    for shift, high in ((-0.08, 0.2), (0.08, 0.17), (0, 0.06), (0, 0.25)):
        canvas.disk(x + shift, high + canvas.between(-0.03, 0.03), 0.11, canvas.lit(green))


def _desert(canvas: Canvas) -> None:
    base = canvas.between(0.56, 0.64)
    if canvas.rng.random() < 0.6:
        x, high = canvas.between(0.2, 0.8), canvas.between(0.24, 0.34)
        canvas.polygon([(x - 0.28, base + 0.06), (x, base - high), (x + 0.28, base + 0.06)], canvas.lit((215, 165, 90)))
        canvas.polygon([(x + 0.08, base + 0.06), (x, base - high), (x + 0.28, base + 0.06)], canvas.lit((175, 125, 65)))
    canvas.ridge(base, 0.035, 0.8, canvas.lit((235, 180, 95)))
    canvas.ridge(base + 0.12, 0.03, 1.1, canvas.lit((222, 155, 75)))
    _cactus(canvas, canvas.between(0.06, 0.18) if canvas.rng.random() < 0.5 else canvas.between(0.82, 0.94), base + 0.16)


def _cactus(canvas: Canvas, x: float, foot: float) -> None:
    green, high = canvas.lit((60, 135, 70)), canvas.between(0.3, 0.4)
    canvas.box(x - 0.03, foot - high, x + 0.03, foot, green)
    for side in (-1, 1):
        arm, y = x + side * 0.085, foot - high * canvas.between(0.45, 0.6)
        canvas.box(min(x, arm), y, max(x, arm), y + 0.04, green)
        canvas.box(arm - 0.022, y - 0.12, arm + 0.022, y + 0.04, green)


def _snow(canvas: Canvas) -> None:
    base = canvas.between(0.6, 0.68)
    for x in (canvas.between(0.0, 0.35), canvas.between(0.6, 1.0)):
        peak, wide = base - canvas.between(0.3, 0.42), canvas.between(0.3, 0.42)
        canvas.polygon([(x - wide, base + 0.05), (x, peak), (x + wide, base + 0.05)], canvas.lit((120, 140, 170)))
        canvas.polygon([(x - wide / 3, peak + 0.13), (x, peak), (x + wide / 3, peak + 0.13), (x, peak + 0.09)], canvas.lit((245, 248, 255)))
    for _ in range(3):
        _fir(canvas, canvas.between(0, 1), base + canvas.between(0.02, 0.06))
    canvas.ridge(base + 0.03, 0.02, 1, canvas.lit((238, 244, 255)))
    for _ in range(22):
        canvas.disk(canvas.between(0, 1), canvas.between(0, 0.95), 0.011, canvas.lit((255, 255, 255)))


def _fir(canvas: Canvas, x: float, foot: float) -> None:
    green = canvas.lit((50, 105, 80))
    for up, wide in ((0.0, 0.09), (0.09, 0.07), (0.17, 0.05)):
        canvas.polygon([(x - wide, foot - up), (x, foot - up - 0.14), (x + wide, foot - up)], green)


def _space(canvas: Canvas) -> None:
    glow = {"day": (30, 60, 120), "sunset": (190, 90, 40), "night": (14, 10, 34)}[canvas.time]
    canvas.image.paste(_gradient((6, 5, 20), glow))
    _stars(canvas, 26)
    x, y, color = canvas.between(0.08, 0.92), canvas.between(0.1, 0.28), canvas.rng.integers(90, 240, 3)
    planet = (int(color[0]), int(color[1]), int(color[2]))
    canvas.disk(x, y, 0.2, (200, 185, 160), 0.25)
    canvas.disk(x, y, 0.11, planet)
    base = canvas.between(0.7, 0.78)
    canvas.ridge(base, 0.02, 0.6, canvas.lit((165, 165, 175)))
    for _ in range(4):
        canvas.disk(canvas.between(0, 1), base + canvas.between(0.07, 0.22), 0.06, canvas.lit((125, 125, 138)), 0.35)


def _city(canvas: Canvas) -> None:
    ground = canvas.between(0.7, 0.78)
    for tall, gray in ((0.5, (150, 165, 185)), (0.36, (90, 105, 135))):
        x = -canvas.between(0, 0.1)
        while x < 1:
            wide, top = canvas.between(0.11, 0.19), ground - tall * canvas.between(0.65, 1.2)
            canvas.box(x, top, x + wide, ground, canvas.lit(gray, 22))
            _windows(canvas, x, top, wide, ground)
            x += wide + canvas.between(0, 0.03)
    canvas.box(0, ground, 1, 1, canvas.lit((85, 85, 92)))
    for x in np.arange(canvas.between(-0.2, 0), 1, 0.25):
        canvas.box(float(x), ground + 0.12, float(x) + 0.12, ground + 0.14, canvas.lit((235, 225, 150)))


def _windows(canvas: Canvas, left: float, top: float, wide: float, ground: float) -> None:
    for row in np.arange(top + 0.03, ground - 0.03, 0.065):
        for column in np.arange(left + 0.025, left + wide - 0.025, 0.045):
            shines = canvas.time != "day" and canvas.rng.random() < 0.6
            canvas.box(column, row, column + 0.02, row + 0.03, (255, 220, 110) if shines else canvas.lit((200, 220, 240)))


_DRAWN: dict[str, Callable[[Canvas], None]] = {
    "studio": _studio,
    "Paris": _paris,
    "beach": _beach,
    "forest": _forest,
    "desert": _desert,
    "snow": _snow,
    "space": _space,
    "city": _city,
}
