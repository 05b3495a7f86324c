"""Published models with random weights, made in memory and given to the host's own loaders as if they came from files.

Import this only after the host and the pack, like ``full_size``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import comfy.ldm.hunyuan_video.vae
import comfy.ldm.models.autoencoder
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.taesd.taesd
import torch
from torch import nn

from bench.contenders import Models
from bench.full_size import FULL_SIZES, FullSize
from bench.published import PUBLISHED, Published
from bench.random_checkpoint import AUTOENCODER, UNET, random_weights

ENCODERS: dict[
    str, tuple[str, str, str | dict[str, Any]]
] = {  # module of the host, class, and the file with its configuration or what differs from the class's own
    "clip_l": ("clip_model", "CLIPTextModel", "sd1_clip_config.json"),
    "clip_g": ("clip_model", "CLIPTextModel", "clip_config_bigg.json"),
    "clip_h": ("clip_model", "CLIPTextModel", "text_encoders/sd2_clip_config.json"),
    "t5xxl": ("text_encoders.t5", "T5", "text_encoders/t5_config_xxl.json"),
    "pile_t5xl": ("text_encoders.t5", "T5", "text_encoders/t5_pile_config_xl.json"),
    "byt5": ("text_encoders.t5", "T5", "text_encoders/byt5_config_small_glyph.json"),
    "qwen3_4b": ("text_encoders.llama", "Qwen3_4B", {}),
    "qwen25_7b": ("text_encoders.llama", "Qwen25_7BVLI", {}),
    "llama3_8b": ("text_encoders.llama", "Llama2", {"vocab_size": 128256}),
}
HUNYUAN_AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "z_channels": 64,
    "block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "num_res_blocks": 2,
    "ffactor_spatial": 32,
}
WAN_AUTOENCODER = {
    "dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
NARROW_CLIP = {"num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 768}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is drawn."""

    network: FullSize
    published: Published
    vae: str
    encoder_config: dict[str, Any] = field(default_factory=dict)
    """What differs from the published encoders' configurations."""


def sizes(name: str, *, narrow: bool) -> Sizes:
    """Those of a model in ``published.PUBLISHED``, or of a narrow SD 1.5 that takes sd15's place on a small machine."""
    published = PUBLISHED[name]
    if not narrow:
        return Sizes(network=FULL_SIZES[published.size], published=published, vae=published.vae)
    network = FullSize(host_class="SD15", network=UNET, latent=(4, 16, 16), text=(1, 77, 768))
    return Sizes(network=network, published=published, vae="tiny", encoder_config=NARROW_CLIP)


@torch.inference_mode()  # the host runs its loaders in this mode
def loaded(size: Sizes) -> Models:
    """The models as the host's loaders give them."""
    draw = _draws(size)
    clip = comfy.sd.load_text_encoder_state_dicts(
        [draw(encoder(name, size.encoder_config)) for name in size.published.encoders],
        clip_type=getattr(comfy.sd.CLIPType, size.published.clip_type),
        model_options={"model_config": dict(size.encoder_config)},  # a copy: the host adds to it
    )
    return Models(model=network(size), clip=clip, vae=comfy.sd.VAE(sd=draw(autoencoder(size.vae))))


def network(size: Sizes, **options: Any) -> Any:
    """The diffusion model as the host's loader gives it with these options; the same weights every time."""
    patcher = comfy.sd.load_diffusion_model_state_dict(_draws(size)(size.network.model().diffusion_model), **options)
    patcher.cached_patcher_init = (network, (size,))  # newer hosts load a model again where they need a copy
    return patcher


def _draws(size: Sizes) -> Callable[[nn.Module], dict[str, torch.Tensor]]:
    """Random weights for networks without any, drawn on the GPU where there is one."""
    generator = torch.Generator(comfy.model_management.get_torch_device()).manual_seed(0)
    return partial(random_weights, generator=generator, dtype=getattr(torch, size.published.dtype))


def encoder(name: str, changes: dict[str, Any]) -> nn.Module:
    """A text encoder, on the meta device: names and shapes only."""
    module, network, config = ENCODERS[name]
    if isinstance(config, str):
        config = json.loads((Path(comfy.sd.__file__).parent / config).read_text(encoding="utf-8"))
    made = getattr(import_module(f"comfy.{module}"), network)
    return made({**config, **changes}, torch.float32, "meta", comfy.ops.disable_weight_init)


def autoencoder(name: str) -> nn.Module:
    """A VAE, on the meta device: names and shapes only."""
    with torch.device("meta"):
        return AUTOENCODERS[name]()


def _kl(channels: int) -> nn.Module:
    """Stable Diffusion's; those with more channels than 4 have nothing between encoder and latent."""
    config = {**AUTOENCODER, "z_channels": channels}
    vae = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=config, embed_dim=channels)
    if channels != 4:
        del vae.quant_conv, vae.post_quant_conv
    return vae


def _hunyuan() -> nn.Module:
    vae = comfy.ldm.hunyuan_video.vae
    return nn.ModuleDict({"encoder": vae.Encoder(**HUNYUAN_AUTOENCODER), "decoder": vae.Decoder(**HUNYUAN_AUTOENCODER)})


AUTOENCODERS: dict[str, Callable[[], nn.Module]] = {
    "kl, 4 channels": partial(_kl, 4),
    "kl, 16 channels": partial(_kl, 16),
    "wan, 16 channels": partial(comfy.ldm.wan.vae.WanVAE, **WAN_AUTOENCODER),
    "hunyuan, 64 channels": _hunyuan,
    "tiny": comfy.taesd.taesd.TAESD,
}
