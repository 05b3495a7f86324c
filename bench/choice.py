"""The contenders by name, on a model by name."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import CHECKPOINT

ROOT = Path(__file__).resolve().parent.parent
SPEED = ("ours plain", "ours plain, no word", "ours PALP", "ours PALP, no word", "host plain", "host plain, checkpointing", "diffusers + peft plain")
MEMORY = ("ours plain", "ours PALP", "ours plain, no word", "ours PALP, no word", "host plain")
MODELS = ("sd15", "sdxl", "sd3", "flux")


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

    checkpoint = options.base / "models" / "checkpoints" / CHECKPOINT
    return contenders.narrow_sd15(checkpoint) if options.model == "sd15" else contenders.tiny(options.model)


def contender(name: str, options: argparse.Namespace, side: int, **train: Any) -> tuple[Callable[[], object], Any]:
    """(the loop, its device) of a name in SPEED, on models of its own."""
    import torch

    from bench import contenders

    models = models_of(options)
    latent = torch.randn(1, *contenders.latent_shape(models, side))
    loops: Mapping[str, Callable[[], Callable[[], object]]] = {
        "ours plain": lambda: contenders.ours(models, side, method="none", **train),
        "ours plain, no word": lambda: contenders.ours(models, side, method="none", word_vectors=0, **train),
        "ours PALP": lambda: contenders.ours(models, side, method="palp", **train),
        "ours PALP, no word": lambda: contenders.ours(models, side, method="palp", word_vectors=0, **train),
        "host plain": lambda: contenders.hosts(models, latent, checkpointing=False),
        "host plain, checkpointing": lambda: contenders.hosts(models, latent, checkpointing=True),
        "diffusers + peft plain": lambda: contenders.diffusers_plain(models, side),
        "forward pass": lambda: contenders.forward(models, side),
    }
    return loops[name](), models.model.load_device
