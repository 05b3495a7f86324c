"""The trained parts as one file, in half precision, named as in SD 1.x's checkpoints."""

from __future__ import annotations

import safetensors.torch
import torch

from demo.make import denoiser, text, vae
from demo.make.host import architecture

NOTE = "Made by demo.make from drawn pictures; art: Fluent emoji, Microsoft, MIT. See demo/NOTICE.md."


def write() -> int:
    """Write the weights; returns the size in bytes."""
    shape = architecture()
    parts = {shape.UNET: denoiser.trained(), shape.CLIP: text.trained(), shape.VAE: vae.trained()}
    tensors = {prefix + name: value.half().contiguous() for prefix, module in parts.items() for name, value in module.state_dict().items()}
    tensors["scale_factor"] = torch.load(vae.LATENTS, weights_only=True)["scale"].float().reshape(1)
    shape.WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, shape.WEIGHTS, metadata={"note": NOTE, "license": "Apache-2.0"})
    return shape.WEIGHTS.stat().st_size
