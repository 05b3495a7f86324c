"""What was learned, by the names that other programs know."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import comfy.utils
from torch import Tensor

from ...palp_train.checkpoint import WORD_PREFIX, PalpLora
from ...palp_train.embedding import WordEmbedding
from ...palp_train.errors import InputError

FAMILY_KEY = "palp.family"
NETWORK_KEY = "palp.unet_config"
_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"

DIFFUSERS_MAPS: Mapping[str, tuple[str, str]] = {  # by the host's class: the host's function that knows diffusers' paths, and diffusers' prefix
    "BaseModel": ("unet_to_diffusers", "unet"),
    "SDXL": ("unet_to_diffusers", "unet"),
    "SD3": ("mmdit_to_diffusers", "transformer"),
    "Flux": ("flux_to_diffusers", "transformer"),
    "AuraFlow": ("auraflow_to_diffusers", "transformer"),
    "PixArt": ("pixart_to_diffusers", "transformer"),
    "Lumina2": ("z_image_to_diffusers", "transformer"),
    "QwenImage": ("", "transformer"),  # whose paths are diffusers' own
    "HiDream": ("", "transformer"),
}


def network_metadata(model: Any) -> dict[str, str]:
    """What an export has to know of the network: the host's class and the plain values of its configuration."""
    config = {name: value for name, value in model.model_config.unet_config.items() if _is_plain(value)}
    return {FAMILY_KEY: type(model).__name__, NETWORK_KEY: json.dumps(config)}


def kohya_tensors(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA by kohya's names, ``lora_unet_<path with underscores>``."""
    return {_kohya_name(name): tensor for name, tensor in lora.items()}


def bundle_tensors(palp_lora: PalpLora, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The LoRA by kohya's names with the words in it as A1111 bundles them: ``bundle_emb.<name>.<encoder>``.

    Args:
        palp_lora: what was learned.
        names: what each placeholder is to be called in prompts.
    """
    words = {f"{WORD_PREFIX}{names[word.placeholder]}.{encoder}": v.contiguous() for word in palp_lora.words for encoder, v in word.vectors.items()}
    return {**kohya_tensors(palp_lora.lora), **words}


def word_names(words: list[WordEmbedding], name: str) -> dict[str, str]:
    """A name of plain characters for each placeholder: ``name``, numbered where there are several words."""
    plain = re.sub(r"[^\w-]", "_", name)  # spaces, brackets and dots end a name in prompts or in a bundle
    return {word.placeholder: plain if len(words) == 1 else f"{plain}-{number}" for number, word in enumerate(words, start=1)}


def diffusers_tensors(palp_lora: PalpLora) -> dict[str, Tensor]:
    """The LoRA by the names of diffusers' peft format: ``<unet or transformer>.<path>.lora_A.weight`` and ``.lora_B.weight``.

    Where the host has one layer for query, key and value and diffusers three, each gets the shared down matrix and its rows of the up
    matrix. Alpha is multiplied into the latter.

    Raises:
        InputError: diffusers has no such model, the file is too old to tell, or it has no layer like one of the LoRA's.
    """
    family = palp_lora.metadata.get(FAMILY_KEY, "")
    if family not in DIFFUSERS_MAPS:
        raise InputError("format", f"diffusers: LoRAs of {family or 'files of older versions'} cannot be written for it. Use kohya + embedding.")
    prefix, tensors, written = DIFFUSERS_MAPS[family][1], dict[str, Tensor](), set[str]()
    for path, name, rows in _diffusers_layers(palp_lora, family):
        down, up = palp_lora.lora[name + _DOWN], palp_lora.lora[name + _UP]
        scale = palp_lora.lora[name + _ALPHA].item() / len(down)
        tensors[f"{prefix}.{path}.lora_A.weight"] = down.clone()
        tensors[f"{prefix}.{path}.lora_B.weight"] = (up[rows] * scale).contiguous()
        written.add(name)
    if left := sorted(_layer_names(palp_lora.lora) - written):
        raise InputError(
            "format", f"diffusers has no layer like {left[0]} and {len(left) - 1} more. Train with layers set to attention, or use kohya + embedding."
        )
    return tensors


def _diffusers_layers(palp_lora: PalpLora, family: str) -> Iterator[tuple[str, str, slice]]:
    """Diffusers' path, the LoRA's name of the layer, and which rows of its up matrix belong there."""
    function = DIFFUSERS_MAPS[family][0]
    if not function:
        yield from ((name.removeprefix("diffusion_model."), name, slice(None)) for name in _layer_names(palp_lora.lora))
        return
    known: Callable[[Any], dict[str, Any]] = getattr(comfy.utils, function)
    sections: dict[str, list[tuple[int, int, int] | None]] = {}
    for key, target in known(json.loads(palp_lora.metadata[NETWORK_KEY])).items():
        path, (host_key, section) = key.removesuffix(".weight"), (target, None) if isinstance(target, str) else target[:2]
        host_path = host_key.removesuffix(".weight")
        candidates = (f"diffusion_model.{host_path}", _kohya_name(f"diffusion_model.{host_path}"), f"lora_unet_{path.replace('.', '_')}")
        name = next((candidate for candidate in candidates if candidate + _DOWN in palp_lora.lora), None)
        if name is None or not key.endswith(".weight"):
            continue
        had = sections.setdefault(name, [])
        # The host lists diffusers' own path first, then what other programs call the layer, whole or in parts.
        if section in had or (had and (had[0] is None) != (section is None)):
            continue
        had.append(section)
        yield path, name, slice(section[1], section[1] + section[2]) if section else slice(None)


def _layer_names(lora: Mapping[str, Tensor]) -> set[str]:
    return {name.removesuffix(_DOWN) for name in lora if name.endswith(_DOWN)}


def _kohya_name(name: str) -> str:
    if not name.startswith("diffusion_model."):
        return name
    ending = next((ending for ending in (_DOWN, _UP, _ALPHA) if name.endswith(ending)), "")
    return f"lora_unet_{name.removeprefix('diffusion_model.').removesuffix(ending).replace('.', '_')}{ending}"


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str) or (isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value))
