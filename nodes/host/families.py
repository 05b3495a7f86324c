"""The model families that we train, and what is particular to each. What is not in this table is refused."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...palp_train.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family's files are called elsewhere, and how its network has to be treated."""

    title: str
    """As people call it."""
    architecture: str
    """``modelspec.architecture`` without "/lora"."""
    base_model: str
    """``ss_base_model_version``, as kohya's trainers write it."""
    writes_in_place: bool = False
    """Whether its blocks add their residuals onto tensors that autograd has saved."""
    mixes_rows: bool = True
    """Whether each layer gets the rows of a batch as rows, so that the LoRA can act on some of them only."""
    unused_at_the_end: tuple[str, ...] = ()
    """Beginnings of paths within its last block: layers whose output the host computes there and drops."""
    brings_tensors: bool = False
    """Whether its network makes tensors on the CPU in every pass, which the device would wait for."""
    smallest_side: int = 1
    """Of a latent, for which the network's own code works."""
    expert_share: float = 1.0
    """In a mixture of experts: the share of the rows that each gets where all get as many."""
    kohya_names: bool = False
    """Whether its LoRAs have kohya's names; others have ComfyUI's generic ones."""


_STABLE_DIFFUSION_1 = Family(title="SD 1.x", architecture="stable-diffusion-v1", base_model="sd_v1", kohya_names=True)
_STABLE_DIFFUSION_2 = Family(title="SD 2.x", architecture="stable-diffusion-v2", base_model="sd_v2", kohya_names=True)

_FAMILIES = {  # by the host's class; classes derived from these take other inputs, and have to be listed to be trained
    "SDXL": Family(title="SDXL", architecture="stable-diffusion-xl-v1-base", base_model="sdxl_base_v1-0", kohya_names=True),
    "SD3": Family(title="SD 3 / 3.5", architecture="stable-diffusion-3", base_model="sd3"),
    "Flux": Family(title="Flux 1", architecture="flux-1-dev", base_model="flux1", writes_in_place=True),
    "Chroma": Family(title="Chroma", architecture="chroma", base_model="chroma", writes_in_place=True),
    "AuraFlow": Family(title="AuraFlow", architecture="auraflow", base_model="auraflow", brings_tensors=True),
    "PixArt": Family(title="PixArt", architecture="pixart", base_model="pixart", mixes_rows=False, smallest_side=34),
    "HunyuanDiT": Family(title="HunyuanDiT", architecture="hunyuan-dit", base_model="hunyuan_dit", brings_tensors=True),
    "HunyuanImage21": Family(title="HunyuanImage 2.1", architecture="hunyuan-image-2.1", base_model="hunyuan_image_2.1", writes_in_place=True),
    "Lumina2": Family(title="Lumina 2 / Z-Image", architecture="lumina-2", base_model="lumina2"),
    "QwenImage": Family(
        title="Qwen-Image",
        architecture="qwen-image",
        base_model="qwen_image",
        unused_at_the_end=("attn.to_add_out", "attn.add_q_proj", "txt_mlp"),
    ),
    "HiDream": Family(title="HiDream", architecture="hidream-i1", base_model="hidream", expert_share=1 / 4),
}


def family_of(model: Any, name: str = "model") -> Family:
    """The family of one of the host's BaseModels, which came in through the input ``name``.

    Raises:
        InputError: we do not train such models; the text says which we do.
    """
    family = known_family(model)
    if family is None or model.model_config.unet_config.get("in_channels", model.latent_format.latent_channels) not in _plain_channels(model):
        known = ", ".join(dict.fromkeys(f.title for f in (_STABLE_DIFFUSION_1, _STABLE_DIFFUSION_2, *_FAMILIES.values())))
        raise InputError(
            name,
            f"{_kind(model)} cannot be trained: PALP trains text-to-image models that take nothing but a prompt. Use one of these families: {known}.",
        )
    return family


def known_family(model: Any) -> Family | None:
    """The family of one of the host's BaseModels, also where it takes more than a prompt; None of other families."""
    name = type(model).__name__
    if name == "BaseModel" and getattr(model.diffusion_model, "input_blocks", None) is not None:
        is_second = any(config.__name__ == "SD20" for config in type(model.model_config).__mro__)
        return _STABLE_DIFFUSION_2 if is_second else _STABLE_DIFFUSION_1
    return _FAMILIES.get(name)


def _plain_channels(model: Any) -> tuple[int, ...]:
    """How many channels the network takes where it gets the noised latent alone; transformers count those of a 2 x 2 patch, too."""
    channels = model.latent_format.latent_channels
    return (channels, 4 * channels)


def _kind(model: Any) -> str:
    special = {"SDXLRefiner": "an SDXL refiner", "Flux2": "a Flux 2 model"}
    name = type(model).__name__
    return special.get(name, f"a {name} model like this one (inpainting, editing, video ...)")


def trainable_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The blocks that the network is a sequence of, by path: what stands in its lists of modules, without lone layers and nested blocks."""
    return {path: block for name, child in network.named_children() for path, block in _blocks(name, child)}


def _blocks(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from _blocks(f"{path}.{name}", child)
        elif next(child.children(), None) is not None:
            yield f"{path}.{name}", child


_LEFT_ALONE = ("emb_layers", "gate", "experts")
_FUSED_ATTENTION = ("single_blocks",)
"""Blocks of Flux and its kin, whose two linear layers hold the projections of attention and of the feed-forward part in one."""


def adapted_layers(network: nn.Module, layers: str) -> list[str]:
    """Paths of the linear layers that a LoRA adapts.

    Args:
        network: the host's diffusion model.
        layers: "attention": projections of self- and cross-attention, which the paper trains (Appendix C). "all linear": also those of the
            feed-forward parts; modulation, embeddings and mixtures of experts stay as they are.
    """
    found: list[str] = []
    for path, block in trainable_blocks(network).items():
        for name, layer in block.named_modules(prefix=path):
            if isinstance(layer, nn.Linear) and (_is_attention(name) or (layers == "all linear" and not _is_modulation(name))):
                found.append(name)
    return found


def unused_layers(model: Any) -> frozenset[str]:
    """Paths of layers that no gradient reaches, in one of the host's BaseModels."""
    *_, (last, block) = trainable_blocks(model.diffusion_model).items()
    unused = family_of(model).unused_at_the_end
    return frozenset(f"{last}.{path}" for path, _ in block.named_modules() if path.startswith(unused)) if unused else frozenset()


def _is_attention(path: str) -> bool:
    parts = path.split(".")
    fused = parts[0] in _FUSED_ATTENTION and parts[-1] in ("linear1", "linear2")
    return fused or (any("attn" in part or "attention" in part for part in parts) and not _is_modulation(path))


def _is_modulation(path: str) -> bool:
    parts = path.split(".")
    return any(part in _LEFT_ALONE or part.startswith("mod") or part.endswith("_mod") or "modulation" in part for part in parts)
