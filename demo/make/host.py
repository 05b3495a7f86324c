"""The host's classes in this process, and the demo model's modules made of them, ready to be trained."""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import torch
from torch import nn

from demo.make.paths import ROOT
from dev_tools.host import PINNED


def architecture() -> ModuleType:
    """``nodes/host/demo_model.py``; ``COMFYUI_PATH`` says where the host is, if not in ``.dev``."""
    if "palp_demo_model" not in sys.modules:
        sys.path.insert(0, os.environ.get("COMFYUI_PATH", str(ROOT / ".dev" / PINNED)))
        import comfy.cli_args

        comfy.cli_args.args.cpu = not torch.cuda.is_available()
        comfy.cli_args.args.use_pytorch_cross_attention = True
        spec = importlib.util.spec_from_file_location("palp_demo_model", ROOT / "nodes" / "host" / "demo_model.py")
        assert spec and spec.loader
        module = sys.modules["palp_demo_model"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["palp_demo_model"]


def new_unet() -> Any:
    """The host's UNetModel as PyTorch would initialize it, with residual branches that start at zero."""
    unet = architecture().empty_diffusion_model(1.0).diffusion_model
    _initialize(unet)
    _zero(unet, (".out_layers.3", ".proj_out", "out.2"))
    return unet.requires_grad_(True)


def new_vae() -> Any:
    """The host's AutoencoderKL."""
    shape = architecture()
    from comfy.ldm.models.autoencoder import AutoencoderKL

    vae = AutoencoderKL(ddconfig=shape.VAE_CONFIG, embed_dim=shape.LATENT_CHANNELS)
    shape.regroup(vae)
    _initialize(vae)
    _zero(vae, (".conv2", ".proj_out"))
    for path, layer in vae.decoder.named_modules():
        if path.endswith("sample.conv"):  # enlarges at first, and nothing else: colors pass at once
            layer.weight.data.mul_(0.3).add_(nn.init.dirac_(torch.empty_like(layer.weight)))
    return vae


def new_text_encoder() -> Any:
    """The host's CLIPTextModel in the SDClipModel that encodes token numbers."""
    encoder = architecture().DemoTextEncoder(dtype=torch.float32)
    _initialize(encoder.transformer)
    embeddings = encoder.transformer.text_model.embeddings
    for table, size in ((embeddings.token_embedding, 0.05), (embeddings.position_embedding, 0.02)):
        nn.init.normal_(table.weight, std=size)
    return encoder


def model_sampling() -> Any:
    """The host's noise schedule of the demo model."""
    return architecture().empty_diffusion_model(1.0).model_sampling


def _initialize(module: nn.Module) -> None:
    """Give weights to the host's layers, which leave that to a checkpoint."""
    for layer in module.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Embedding):
            if isinstance(layer, kind):
                standard: Any = kind.reset_parameters  # the host's own does nothing
                standard(layer)


def _zero(module: nn.Module, endings: tuple[str, ...]) -> None:
    """Let the layers with these names put out nothing at first."""
    for path, layer in module.named_modules():
        if path.endswith(endings):
            for parameter in layer.parameters(recurse=False):
                nn.init.zeros_(parameter)
