"""Make the demo model, or go on where it was cut off: ``python -m demo.make [STAGE[:STEP] ...]``.

    subjects  demo/subjects
    draw      pictures of the world
    judge     the network that scores pictures
    text      the text encoder
    encode    the encoder, latents of all pictures
    unet      the diffusion model; hours
    widen     it goes on with creatures of any hue and prompts that tell less
    decoder   the decoder
    show      drawn pictures as the decoder shows them
    refine    the judge goes on with those
    package   demo/weights/palp_demo.safetensors
    score     hit rates by attribute
    sheet     docs/demo_model.jpg

Without a stage: all of them, in order. With a step, ``unet:3000`` say, a stage that trains stops there for now.
Set COMFYUI_PATH to a ComfyUI folder, or have one in .dev by ``python dev.py test``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping

import torch

from demo.make import classify, dataset, denoiser, package, score, subjects, text, vae, vocabulary
from demo.make.paths import WORK


def show(numbers: Mapping[str, float]) -> None:
    """Print measured numbers."""
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}, indent=1), flush=True)


def _text(until: int | None) -> None:
    vocabulary.write()
    text.train(until)
    show(text.quality())


def _decoder(until: int | None) -> None:
    vae.train_decoder(until)
    show(vae.quality())


def _refine(until: int | None) -> None:
    classify.train_on_shown(until)
    show(classify.quality())


STAGES: dict[str, Callable[[int | None], object]] = {
    "subjects": lambda _: subjects.write_all(),
    "draw": lambda _: dataset.draw_all(),
    "judge": classify.train,
    "text": _text,
    "encode": lambda _: vae.encode_all(),
    "unet": denoiser.train,
    "widen": denoiser.widen,
    "decoder": _decoder,
    "show": lambda _: vae.show_all(),
    "refine": _refine,
    "package": lambda _: print(package.write(), "bytes", flush=True),
    "score": lambda _: show(score.score()),
    "sheet": lambda _: score.write_sheet(),
}


def main() -> None:
    """Run the stages that were named, or all."""
    wanted = [word.partition(":") for word in sys.argv[1:] or STAGES]
    unknown = [name for name, _, _ in wanted if name not in STAGES]
    if unknown:
        sys.exit(f"{unknown[0]} is no stage.\n\n{__doc__}")
    WORK.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    for name, _, step in wanted:
        STAGES[name](int(step) if step else None)


if __name__ == "__main__":
    main()
