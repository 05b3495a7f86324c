"""The settings of a run: one spelling of every default, its range, its meaning and where it comes from.

The nodes build their widgets from these fields, so a value that reaches the trainer through a link is checked like a typed one.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import InputError

METHODS = ("palp", "sds", "nfsd", "none")
NOISES = ("same", "independent")
LAYERS = ("attention", "all linear")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CHECKPOINTING = ("auto", "on", "off")
MAX_SEED = 2**64 - 1


def number(default: float, low: float, high: float, about: str) -> Any:
    """A dataclass field for a number within [low, high]; a whole number where the default is one."""
    return field(default=default, metadata={"low": low, "high": high, "about": about})


def choice(options: tuple[str, ...], about: str) -> Any:
    """A dataclass field for one of some words; the first is the default."""
    return field(default=options[0], metadata={"options": options, "about": about})


def switch(default: bool, about: str) -> Any:
    """A dataclass field for a yes or no."""
    return field(default=default, metadata={"about": about})


def check_fields(config: Any) -> None:
    """Return quietly if every field of the dataclass is of its kind and within its range.

    Raises:
        InputError: one is not; the text says which and what is allowed.
    """
    for item in fields(config):
        check_value(item.name, getattr(config, item.name), item.default, item.metadata)


def check_value(name: str, value: object, default: object, metadata: Any) -> None:
    """Return quietly if ``value`` is of the default's kind and within its range.

    Raises:
        InputError: it is not; the text says what is allowed.
    """
    if "options" in metadata:
        if value not in metadata["options"]:
            raise InputError(name, f"{value!r} is not one of {', '.join(metadata['options'])}.")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise InputError(name, f"{value!r} is not true or false.")
    else:
        _check_number(name, value, default, metadata["low"], metadata["high"])


def _check_number(name: str, value: object, default: object, low: float, high: float) -> None:
    whole = isinstance(default, int)
    right_kind = isinstance(value, int) if whole else isinstance(value, int | float)
    if not right_kind or isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(name, f"{value!r} is not a {'whole ' if whole else ''}number.")
    if not low <= value <= high:  # pyright: ignore[reportOperatorIssue]
        raise InputError(name, f"{value} is out of range: it must be from {low:g} to {high:g}.")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the alignment branch works. The defaults are the paper's.

    Raises:
        InputError: a value is out of its range, or the part of the schedule is empty.
    """

    method: str = choice(
        METHODS,
        "palp: the paper's delta denoising score. sds and nfsd: the paper's ablations. none: plain DreamBooth with a new word, no alignment.",
    )
    alignment_scale: float = number(
        15.0, 0.0, 100.0, "Alpha: guidance of the pre-trained model under the clean prompt. Higher pushes harder towards the prompt. Appendix C: 15."
    )
    personalization_scale: float = number(
        7.5, 0.0, 100.0, "Beta: guidance of the personalized model under its own prompt. Keep it below alpha. Appendix C: 7.5."
    )
    alignment_weight: float = number(1.0, 0.0, 1000.0, "How much the alignment counts against the reconstruction of the pictures. Eq. 6: 1.")
    noise: str = choice(NOISES, "same: the alignment branch reuses the step's noise, the paper's better choice. independent: a fresh draw.")
    rescale: bool = switch(True, "Make the alignment's update uniform over noise levels (Eq. 7): steadier and better aligned in the paper's ablation.")
    start_percent: float = number(0.0, 0.0, 1.0, "Align only from here on in the noise schedule; 0 is its noisiest end. Ours: the whole schedule.")
    end_percent: float = number(1.0, 0.0, 1.0, "Align only up to here in the noise schedule; 1 is its cleanest end. Ours: the whole schedule.")
    every: int = number(1, 1, 1000, "Align on each n-th step only: faster, and weaker by as much. The paper aligns on every step.")

    def __post_init__(self) -> None:
        """Refuse values out of range and an empty part of the schedule."""
        check_fields(self)
        if self.start_percent >= self.end_percent:
            raise InputError("start_percent", f"{self.start_percent:g} must be less than end_percent, which is {self.end_percent:g}.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how fast and how large. The defaults are Appendix C's where it gives one.

    Raises:
        InputError: a value is out of its range.
    """

    steps: int = number(500, 1, 100_000, "Training steps. Appendix C: 500.")
    learning_rate: float = number(5e-5, 1e-8, 1.0, "Learning rate of the LoRA. Appendix C: 5e-5, at a global batch of 32.")
    rank: int = number(32, 1, 512, "Rank of the LoRA. Appendix C: 32.")
    batch_size: int = number(1, 1, 256, "Pictures per step. Ours: 1, because it fits everywhere; Appendix C: 32 over all devices.")
    seed: int = number(
        0,
        0,
        MAX_SEED,
        "Seed of all randomness: the same seed on the same machine and versions draws the same noise. "
        "On a CPU the LoRA is then the same bit by bit, on a GPU to rounding.",
    )
    word_vectors: int = number(1, 0, 16, "Vectors of the new word, trained with the LoRA; 0: no new word. Ours: 1, one token.")
    word_learning_rate: float = number(5e-5, 1e-8, 1.0, "Learning rate of the new word. Appendix C: 5e-5, as for the LoRA.")
    gradient_accumulation: int = number(
        1, 1, 1024, "Batches per step: their gradients are averaged before the optimizer moves. batch_size times this is Appendix C's global batch of 32."
    )
    resolution: int = number(
        512, 64, 4096, "Pictures are scaled, at their own aspect, to about resolution x resolution pixels. SD 1.x: 512, SDXL and newer: 1024."
    )
    layers: str = choice(LAYERS, "attention: the projections of self- and cross-attention, as in Appendix C. all linear: also the feed-forward layers.")
    precision: str = choice(
        PRECISIONS,
        "What the network computes in. auto: what ComfyUI runs the model in. The LoRA, the word and the optimizer are float32 always; "
        "fp16 scales its loss. Another precision than the model's own casts weights as they are used, which takes memory.",
    )
    gradient_checkpointing: str = choice(
        CHECKPOINTING,
        "on: far less memory, about a third slower. off: faster. auto: on where training would not fit otherwise; what it takes is foreseen before it starts.",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self)
