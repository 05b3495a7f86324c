"""A world for the tests of the experiments: any small model, plain pictures, and a judge that tells colors by closed form."""

from dataclasses import dataclass, field
from typing import Any

import torch

from demo.settings import Sampling
from experiments.judging import as_input, elements_found, mean_pairwise_distance
from experiments.world import DIVERSITY, IMAGE, Ask, Case, Taught

COLORS = ("red", "green", "blue")
VALUES = {"color": COLORS, "light": ("dark", "bright")}


class ColorJudge:
    """Says which channel is strongest and whether a picture is bright; its features are the mean color."""

    def __call__(self, images):
        color = self.features(images)
        bright = color.mean(dim=1)
        return {"color": color, "light": torch.stack([-bright, bright], dim=1)}

    def features(self, images):
        return images.mean(dim=(2, 3))


def plain(*colors, side=8):
    """One picture of each color, shape (N, side, side, 3)."""
    return torch.tensor(colors).float()[:, None, None, :].expand(-1, side, side, 3).clone()


def taught(placeholder="[V]", seed=0):
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(seed))
    return Taught(placeholder=placeholder, class_word="cat", personalization_prompt=f"a photo of {placeholder}", images=tuple(images))


def true_pictures(case, ask, count, seed):
    """All in the color that is asked for."""
    return plain(*[[float(ask.elements["color"][0] == color) for color in COLORS]] * count)


@dataclass
class SmallWorld:
    models: Any = None
    title: str = "a small world"
    identity: str = "small"
    ruler: str = "colors"
    truth: Any = true_pictures
    train: dict = field(default_factory=lambda: {"rank": 2})
    loss: dict = field(default_factory=dict)
    sampling: Sampling = field(default_factory=lambda: Sampling(steps=2, sampler="euler"))
    notes: tuple = ("Text alignment: colors.",)
    measured: list = field(default_factory=list)

    def cases(self, kind):
        if kind == "composed":
            return [Case(name="a+b", category="two", taught=(taught("[V1]"), taught("[V2]", seed=1)))]
        return [Case(name=name, category=category, taught=(taught(seed=n),)) for n, (name, category) in enumerate({"a": "animals", "b": "objects"}.items())]

    def asks(self, kind, case):
        words, classes = (" and ".join(each) for each in zip(*((t.placeholder, t.class_word) for t in case.taught), strict=True))
        wanted = [{"color": ("red",)}, {"color": ("green",), "light": ("bright",)}]
        return [Ask(name=f"ask {n}", target=f"a sketch of {words} {n}", clean=f"a sketch of {classes} {n}", elements=each) for n, each in enumerate(wanted)]

    def measure(self, case, ask, pictures):
        self.measured.append((case.name, ask.name))
        features = ColorJudge().features(as_input(pictures))
        return {**elements_found(ColorJudge(), VALUES, ask, pictures), IMAGE: float(features.mean()), DIVERSITY: mean_pairwise_distance(features)}
