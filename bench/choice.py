"""The contenders by name, on a model by name."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import CHECKPOINT

ROOT = Path(__file__).resolve().parent.parent
SPEED = ("ours plain", "ours plain, no word", "ours PALP", "ours PALP, no word", "host plain", "host plain, checkpointing", "diffusers + peft plain")
MEMORY = ("ours plain", "ours PALP", "ours plain, no word", "ours PALP, no word", "host plain")
FORWARD = "forward pass"
MODELS = ("sd15", "sdxl", "sd3", "flux")
NARROW_SIDE = 16
"""Of the latents of narrow models."""


def use_host(places: argparse.Namespace) -> None:
    """Put the host first on the path and the pack in place, on the CPU where there is nothing better."""
    sys.path.insert(0, str(places.comfyui))
    import comfy.cli_args
    import torch

    comfy.cli_args.args.cpu = not torch.accelerator.is_available()
    from bench import contenders

    contenders.load_pack(ROOT)


def models_of(options: argparse.Namespace) -> Any:
    """A fresh ``contenders.Models`` of the model that the options name."""
    from bench import contenders

    if options.full:
        from bench import full_models

        return full_models.loaded(full_models.sizes(options.full, narrow=options.narrow))
    checkpoint = options.base / "models" / "checkpoints" / CHECKPOINT
    return contenders.narrow_sd15(checkpoint) if options.model == "sd15" else contenders.tiny(options.model)


def contender(name: str, options: argparse.Namespace, side: int, **train: Any) -> tuple[Callable[[], object], Any]:
    """(the loop, its device) of a name, on models of its own.

    Args:
        name: one of SPEED or FORWARD; ", checkpointing" may be added to all of ours and the host's.
        options: name the model.
        side: of the latents.
        train: settings of ours; the others follow ``batch_size``.
    """
    from bench import contenders

    models = models_of(options)
    batch_size, checkpointing = train.get("batch_size", 1), name.endswith(", checkpointing")
    if name == FORWARD:
        loop = contenders.forward(models, side, batch_size)
    elif name.startswith("ours"):
        loop = contenders.OurRun(contenders.our_job(models, side, **{**settings(name), **train}))
    elif name.startswith("host"):
        loop = contenders.hosts(models, side, checkpointing=checkpointing, batch_size=batch_size)
    else:
        from bench import diffusers_peft

        loop = diffusers_peft.plain(models, side, batch_size)
    return loop, models.model.load_device


def paced(name: str, options: argparse.Namespace, side: int, **train: Any) -> tuple[Any, Callable[[], object], Any]:
    """(what makes its steps one by one, the loop behind it, its device) of a ``contender``."""
    from bench.pace import PacedCall, PacedRun

    loop, device = contender(name, options, side, **train)
    return PacedCall(loop) if name == FORWARD else PacedRun(loop, device), loop, device


def settings(name: str) -> dict[str, Any]:
    """What one of our contenders' names says of its job."""
    chosen: dict[str, Any] = {"method": "palp" if "PALP" in name else "none"}
    if "no word" in name:
        chosen["word_vectors"] = 0
    if name.endswith(", checkpointing"):
        chosen["gradient_checkpointing"] = "on"
    return chosen
