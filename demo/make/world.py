"""Pictures of scenes: a creature in front of a place, composed in one of the styles."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from demo.make.backdrop import LIGHTS, backdrop
from demo.make.creature import LUMA, Creature, Picture, drawn, random_creature
from demo.make.grammar import Scene

SIDE = 64
PAPER = {"day": (0.97, 0.96, 0.93), "sunset": (0.98, 0.8, 0.58), "night": (0.16, 0.18, 0.3)}
SKIES = {"day": ((0.45, 0.65, 0.85), (0.97, 0.99, 1.0)), "sunset": ((0.75, 0.25, 0.3), (1.0, 0.85, 0.45)), "night": ((0.12, 0.12, 0.32), (0.42, 0.45, 0.75))}


def picture(scene: Scene, rng: Generator, creature: Creature | None = None) -> Picture:
    """A picture of the scene, shape (64, 64, 3), values in [0, 1].

    Args:
        scene: what has to be in it.
        rng: where everything else comes from.
        creature: who is in it; None: any that the scene's words describe.
    """
    creature = creature or random_creature(scene, rng)
    layers = _layers(scene, creature, rng)
    return _STYLED[scene.style](*layers, scene.time, rng).clip(0, 1).astype(np.float32)


def _layers(scene: Scene, creature: Creature, rng: Generator) -> tuple[Picture, Picture, Picture]:
    """The place (64, 64, 3), the creature in it (64, 64, 3) and the creature's coverage (64, 64, 1)."""
    small = backdrop(scene.place, scene.time, rng).resize((SIDE, SIDE), Image.Resampling.BOX)
    behind = np.asarray(small, np.float32) / 255
    kind_of_art = "solid" if scene.style in ("photo", "watercolor") else "flat"
    least = 0.6 if scene.style == "pixel art" else 0.48
    colors, cover = drawn(creature, kind_of_art, round(SIDE * rng.uniform(least, 0.75)))
    if rng.random() < 0.5:
        colors, cover = colors[:, ::-1], cover[:, ::-1]
    return behind, *_placed(colors, cover, rng)


def _placed(colors: Picture, cover: Picture, rng: Generator) -> tuple[Picture, Picture]:
    high, wide = cover.shape[:2]
    high = min(high, SIDE)
    lowest = SIDE - high
    top = int(np.clip(round(rng.uniform(0.3, 0.95) * lowest), 0, lowest))
    left = int(np.clip(round(rng.normal(0.5, 0.22) * (SIDE - wide)), 0, SIDE - wide))
    front, alpha = np.zeros((SIDE, SIDE, 3), np.float32), np.zeros((SIDE, SIDE, 1), np.float32)
    front[top : top + high, left : left + wide] = colors[-high:]
    alpha[top : top + high, left : left + wide] = cover[-high:]
    return front, alpha


def _over(front: Picture, alpha: Picture, behind: Picture) -> Picture:
    return front * alpha + behind * (1 - alpha)


def _in_light(front: Picture, time: str) -> Picture:
    """The creature in half of the place's light, so that its colors can still be told."""
    return front * (0.5 + 0.5 * np.array(LIGHTS[time].tint, np.float32))


