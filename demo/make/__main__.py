"""Make the demo model, or go on where it was cut off: ``python -m demo.make [STAGE ...]``.

    draw      pictures of the world                  text      the text encoder
    judge     the network that scores pictures       unet      the diffusion model; hours
    encode    the encoder, latents of all pictures   package   demo/weights/palp_demo.safetensors
    decoder   the decoder                            score     hit rates by attribute
    subjects  demo/subjects                          sheet     docs/demo_model.png

Without a stage: all of them, in order. Set COMFYUI_PATH to a ComfyUI folder, or have one in .dev by ``python dev.py test``.
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


STAGES: dict[str, Callable[[], object]] = {
    "subjects": subjects.write_all,
    "draw": dataset.draw_all,
    "judge": lambda: (classify.train(), show(classify.quality())),
    "encode": vae.encode_all,
    "text": lambda: (vocabulary.write(), text.train(), show(text.quality())),
    "unet": denoiser.train,
    "decoder": lambda: (vae.train_decoder(), show(vae.quality())),
    "package": lambda: print(package.write(), "bytes"),
    "score": lambda: show(score.score()),
    "sheet": score.write_sheet,
}


def main() -> None:
    """Run the stages that were named, or all."""
    names = sys.argv[1:] or list(STAGES)
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        sys.exit(f"{unknown[0]} is no stage.\n\n{__doc__}")
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "pid").write_text(str(os.getpid()))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    for name in names:
        STAGES[name]()


if __name__ == "__main__":
    main()
