"""Tells what is in a picture: the judge of the demo model, trained on drawn pictures only; at last also on drawn pictures that the autoencoder has softened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from demo.make import dataset, vae
from demo.make.grammar import ATTRIBUTES
from demo.make.paths import ROOT, WORK
from demo.make.precision import keep_small_convolutions_in_float32
from demo.make.run_state import Stage, warm_cosine
from demo.make.vae import as_input

STEPS, BATCH, PEAK_RATE = 8000, 64, 3e-3
FINE_STEPS, FINE_RATE = 3000, 8e-4
WEIGHTS = ROOT / "demo" / "weights" / "attributes.safetensors"


class Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, channels: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.branch = nn.Sequential(_convolution(channels, channels), nn.ReLU(), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the branch adds."""
        return functional.relu(x + self.branch(x))


def _convolution(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after))


class Judge(nn.Module):
    """A small residual network with one output for each attribute's values."""

    def __init__(self) -> None:
        """Start from nothing."""
        super().__init__()
        self.trunk = nn.Sequential(
            *(_convolution(3, 32, 2), nn.ReLU(), Residual(32)),
            *(_convolution(32, 64, 2), nn.ReLU(), Residual(64)),
            *(_convolution(64, 96, 2), nn.ReLU(), Residual(96)),
        )
        self.mixed = nn.Sequential(nn.Linear(96 * 16 + 96, 128), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of each attribute for images (B, 3, 64, 64) in [-1, 1]."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}

    def features(self, images: Tensor) -> Tensor:
        """What the heads read, shape (B, 128)."""
        maps = self.trunk(images)
        return self.mixed(torch.cat([functional.avg_pool2d(maps, 2).flatten(1), maps.amax(dim=(2, 3))], dim=1))


def train(until: int | None = None) -> None:
    """Train it up to that step, or to the end; resumes where it was."""
    torch.manual_seed(0)
    judge = Judge()
    pixels, labels = dataset.pictures(range(dataset.SHARDS)), dataset.labels(range(dataset.SHARDS))

    def loss_of(step: int) -> Tensor:
        rows = _rows(4, step, len(pixels), BATCH)
        return _loss(judge, _disturbed(as_input(pixels[rows])), labels[rows])

    _train("judge", judge, loss_of, STEPS, PEAK_RATE, until)


def train_on_shown(until: int | None = None) -> None:
    """Go on with pictures of which half are of creatures of any hue and as the autoencoder shows them; then write the weights."""
    judge = Judge()
    judge.load_state_dict(torch.load(WORK / "judge.pt", weights_only=True)["modules"])
    pixels, labels = dataset.pictures(range(dataset.SHARDS)), dataset.labels(range(dataset.SHARDS))
    soft, soft_labels = vae.shown(dataset.ANY_HUE), dataset.labels(dataset.ANY_HUE)

    def loss_of(step: int) -> Tensor:
        rows, soft_rows = _rows(5, step, len(pixels), BATCH // 2), _rows(6, step, len(soft), BATCH // 2)
        images = torch.cat([_disturbed(as_input(pixels[rows])), as_input(soft[soft_rows])])
        return _loss(judge, images, np.concatenate([labels[rows], soft_labels[soft_rows]]))

    torch.manual_seed(0)
    _train("judge-shown", judge, loss_of, FINE_STEPS, FINE_RATE, until)
    _write(judge)


def _rows(draw: int, step: int, count: int, wanted: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng([draw, step]).choice(count, wanted, replace=False))


def _train(name: str, judge: Judge, loss_of: Callable[[int], Tensor], steps: int, rate: float, until: int | None) -> None:
    optimizer = torch.optim.AdamW(judge.train().parameters(), lr=rate, weight_decay=0.02)
    stage = Stage(name=name, modules=judge, optimizer=optimizer, steps=steps, until=until)
    keep_small_convolutions_in_float32(judge)
    stage.train(loss_of, warm_cosine(rate))


def _disturbed(images: Tensor) -> Tensor:
    """A little noise and blur, as an autoencoder leaves, so that they do not decide."""
    soft = functional.avg_pool2d(images, 3, 1, 1)
    mix = torch.rand(len(images), 1, 1, 1)
    return images + (soft - images) * mix * 0.7 + 0.04 * torch.randn_like(images)


def _loss(judge: Judge, images: Tensor, labels: NDArray[np.uint8]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = judge(images)
    told = torch.from_numpy(labels.astype(np.int64))
    losses = [functional.cross_entropy(logits[name].float(), told[:, row], ignore_index=dataset.NAMELESS) for row, name in enumerate(ATTRIBUTES)]
    return torch.stack(losses).sum()


def _write(judge: Judge) -> None:
    halves = {name: value.half() if value.is_floating_point() else value for name, value in judge.state_dict().items()}
    safetensors.torch.save_file({name: value.contiguous() for name, value in halves.items()}, WEIGHTS)


def trained() -> Judge:
    """The judge that is part of the repository."""
    judge = Judge()
    judge.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in safetensors.torch.load_file(WEIGHTS).items()})
    return judge.eval().requires_grad_(False)


@torch.inference_mode()
def seen(judge: Judge, images: Tensor) -> Tensor:
    """The number of each attribute's likeliest value, shape (B, attributes), for images (B, 3, 64, 64) in [-1, 1]."""
    batches = [judge(batch) for batch in images.split(125)]
    return torch.stack([torch.cat([logits[name].argmax(dim=1) for logits in batches]) for name in ATTRIBUTES], dim=1)


def quality() -> dict[str, float]:
    """Which part of the held-out pictures is told right, by attribute, and of those of any hue that the autoencoder shows."""
    shards = range(dataset.SHARDS, dataset.SHARDS + dataset.HELD_OUT)
    judge, soft = trained(), dataset.ANY_HUE_HELD_OUT
    drawn = hit_rates(seen(judge, as_input(dataset.pictures(shards))), torch.from_numpy(dataset.labels(shards).astype(np.int64)))
    shown = hit_rates(seen(judge, as_input(vae.shown(soft))), torch.from_numpy(dataset.labels(soft).astype(np.int64)))
    return {**drawn, **{f"{name}, shown by the autoencoder": rate for name, rate in shown.items() if name != "color"}}


def hit_rates(found: Tensor, asked: Tensor) -> dict[str, float]:
    """Which part of what was asked is found, by attribute; without what is ``NAMELESS``, and color and mark without silhouettes, which hide them."""
    names = list(ATTRIBUTES)
    silhouette = ATTRIBUTES["style"].index("silhouette")
    shown = asked[:, names.index("style")] != silhouette
    rates: dict[str, Any] = {}
    for row, name in enumerate(names):
        counted = (asked[:, row] != dataset.NAMELESS) & (shown if name in ("color", "mark") else torch.ones_like(shown))
        rates[name] = float((found[:, row] == asked[:, row])[counted].float().mean())
    return rates