def _blurred(image: Picture, radius: float) -> Picture:
    whole = Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8))
    return np.asarray(whole.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _photo(behind: Picture, front: Picture, alpha: Picture, time: str, rng: Generator) -> Picture:
    """A solid creature, its shadow, and a place a little out of focus that darkens towards the ground."""
    fall = np.linspace(1.08, 0.82, SIDE, dtype=np.float32)[:, None, None]
    behind = _blurred(behind, 0.9) * fall
    rows = np.flatnonzero(alpha.max(axis=(1, 2)) > 0.5)
    columns = np.flatnonzero(alpha[rows[-1] - 3 : rows[-1] + 1].max(axis=(0, 2)) > 0.5)
    y, x = np.mgrid[:SIDE, :SIDE]
    half = max(4.0, (columns[-1] - columns[0]) / 2 + 2)
    far = np.hypot((x - columns.mean()) / half, (y - rows[-1]) / 3.0)
    shadow = 0.45 * np.clip(1.4 - far, 0, 1)[..., None]
    return _over(_in_light(front, time), alpha, behind * (1 - shadow))


def _cartoon(behind: Picture, front: Picture, alpha: Picture, time: str, rng: Generator) -> Picture:
    """Flat colors, brighter than life, and a dark line around the creature."""
    line = Image.fromarray((alpha[..., 0] * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
    outline = (np.asarray(line, np.float32) / 255)[..., None]
    gray = behind.mean(axis=2, keepdims=True)
    behind = gray + 1.25 * (behind - gray)
    return _over(_in_light(front, time), alpha, _over(np.full_like(front, 0.08), outline, behind))


def _sketch(behind: Picture, front: Picture, alpha: Picture, time: str, rng: Generator) -> Picture:
    """Lines on paper, the creature lightly colored in; on dark paper at night."""
    paper = np.array(PAPER[time], np.float32)
    ink = np.float32(0.88) if time == "night" else np.array((0.22, 0.2, 0.22), np.float32)
    line = np.maximum(_edges(behind) * 0.75 * (1 - alpha[..., 0]), _edges(_over(front, alpha, np.full_like(front, 1.6))))[..., None]
    colored = paper + (front - paper) * 0.45 * alpha
    return colored + (ink - colored) * line.clip(0, 1)


def _edges(image: Picture) -> Picture:
    """How much the brightness changes from a pixel to the next, (64, 64), about 1 on lines."""
    shade = np.pad(image @ LUMA, 1, mode="edge")
    return np.hypot(shade[1:-1, 2:] - shade[1:-1, :-2], shade[2:, 1:-1] - shade[:-2, 1:-1]) * 2.2


def _silhouette(behind: Picture, front: Picture, alpha: Picture, time: str, rng: Generator) -> Picture:
    """The creature all dark, before a place in two tones of the sky."""
    low, high = (np.array(tone, np.float32) for tone in SKIES[time])
    shade = behind @ LUMA
    spread = np.clip((shade - shade.min()) / max(float(np.ptp(shade)), 0.2), 0, 1)[..., None]
    return _over(0.04 + front * 0.06, alpha, low + (high - low) * spread)


def _pixel_art(behind: Picture, front: Picture, alpha: Picture, time: str, rng: Generator) -> Picture:
    """16 x 16 squares in few colors."""
    blocks = _over(_in_light(front, time), alpha, behind).reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    gray = blocks.mean(axis=2, keepdims=True)
    few = np.round((gray + 1.35 * (blocks - gray)).clip(0, 1) * 5) / 5
    return few.repeat(4, axis=0).repeat(4, axis=1)


def _watercolor(behind: Picture, front: Picture, alpha: Picture, time: str, rng: Generator) -> Picture:
    """Pale colors that run, on white paper that shows at the rim."""
    painted = _over(_in_light(front, time), alpha, behind)
    whole = Image.fromarray((painted.clip(0, 1) * 255).astype(np.uint8)).filter(ImageFilter.MedianFilter(5))
    pale = 1 - (1 - np.asarray(whole, np.float32) / 255) * 0.72
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) * 2 - 1
    ragged = 0.05 * np.sin(np.arctan2(y, x) * rng.integers(6, 11) + rng.uniform(0, 6.3))
    rim = np.clip((np.maximum(np.abs(x), np.abs(y)) - 0.84 + ragged) * 9, 0, 1)[..., None]
    return pale + (1.0 - pale) * rim


_STYLED = {"photo": _photo, "cartoon": _cartoon, "sketch": _sketch, "silhouette": _silhouette, "pixel art": _pixel_art, "watercolor": _watercolor}
