"""A LoRA by the names that loaders know, and its way into the user's MODEL and CLIP."""

from typing import Any

import comfy.lora
import comfy.model_base
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...palp_train.checkpoint import ARCHITECTURE_KEY, PalpLora
from ...palp_train.errors import InputError
from ...palp_train.lora import Lora
from .checks import require
from .exports import FAMILY_KEY
from .families import family_of, known_family
from .text_encoder import clip_with_words


def named_tensors(model: Any, lora: Lora) -> dict[str, Tensor]:
    """``<name>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha`` for every adapted layer, float32 on the CPU."""
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in lora.matrices().items():
        name = lora_name(model, path)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(float(lora.rank))}
    return tensors


def lora_name(model: Any, path: str) -> str:
    """What LoRA loaders call the layer at ``path`` of the network.

    Kohya's names for SD 1.x and 2.x (of diffusers' paths) and SDXL (of these paths), which other programs read too; for all other
    families the host's own generic ones.
    """
    if not family_of(model).kohya_names:
        return f"diffusion_model.{path}"
    if isinstance(model, comfy.model_base.SDXL):
        return f"lora_unet_{path.replace('.', '_')}"
    return f"lora_unet_{_diffusers_paths(model)[path].replace('.', '_')}"


def _diffusers_paths(model: Any) -> dict[str, str]:
    """Diffusers' path of each layer of a UNet, by the host's."""
    diffusers = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    return {path.removesuffix(".weight"): name.removesuffix(".weight") for name, path in diffusers.items() if name.endswith(".weight")}


def _refuse_other_architecture(model: Any, palp_lora: PalpLora) -> None:
    """Return quietly unless the file says that it was trained on another kind of model: SD 1.x and 2.x, for example, name their layers alike.

    Raises:
        InputError: it says so.
    """
    told, family = palp_lora.metadata.get(ARCHITECTURE_KEY), known_family(model)
    if told and family and told != f"{family.architecture}/lora":
        raise InputError("model", f"it is {family.title}, and {palp_lora.file} was trained on {told.removesuffix('/lora')}. Use a model of that kind.")


def apply_lora(model: Any, clip: Any, palp_lora: PalpLora, strength: float) -> tuple[Any, Any]:
    """Clones of MODEL, with the LoRA, and CLIP, with the new word; those given are untouched.

    Raises:
        InputError: the LoRA was trained on another kind of model, or there is no CLIP.
    """
    require("model", model, "Connect the model that the LoRA was trained on.")
    require("clip", clip, "Connect the CLIP that belongs to the model.")
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    if not any(name.removesuffix(".lora_up.weight") in known for name in palp_lora.lora if name.endswith(".lora_up.weight")):
        trained = palp_lora.metadata.get(FAMILY_KEY, "another family")
        raise InputError("model", f"it is a {type(model.model).__name__} model, and {palp_lora.file} was trained on {trained}: they have no layer in common.")
    _refuse_other_architecture(model.model, palp_lora)
    patched, _ = comfy.sd.load_lora_for_models(model, None, dict(palp_lora.lora), strength, 0)
    return patched, clip_with_words(clip, palp_lora.words)
