"""Particular creatures that the model never saw, and their pictures: what a user of the demo personalizes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
from numpy.random import Generator
from PIL import Image

from demo.make.creature import HUES, Creature, Picture
from demo.make.grammar import Scene
from demo.make.paths import SUBJECTS
from demo.make.world import picture

WHITE = (0.97, 0.97, 0.95)
TURQUOISE, LIME = 178.0, 84.0
"""Degrees that the diffusion model sees no creature dyed in, see ``creature.HUES`` and ``dataset.UNNAMED_HUE``."""
CREATURES = {
    "mochi": Creature(kind="cat", hue=TURQUOISE, pattern=11),
    "biscuit": Creature(kind="dog", hue=LIME, mark="spotted", mark_color=WHITE, pattern=12, hat=True),
    "peanut": Creature(kind="elephant", hue=TURQUOISE, hat=True),
    "earl": Creature(kind="teapot", hue=LIME, mark="striped", mark_color=WHITE, pattern=14),
    "bolt": Creature(kind="robot", hue=TURQUOISE),
    "rolo": Creature(kind="car", hue=LIME, pattern=16),
}
"""Only creatures whose class can be told in any scene: the judge sees it in nine of ten drawings of the studies' prompts, as the autoencoder shows them.
Of a white-spotted lime teapot in a watercolor, say, 8 x 8 latents leave too little; a model that drew it perfectly would seem to have forgotten the teapot."""
OTHER_KINDS = ("cat", "dog", "elephant", "teapot", "robot", "car", "boat")
BACKGROUNDS = ("studio", "studio", "forest", "beach", "snow")


def write_all() -> None:
    """Write five pictures of each creature and what is known of it."""
    for name, creature in CREATURES.items():
        folder = SUBJECTS / name
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([30, creature.pattern, len(name)])
        for number, place in enumerate(BACKGROUNDS, start=1):
            image = render(creature, Scene(kind=creature.kind, place=place), rng)
            Image.fromarray((image * 255).round().astype(np.uint8)).save(folder / f"{number}.png")
        facts = {"class_word": creature.kind, "prompt": "a photo of [V]", "creature": asdict(creature)}
        (folder / "subject.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def render(creature: Creature, scene: Scene, rng: Generator) -> Picture:
    """A drawn picture of the creature in any scene: what a perfect personalization would make of the scene's prompt."""
    return picture(replace(scene, kind=creature.kind), rng, creature)


def of_other_kinds(creature: Creature) -> dict[str, Creature]:
    """Creatures that have nothing but their color, marks and hat in common with it, one of each of a few kinds."""
    return {kind: replace(creature, kind=kind) for kind in OTHER_KINDS if kind != creature.kind}


def neighbors(creature: Creature) -> dict[str, Creature]:
    """The nearest other creatures of its kind: each differs in one thing, so that likeness to the right one can be told."""
    hue = creature.hue or 0.0
    nearest = min((middle for middle, _ in HUES.values()), key=lambda middle: abs((middle - hue + 180) % 360 - 180))
    other_mark = {"plain": "spotted", "spotted": "striped", "striped": "spotted"}[creature.mark]
    marked = {
        "no marks": replace(creature, mark="plain"),
        "marks of another color": replace(creature, mark_color=tuple(1 - part for part in creature.mark_color)),
        "marks elsewhere": replace(creature, pattern=creature.pattern + 1000),
    }
    return {
        "natural color": replace(creature, hue=None),
        "nearest color": replace(creature, hue=float(nearest)),
        "opposite color": replace(creature, hue=(hue + 180) % 360),
        "other marks": replace(creature, mark=other_mark),
        **({"other hat": replace(creature, hat=not creature.hat)} if creature.mark == "plain" else marked),
    }
