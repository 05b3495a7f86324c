"""The demo model as a world: its subjects, prompts in its words, and its judge."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contenders import Models
from demo.make.creature import Creature
from demo.make.grammar import ATTRIBUTES, TIMES, Scene
from demo.make.paths import WORK
from demo.make.subjects import CREATURES, SUBJECTS, neighbors, of_other_kinds, render
from demo.settings import LOSS, SAMPLING, TRAIN
from dev_tools.files import write_whole
from experiments import demo_prompts
from experiments.judging import Judge, as_input, elements_found, lpips_network, mean_pairwise_distance, mean_pairwise_lpips
from experiments.likeness import LikenessScale, discriminants, likeness_scale
from experiments.store import file_fingerprint, fingerprint, read_pictures
from experiments.training import part
from experiments.world import DIVERSITY, IMAGE, STYLED_IMAGE, Ask, Case, Taught

SPRITES = Path(__file__).resolve().parent / "sprites"
CATEGORIES = {"cat": "animals", "dog": "animals", "elephant": "animals", "teapot": "objects", "robot": "objects", "car": "vehicles"}
PAIRS = (("mochi", "biscuit"), ("earl", "bolt"))
ARTWORK = Scene(kind="boat", style="watercolor", place="beach", time="sunset")
VISIBLE = ("photo", "cartoon", "sketch", "pixel art", "watercolor")
"""Styles in which a creature can be recognized."""
DRAWN = 60
"""Drawings of each instance: in all styles for the discriminants, in one for the ends of its scale."""
METRICS = 5
"""Raise it when what is measured changes."""
LOOKS = frozenset({"mark", "color", "hat"})
"""What a creature looks like: a prompt that asks for other looks than the subject's does not ask for its likeness."""


