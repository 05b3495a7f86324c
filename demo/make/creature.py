"""One particular creature: a kind's art in its own color and with its own marks."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from demo.make.art import CODE_POINTS, HAT, SIDE, sprite
from demo.make.grammar import Scene

Picture = NDArray[Any]

HUES = {"red": (0, 7), "orange": (28, 5), "yellow": (52, 5), "green": (125, 13), "blue": (220, 10), "purple": (275, 8), "pink": (328, 8)}
"""Degrees, and how far instances lie from them: turquoise (178) and lime (84) are left for subjects that the model never saw."""
HEADS = {"cat": 0.2, "whale": 0.4, "snail": 0.2, "guitar": 0.75}
"""Where a hat goes, from the left, on those whose highest point is not a head."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, kw_only=True)
class Creature:
    """What stays the same in all pictures of one creature."""

    kind: str
    hue: float | None = None
    """Degrees; None: the art's own colors."""
    saturation: float = 0.75
    mark: str = "plain"
    """One of ``grammar.MARKS``."""
    hat: bool = False
    mark_color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pattern: int = 0
    """Seed of where spots and stripes lie, and of their size."""


def random_creature(scene: Scene, rng: Generator) -> Creature:
    """An instance of what the scene asks for."""
    middle, spread = HUES.get(scene.color, (0, 180))
    colored = scene.color != "natural"
    return Creature(
        kind=scene.kind,
        hue=float(rng.normal(middle, spread / 2)) % 360 if colored else None,
        saturation=0.06 if scene.color == "gray" else float(rng.uniform(0.65, 0.9)),
        mark=scene.mark,
        hat=scene.hat == "hat",
        mark_color=_mark_color(rng),
        pattern=int(rng.integers(2**31)),
    )


def _mark_color(rng: Generator) -> tuple[float, float, float]:
    """White, nearly black, or one of the named hues."""
    choice = rng.random()
    if choice < 0.6:
        return (0.97, 0.97, 0.95) if choice < 0.3 else (0.16, 0.13, 0.15)
    middle, _ = list(HUES.values())[rng.integers(len(HUES))]
    return colorsys.hsv_to_rgb(middle / 360, 0.8, 0.95)


def drawn(creature: Creature, kind_of_art: str, side: int) -> tuple[Picture, Picture]:
    """The creature's picture, at most ``side`` pixels wide and high.

    Args:
        creature: whom to draw.
        kind_of_art: "solid" or "flat".
        side: in pixels.

    Returns:
        Colors (H, W, 3) and coverage (H, W, 1), both in [0, 1].
    """
    art = np.asarray(sprite(CODE_POINTS[creature.kind], kind_of_art), np.float32) / 255
    colors, cover = art[..., :3], art[..., 3:]
    shade = colors @ LUMA
    middle = float(np.median(shade[cover[..., 0] > 0.5]))
    if creature.hue is not None:
        value = 0.92 if creature.saturation > 0.2 else 0.62
        colors = _dyed(colors, shade, middle, colorsys.hsv_to_rgb(creature.hue / 360, creature.saturation, value))
    if creature.mark != "plain":
        colors = _marked(colors, shade, middle, creature)
    whole = Image.fromarray((np.concatenate([colors, cover], axis=2).clip(0, 1) * 255).astype(np.uint8), "RGBA")
    if creature.hat:
        whole = _with_hat(whole, kind_of_art, HEADS.get(creature.kind))
    small = np.asarray(whole.resize((side, round(side * whole.height / whole.width)), Image.Resampling.BOX), np.float32) / 255
    return small[..., :3], small[..., 3:]


def _dyed(colors: Picture, shade: Picture, middle: float, dye: tuple[float, float, float]) -> Picture:
    """The art with its shades in one color: as bright as the dye where the art has its median brightness."""
    ratio = (shade / max(middle, 0.25))[..., None]
    dark = np.array(dye, np.float32) * np.minimum(ratio, 1) ** 1.2
    light = np.clip((shade[..., None] - middle) / max(1 - middle, 0.2), 0, 1) * 0.75
    return (dark + (1 - dark) * light) * 0.85 + colors * 0.15


def _marked(colors: Picture, shade: Picture, middle: float, creature: Creature) -> Picture:
    """Spots or stripes; eyes and outlines, which are dark, stay on top of them."""
    where = _spots(creature.pattern) if creature.mark == "spotted" else _stripes(creature.pattern)
    where = where * np.clip((shade - 0.35 * middle) / (0.25 * middle), 0, 1)
    shaded = np.array(creature.mark_color, np.float32) * np.clip(0.55 + 0.45 * shade[..., None] / max(middle, 0.2), 0.5, 1.1)
    return colors + (shaded - colors) * where[..., None]


def _spots(seed: int) -> Picture:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    where, step = np.zeros((SIDE, SIDE), np.float32), rng.uniform(20, 26)
    for row in range(6):
        for column in range(6):
            middle = (np.array([row, column + row % 2 / 2]) + rng.uniform(-0.18, 0.18, 2)) * step
            far = np.hypot(y - middle[0], x - middle[1])
            where = np.maximum(where, np.clip(step * rng.uniform(0.26, 0.36) - far + 0.5, 0, 1))
    return where


def _stripes(seed: int) -> Picture:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    angle, length = rng.uniform(-0.35, 0.35), rng.uniform(15, 20)
    along = x * np.cos(angle) + y * np.sin(angle) + 2.5 * np.sin(y / rng.uniform(9, 14))
    return np.clip(np.sin(along * 2 * np.pi / length + rng.uniform(0, 6.3)) * 4 - 0.6, 0, 1)


def _with_hat(creature: Image.Image, kind_of_art: str, head: float | None) -> Image.Image:
    """The creature with a hat on its head, or else on its highest point; the picture grows upwards."""
    solid = np.asarray(creature)[..., 3] > 128
    highest = int(np.argmax(solid.any(axis=1)))
    x = round(head * SIDE) if head else round(float(np.mean(np.flatnonzero(solid[min(highest + 5, SIDE - 1)]))))
    top = int(np.argmax(solid[:, x - 6 : x + 6].any(axis=1)))
    hat = sprite(HAT, kind_of_art).resize((40, 40), Image.Resampling.BOX)
    taller = Image.new("RGBA", (SIDE, SIDE + 30))
    taller.paste(creature, (0, 30))
    taller.alpha_composite(hat, (int(np.clip(x - 20, 0, SIDE - 40)), max(0, 30 + top - 32)))
    return taller
