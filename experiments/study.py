"""A study is data: which conditions, on which cases and prompts, looked at after which steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from experiments.world import Ask, Case, World


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One way of training: changes of the settings that suit the world's model."""

    name: str
    loss: Mapping[str, object] = field(default_factory=dict)
    """Fields of LossConfig."""
    loss_factors: Mapping[str, float] = field(default_factory=dict)
    """How many times what suits the world's model a field of LossConfig is."""
    pictures: Literal["trained", "pre-trained", "drawn"] = "trained"
    """Whose they are: the personalized model's, the pre-trained model's under the clean prompt, or true ones of the subject, which only some worlds have."""

    @property
    def trained(self) -> bool:
        """Whether there is something to train."""
        return self.pictures == "trained"

    @property
    def sees_prompt(self) -> bool:
        """Whether training depends on the target prompt; if not, one training serves all prompts."""
        return self.trained and self.loss.get("method", "palp") != "none"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and what is done to answer it."""

    name: str
    title: str
    question: str
    conditions: tuple[Condition, ...]
    looks: tuple[int, ...] = (500,)
    """Steps after which a training is looked at."""
    along: str = "condition"
    """What the figures compare along: a field of ``results.Row``, or "grid"."""
    cases: str = "single"
    asks: str = "standard"
    seeds: int = 2
    prompts: int = 3
    """For each case, at most; 0: all."""
    samples: int = 8

    @property
    def has_goals(self) -> bool:
        """Whether it can tell if the method's goals are reached: they are about one subject."""
        return self.cases == "single"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training, or none, and all that is sampled from it."""

    condition: Condition
    case: Case
    asks: tuple[Ask, ...]
    """Trained for the first, sampled with all."""
    seed: int
    looks: tuple[int, ...]

    @property
    def title(self) -> str:
        """For the progress bar and the folder's name."""
        prompt = (self.asks[0].name,) if self.condition.sees_prompt else ()
        return " ".join((self.condition.name, self.case.name, *prompt, f"seed {self.seed}"))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study in a world."""

    study: Study
    world: World
    subjects: tuple[str, ...] = ()
    """Names of the cases; empty: all."""

    def cases(self) -> list[Case]:
        """The cases that are studied.

        Raises:
            SystemExit: one that is named does not exist, or this world has none of the kind.
        """
        known = {case.name: case for case in self.world.cases(self.study.cases)}
        unknown = [name for name in self.subjects if name not in known]
        if unknown or not known:
            raise SystemExit(f"--subjects: {self.study.name} has {', '.join(known) or 'no subject'} in this world, not {', '.join(unknown) or 'any'}.")
        return [known[name] for name in dict.fromkeys(self.subjects) or known]

    def asks(self, case: Case) -> tuple[Ask, ...]:
        """The prompts that are studied with a case."""
        found = tuple(self.world.asks(self.study.asks, case))
        return found[: self.study.prompts] if self.study.prompts else found

    def cells(self) -> list[Cell]:
        """Everything to train and to sample, a seed at a time so that an early stop leaves whole comparisons."""
        order = [(seed, case) for seed in range(self.study.seeds) for case in self.cases()]
        return [cell for seed, case in order for condition in self.study.conditions for cell in self._cells(condition, case, seed)]

    def _cells(self, condition: Condition, case: Case, seed: int) -> Sequence[Cell]:
        if condition.pictures == "drawn" and not self.world.truth:
            return []
        asks = self.asks(case)
        looks = self.study.looks if condition.trained else (0,)
        groups = [(ask,) for ask in asks] if condition.sees_prompt else [asks]
        return [Cell(condition=condition, case=case, asks=group, seed=seed, looks=looks) for group in groups]


def quick(study: Study) -> Study:
    """The same in minutes: one prompt, two seeds, few pictures, few steps. It shows that all works and little else."""
    asks = 0 if study.asks == "complexity" else 1
    return replace(study, looks=(50, 100) if len(study.looks) > 1 else (100,), seeds=2, prompts=asks, samples=4)
