"""The pictures that everything learns from, drawn once: shards of pixels and of what is in them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from tqdm import tqdm

from demo.make import art
from demo.make.creature import Creature, random_creature
from demo.make.grammar import ATTRIBUTES, Scene, random_scene
from demo.make.paths import WORK
from demo.make.subjects import LIME, TURQUOISE
from demo.make.world import picture
from dev_tools.files import write_whole

SHARD = 2000
SHARDS = 60
HELD_OUT = 2
"""Shards more, on which nothing is trained."""
ANY_HUE = range(SHARDS + HELD_OUT, SHARDS + HELD_OUT + 10)
"""Shards for the judge alone, whose creatures have any hue at all: what somebody is must not depend on being of a color that has a name."""
ANY_HUE_HELD_OUT = range(ANY_HUE.stop, ANY_HUE.stop + 1)
UNNAMED_HUE = range(ANY_HUE_HELD_OUT.stop, ANY_HUE_HELD_OUT.stop + 10)
"""Shards for the diffusion model: creatures of any hue but the subjects', so that a creature whose color is not told may have any."""
APART = 10.0
"""Degrees between their hues and any subject's."""
NAMELESS = 255
"""In ``labels``, the color of creatures of any hue."""


def draw_all() -> None:
    """Draw every shard that is not there yet, on two cores."""
    art.draw_all()
    missing = [number for number in range(UNNAMED_HUE.stop) if not _path(number).is_file()]
    with ProcessPoolExecutor(2) as pool:
        for _ in tqdm(pool.map(_draw, missing), total=len(missing), desc="drawing", mininterval=20):
            pass


def pictures(shards: Iterable[int]) -> NDArray[np.uint8]:
    """Pixels, shape (pictures, 64, 64, 3)."""
    return np.concatenate([np.load(_path(number))["pixels"] for number in shards])


def labels(shards: Iterable[int]) -> NDArray[np.uint8]:
    """For each picture and each of ``grammar.ATTRIBUTES``, the number of its value."""
    return np.concatenate([np.load(_path(number))["labels"] for number in shards])


def scene_of(row: NDArray[np.uint8]) -> Scene:
    """The scene that a row of ``labels`` stands for; a color without a name counts as natural: no prompt tells it."""
    return Scene(**{name: values[0 if number == NAMELESS else number] for (name, values), number in zip(ATTRIBUTES.items(), row, strict=True)})


def label_row(scene: Scene) -> list[int]:
    """The scene as numbers."""
    return [values.index(getattr(scene, name)) for name, values in ATTRIBUTES.items()]


def _path(number: int) -> Path:
    return WORK / "pictures" / f"{number:03}.npz"


def _draw(number: int) -> None:
    rng = np.random.default_rng([20, number])
    drawn = [random_scene(rng) for _ in range(SHARD)]
    told = np.array([label_row(scene) for scene in drawn], np.uint8)
    creatures: list[Creature | None] = [None] * SHARD
    if number >= ANY_HUE.start:
        hue_of = any_hue if number < UNNAMED_HUE.start else hue_of_no_subject
        creatures = [replace(random_creature(scene, rng), hue=hue_of(rng)) for scene in drawn]
        told[:, list(ATTRIBUTES).index("color")] = NAMELESS
    pixels = np.stack([(picture(scene, rng, creature) * 255).round().astype(np.uint8) for scene, creature in zip(drawn, creatures, strict=True)])
    write_whole(_path(number), lambda partial: np.savez(partial, pixels=pixels, labels=told))


def any_hue(rng: Generator) -> float:
    """Degrees."""
    return float(rng.uniform(0, 360))


def hue_of_no_subject(rng: Generator) -> float:
    """Degrees, at least ``APART`` from the hue of every subject."""
    hue = any_hue(rng)
    while min(abs(hue - LIME), abs(hue - TURQUOISE)) < APART:
        hue = any_hue(rng)
    return hue
