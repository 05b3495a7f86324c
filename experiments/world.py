"""What a study needs to know of the model, the subjects and the prompts it is done with: the ``World``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from bench.contenders import Models
from demo.settings import Sampling
from experiments.store import picture_fingerprint

TEXT, IMAGE, DIVERSITY = "text alignment", "subject similarity", "diversity"
"""The metrics that every report leads with. More of one is better."""
STYLED_IMAGE = "similarity in the asked style"
"""Of those pictures only whose style is the asked one: a copy of a training picture, which ignores the prompt, is the easiest likeness."""


@dataclass(frozen=True, kw_only=True)
class Taught:
    """One subject or artwork: its word and its pictures, each of shape (H, W, 3), values in [0, 1]."""

    placeholder: str
    class_word: str
    personalization_prompt: str
    images: tuple[Tensor, ...]

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """One for each picture, which changes when the picture does."""
        return tuple(picture_fingerprint(image) for image in self.images)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is taught together in one training: usually one subject."""

    name: str
    category: str
    taught: tuple[Taught, ...]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A prompt, and what has to be found in its pictures."""

    name: str
    """Short, for files and tables."""
    target: str
    """y, with the placeholders."""
    clean: str
    """y_c, for the pre-trained model."""
    elements: Mapping[str, tuple[str, ...]]
    """What each element may be: of a judge's attribute the accepted values, for CLIP the element's text."""


Truth = Callable[[Case, Ask, int, int], Tensor]
"""Draws the subject of a case in what a prompt asks for: how many pictures, by which seed; shape (N, H, W, 3), values in [0, 1]."""


class World(Protocol):
    """A model with subjects and prompts for it, and the means to measure its pictures."""

    @property
    def title(self) -> str:
        """What it is, for the report."""
        ...

    @property
    def models(self) -> Models:
        """The pre-trained model; loaded when it is first asked for."""
        ...

    @property
    def identity(self) -> str:
        """Changes when the model does: what was trained with another is not taken for done."""
        ...

    @property
    def ruler(self) -> str:
        """Changes when the way of measuring does."""
        ...

    @property
    def train(self) -> Mapping[str, object]:
        """Training settings that suit this model, other than the pack's defaults."""
        ...

    @property
    def loss(self) -> Mapping[str, object]:
        """Settings of the alignment that suit this model, other than the pack's defaults."""
        ...

    @property
    def sampling(self) -> Sampling:
        """How pictures are made with this model."""
        ...

    @property
    def truth(self) -> Truth | None:
        """Where this world can draw the subject itself, and others: a subject similarity of 1 is then the subject and 0 the nearest other instance."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """How each metric is measured, one sentence or two each, for the report."""
        ...

    def cases(self, kind: str) -> Sequence[Case]:
        """All cases of a kind, "single" or "composed"; SystemExit where this world has none."""
        ...

    def asks(self, kind: str, case: Case) -> Sequence[Ask]:
        """The prompts for a case, "standard" or "complexity"."""
        ...

    def measure(self, case: Case, ask: Ask, pictures: Tensor) -> Mapping[str, float]:
        """Metrics of one batch of pictures, shape (N, H, W, 3), values in [0, 1]; those that cannot be told are left out."""
        ...