class DemoWorld:
    """The demo model, with truth to compare with: any instance can be drawn in any scene."""

    title = "the demo model (64 x 64 pixels, a drawn world)"
    sampling = SAMPLING
    train: Mapping[str, object] = TRAIN
    loss: Mapping[str, object] = LOSS
    pictures = 1
    """Of each subject to learn from, of five. From five, plain personalization forgets too little of the prompt to win back."""

    @property
    @cache  # noqa: B019 - there is one world, and it lives as long as the study
    def models(self) -> Models:
        """Loaded by the pack."""
        loaded = part("nodes.host.demo_model").load_demo_model()
        return Models(model=loaded.model, clip=loaded.clip, vae=loaded.vae)

    @cached_property
    def judge(self) -> Judge:
        """The one that comes with the demo model."""
        from demo.make.classify import trained

        return trained()

    @cached_property
    def _lpips(self) -> Any:
        return lpips_network()

    @property
    @cache  # noqa: B019 - there is one world, and it lives as long as the study
    def identity(self) -> str:
        """Of the demo model's weights."""
        return file_fingerprint(part("nodes.host.demo_model").WEIGHTS)

    @property
    @cache  # noqa: B019 - there is one world, and it lives as long as the study
    def ruler(self) -> str:
        """Of the judge's weights, of who is compared with whom and of what diversity is measured with."""
        from demo.make.classify import WEIGHTS

        instances = [asdict(each) for creature in CREATURES.values() for each in (creature, *neighbors(creature).values())]
        return fingerprint([METRICS, file_fingerprint(WEIGHTS, *sorted(SPRITES.glob("*.png"))), self._lpips is not None, instances])

    @property
    def notes(self) -> Sequence[str]:
        """What each metric is here."""
        told = "mean pairwise LPIPS (AlexNet)" if self._lpips else "mean pairwise cosine distance of the judge's features ; LPIPS needs {LPIPS_NEEDS}"
        return (
            "Text alignment: the share of the prompt's elements (style, class, place, time, and marks, color and hat where asked) that the demo's judge finds.",
            "Subject similarity: 1 is the subject itself and 0 the nearest other instance of its class, both drawn in the style that the judge sees in the "
            "picture, so that a wrong style alone does not count, and as the model's autoencoder shows them, so that its softness does not either; distances "
            "are of the judge's features along linear discriminants of the instances and of other creatures in its colors: color alone is no likeness. Other "
            "instances that these hardly tell from the subject are no measure. The base model draws some other instance, often below 0. Of two subjects it is "
            "the mean, and the judge, who sees one class in a picture, accepts either's. Prompts that ask for other looks than the subject's have none.",
            f"{STYLED_IMAGE.capitalize()}: the same, of those pictures only in which the judge sees the asked style, if any. A copy of the training "
            "picture, which ignores the prompt, is the easiest likeness; here it does not count.",
            f"Diversity: {told} between the pictures of one prompt.",
        )

    def cases(self, kind: str) -> Sequence[Case]:
        """The six subjects; or pairs of them, and subjects with an artwork."""
        if kind == "single":
            return [Case(name=name, category=CATEGORIES[creature.kind], taught=(self._taught(name, "[V]"),)) for name, creature in CREATURES.items()]
        pairs = [Case(name=f"{a}+{b}", category="two subjects", taught=(self._taught(a, "[V1]"), self._taught(b, "[V2]"))) for a, b in PAIRS]
        art = [Case(name=f"{name}+art", category="art-inspired", taught=(self._taught(name, "[V1]"), _artwork())) for name in ("mochi", "rolo")]
        return [*pairs, *art]

    def _taught(self, name: str, placeholder: str) -> Taught:
        images = tuple(read_pictures(file, 1)[0] for file in sorted((SUBJECTS / name).glob("*.png"))[: self.pictures])
        return Taught(placeholder=placeholder, class_word=CREATURES[name].kind, personalization_prompt=f"a photo of {placeholder}", images=images)

    def asks(self, kind: str, case: Case) -> Sequence[Ask]:
        """Four elements each, or two to seven; of an artwork, three."""
        if case.category == "art-inspired":
            return demo_prompts.inspired(case)
        if kind == "complexity":
            return demo_prompts.growing(case, _lacking(CREATURES[case.name]))
        return demo_prompts.standard(case)

    def truth(self, case: Case, ask: Ask, count: int, seed: int) -> Tensor:
        """True pictures of one subject as the model's autoencoder shows them, for a prompt of style, place and time."""
        scene = Scene(kind="", **{name: ask.elements[name][0] for name in ("style", "place", "time")})
        return self.shown(CREATURES[case.name], [scene] * count, seed)

    @torch.inference_mode()
    def measure(self, case: Case, ask: Ask, pictures: Tensor) -> Mapping[str, float]:
        """The prompt's elements by the judge, the likeness to every subject of the case, and diversity."""
        features = self.judge.features(as_input(pictures))
        similar = {} if LOOKS & ask.elements.keys() else self._similar(case, ask, features, self._styles(pictures))
        different = mean_pairwise_lpips(self._lpips, pictures) if self._lpips else mean_pairwise_distance(features)
        return {**elements_found(self.judge, ATTRIBUTES, ask, pictures), **similar, DIVERSITY: different}

    def _similar(self, case: Case, ask: Ask, features: Tensor, seen: Sequence[str]) -> dict[str, float]:
        """The mean over all pictures and subjects, and over the pictures in the asked style; without those that cannot be told."""
        asked = ask.elements["style"][0]
        styles = [style if style in VISIBLE else asked for style in seen]
        names = [name for name in case.name.split("+") if name in CREATURES]
        likenesses = [each for name in names for each in zip(seen, self._likenesses(name, features, styles), strict=True)]
        told = {IMAGE: [value for _, value in likenesses], STYLED_IMAGE: [value for style, value in likenesses if style == asked]}
        known = {metric: [value for value in values if value is not None] for metric, values in told.items()}
        return {metric: sum(values) / len(values) for metric, values in known.items() if values}

    def _styles(self, pictures: Tensor) -> list[str]:
        """The style that the judge sees in each picture."""
        return [ATTRIBUTES["style"][number] for number in self.judge(as_input(pictures))["style"].argmax(dim=1).tolist()]

    def _likenesses(self, name: str, features: Tensor, styles: Sequence[str]) -> list[float | None]:
        """Of each picture, by the scale of its style; None where that style hardly tells the subject from others."""
        scales = [self._scale(name, style) for style in styles]
        return [float(scale.likeness(row[None])) if scale else None for row, scale in zip(features, scales, strict=True)]

    @cache  # noqa: B019 - there is one world, and it lives as long as the study
    def _scale(self, name: str, style: str) -> LikenessScale | None:
        scenes = [replace(scene, style=style) for scene in _any_scenes(DRAWN)]
        others = {other: self._features(each, scenes, seed=10) for other, each in neighbors(CREATURES[name]).items()}
        return likeness_scale(self._directions(name), self._features(CREATURES[name], scenes, seed=10), others)

    @cache  # noqa: B019
    def _directions(self, name: str) -> Tensor:
        instances = {"itself": CREATURES[name], **neighbors(CREATURES[name]), **of_other_kinds(CREATURES[name])}
        return discriminants({other: self._features(each, _any_scenes(DRAWN), seed=7) for other, each in instances.items()})

    def _features(self, creature: Creature, scenes: Sequence[Scene], seed: int) -> Tensor:
        """What the judge sees of drawings."""
        return self.judge.features(as_input(self.shown(creature, scenes, seed)))

    @torch.inference_mode()
    def shown(self, creature: Creature, scenes: Sequence[Scene], seed: int) -> Tensor:
        """A drawing of the creature in each scene as the model's autoencoder shows it; by the same seed all creatures stand alike.

        Returns:
            Shape (N, 64, 64, 3), values in [0, 1]: what a perfect personalization would make of the scenes' prompts.
        """
        place_sprites()
        rng = np.random.default_rng(seed)
        drawn = torch.from_numpy(np.stack([render(creature, scene, rng) for scene in scenes])).float()
        return torch.cat([self.models.vae.decode(self.models.vae.encode(batch)).float().clamp(0, 1) for batch in drawn.split(20)])


def _lacking(creature: Creature) -> dict[str, str]:
    """Marks, a color and a hat that it does not have."""
    lacking = {"mark": "striped" if creature.mark == "spotted" else "spotted", "color": "red"}
    return lacking if creature.hat else {**lacking, "hat": "hat"}


def _any_scenes(count: int) -> list[Scene]:
    rng = np.random.default_rng(8)
    places = demo_prompts.PLACES
    return [
        Scene(kind="", style=VISIBLE[number % len(VISIBLE)], place=places[rng.integers(len(places))], time=TIMES[rng.integers(len(TIMES))])
        for number in range(count)
    ]


@cache
def place_sprites() -> None:
    """Put the subjects' art where the maker looks for it: the maker would fetch all of its packages."""
    for sprite in SPRITES.glob("*.png"):
        if not (WORK / "sprites" / sprite.name).is_file():
            write_whole(WORK / "sprites" / sprite.name, partial(shutil.copyfile, sprite))


def _artwork() -> Taught:
    """Three sheets by one hand: boats on a beach at sunset, in watercolor."""
    place_sprites()
    rng = np.random.default_rng(9)
    sheets = tuple(torch.from_numpy(render(Creature(kind=ARTWORK.kind), ARTWORK, rng)) for _ in range(3))
    return Taught(placeholder="[V2]", class_word="watercolor", personalization_prompt="a watercolor of [V2]", images=sheets)
