"""What a judge finds in pictures: the elements of the prompt, and how much the pictures differ."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from experiments.world import TEXT, Ask

ALEXNET = "alexnet-owt-7be5be79.pth"
"""The network that LPIPS measures with; lpips itself would download it."""
LPIPS_NEEDS = f"the package lpips, and torchvision's {ALEXNET} in the folder checkpoints of torch.hub.get_dir()"


class Judge(Protocol):
    """A classifier of pictures (B, 3, H, W) in [-1, 1]."""

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """Logits of each attribute's values, shape (B, values)."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """What the logits are computed from, shape (B, F)."""
        ...


def as_input(pictures: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] as (B, 3, H, W) in [-1, 1]."""
    return pictures.movedim(-1, 1) * 2 - 1


@torch.inference_mode()
def elements_found(judge: Judge, values: Mapping[str, Sequence[str]], ask: Ask, pictures: Tensor) -> dict[str, float]:
    """The share of pictures in which each asked element is the judge's likeliest, and the mean over the elements.

    Args:
        judge: tells what is in a picture.
        values: of each attribute, in the order of its logits.
        ask: whose ``elements`` are attributes of the judge with the values accepted.
        pictures: shape (N, H, W, 3), values in [0, 1].
    """
    logits = judge(as_input(pictures))
    found: dict[str, float] = {}
    for attribute, accepted in ask.elements.items():
        likeliest = [values[attribute][number] for number in logits[attribute].argmax(dim=1).tolist()]
        found[attribute] = sum(value in accepted for value in likeliest) / len(likeliest)
    return {TEXT: sum(found.values()) / len(found), **found}


def mean_pairwise_distance(features: Tensor) -> float:
    """1 - cosine similarity, the mean over all pairs of rows of ``features`` (N, F); 0 where all are alike."""
    similar = functional.normalize(features.float(), dim=1)
    pairs = torch.triu_indices(len(features), len(features), offset=1)
    return float((1 - (similar @ similar.T))[pairs[0], pairs[1]].mean())


def lpips_network() -> Any:
    """LPIPS on AlexNet, if it is installed and its weights are on this machine: nothing is downloaded; else None."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if importlib.util.find_spec("lpips") is None or not weights.is_file():
        return None
    import lpips

    return lpips.LPIPS(net="alex", verbose=False).eval()


@torch.inference_mode()
def mean_pairwise_lpips(network: Any, pictures: Tensor) -> float:
    """The mean over all pairs of pictures (N, H, W, 3) in [0, 1]."""
    images = as_input(pictures)
    first, second = torch.triu_indices(len(images), len(images), offset=1)
    return float(torch.cat([network(images[a], images[b]).flatten() for a, b in zip(first.split(16), second.split(16), strict=True)]).mean())
