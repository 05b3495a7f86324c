"""A LoRA by the names that loaders know, and its way into the user's MODEL and CLIP."""

from typing import Any

import comfy.model_base
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...palp_train.checkpoint import PalpLora
from ...palp_train.lora import Lora
from .text_encoder import clip_with_words


def named_tensors(model: Any, lora: Lora) -> dict[str, Tensor]:
    """``<name>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha`` for every adapted layer, float32 on the CPU."""
    names = kohya_names(model)
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in lora.matrices().items():
        name = names.get(path, f"lora_unet_{path.replace('.', '_')}")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(float(lora.rank))}
    return tensors


def kohya_names(model: Any) -> dict[str, str]:
    """Kohya's name for each layer of the network, by its path; SDXL layers, which kohya names by that path, are left out."""
    if isinstance(model, comfy.model_base.SDXL):
        return {}
    diffusers = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    layers = {path.removesuffix(".weight"): name.removesuffix(".weight") for name, path in diffusers.items() if name.endswith(".weight")}
    return {path: f"lora_unet_{name.replace('.', '_')}" for path, name in layers.items()}


def apply_lora(model: Any, clip: Any, palp_lora: PalpLora, strength: float) -> tuple[Any, Any]:
    """Clones of MODEL, with the LoRA, and CLIP, with the new words; those given are untouched."""
    patched, _ = comfy.sd.load_lora_for_models(model, None, dict(palp_lora.lora), strength, 0)
    return patched, clip_with_words(clip, palp_lora.words)
