"""What the demo model makes of prompts, through the host's own sampler: hit rates by attribute, and a sheet of pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from demo.make import classify
from demo.make.dataset import NAMELESS, label_row
from demo.make.grammar import ATTRIBUTES, UNTOLD, Scene, phrase, random_scene
from demo.make.host import architecture
from demo.make.paths import ROOT
from demo.settings import SAMPLING, Sampling

SHEET = ROOT / "docs" / "demo_model.jpg"
ON_SHEET = (
    ("a photo of a cat", "a photo of a dog on the beach", "a photo of a red car in the city at night", "a photo of a penguin in the snow"),
    ("a sketch of a cat in Paris at night", "a sketch of an elephant in the forest", "a sketch of a boat at the beach", "a sketch of a blue bus in Paris"),
    ("a cartoon of a spotted horse in the desert", "a cartoon of a green owl in the forest", "a cartoon of a robot in space", "a cartoon of a pig at sunset"),
    ("a silhouette of a dinosaur at sunset", "a silhouette of a cat in Paris", "a silhouette of a duck at night", "a silhouette of a guitar"),
    ("a red cat, pixel art, on the beach", "pixel art of a frog in the forest", "pixel art of a rocket in space", "pixel art of a bear in the snow"),
    (
        "a watercolor of a purple fish",
        "a watercolor of a striped turtle on the beach",
        "a watercolor of a mushroom in the forest",
        "a watercolor of a whale with a hat",
    ),
)


def sampled(model: Any, prompts: Sequence[str], seed: int, settings: Sampling = SAMPLING) -> Tensor:
    """One picture for each prompt, shape (B, 64, 64, 3), values in [0, 1]."""
    import comfy.sample

    with torch.inference_mode():
        noise = torch.randn(len(prompts), architecture().LATENT_CHANNELS, 8, 8, generator=torch.Generator().manual_seed(seed))
        told = torch.cat([_encoded(model.clip, prompt) for prompt in prompts])
        positive, negative = [[told, {}]], [[_encoded(model.clip, ""), {}]]
        latents = comfy.sample.sample(
            *(model.model, noise, settings.steps, settings.guidance, settings.sampler, settings.scheduler),
            *(positive, negative, torch.zeros_like(noise)),
            disable_pbar=True,
            seed=seed,
        )
        return model.vae.decode(latents).float().clamp(0, 1)


def _encoded(clip: Any, prompt: str) -> Tensor:
    return clip.encode_from_tokens(clip.tokenize(prompt))


def score(count: int = 512, settings: Sampling = SAMPLING) -> dict[str, float]:
    """Which part of what random prompts ask for the judge finds in the pictures, by attribute; of colors, marks and hats, those that a prompt names."""
    model, rng = architecture().load_demo_model(), np.random.default_rng(6)
    scenes = [random_scene(rng) for _ in range(count)]
    prompts = [phrase(scene, rng) for scene in scenes]
    images = torch.cat([sampled(model, prompts[start : start + 64], start, settings) for start in range(0, count, 64)])
    found = classify.seen(classify.trained(), images.permute(0, 3, 1, 2) * 2 - 1)
    return classify.hit_rates(found, torch.tensor([_asked(scene) for scene in scenes]))


def _asked(scene: Scene) -> list[int]:
    return [NAMELESS if getattr(scene, name) == UNTOLD.get(name) else number for name, number in zip(ATTRIBUTES, label_row(scene), strict=True)]


def write_sheet(path: Path = SHEET) -> None:
    """The prompts of ``ON_SHEET``, two pictures each, with the prompts under them."""
    model = architecture().load_demo_model()
    prompts = [prompt for row in ON_SHEET for prompt in row]
    images = sampled(model, [prompt for prompt in prompts for _ in range(2)], seed=1)
    side, wide, high = 112, 2 * 112 + 12, 112 + 34
    sheet = Image.new("RGB", (wide * len(ON_SHEET[0]), high * len(ON_SHEET)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, prompt in enumerate(prompts):
        left, top = number % len(ON_SHEET[0]) * wide, number // len(ON_SHEET[0]) * high
        for copy in range(2):
            picture = Image.fromarray((images[2 * number + copy].numpy() * 255).round().astype(np.uint8))
            sheet.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (left + copy * (side + 2) + 4, top + 4))
        pen.multiline_text((left + 5, top + side + 6), textwrap.fill(prompt, 44), fill="black", font_size=10, spacing=1)
    sheet.save(path, quality=90)
