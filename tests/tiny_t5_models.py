"""Tiny models of the transformer families that read a T5, as ``tiny_models`` makes those of the U-Nets.

Import this only after the ``host`` fixture: it needs the host's modules.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import comfy.ldm.chroma.model
import comfy.ldm.flux.model
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.sd3_clip
import torch
from comfy.model_management import get_torch_device
from tiny_models import Models, _clip, _patcher, tiny_vae

HIDDEN, HEADS = 64, 2
WIDTH = 16  # of every text encoder: their vocabularies are large
WIDTH_SD3 = 4096  # the width of the T5 that SD3 was trained with: the host pads CLIP's output to it


def sd3(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """SD 3's classes: joint blocks, the last of which drops the text; three text encoders."""
    return _sd3(dtype, seed)


def sd35(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """SD 3.5 medium's: a second self-attention of the picture in the first block, normalized queries and keys."""
    return _sd3(dtype, seed, qk_norm="rms", x_block_self_attn_layers=[0])


def flux(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """Flux dev's classes: double and single stream blocks, guidance, CLIP's pooled output."""
    config = _streams(comfy.ldm.flux.model.FluxParams, image_model="flux", in_channels=16, out_channels=16, vec_in_dim=WIDTH, guidance_embed=True, dtype=dtype)
    return _models(comfy.supported_models.Flux(config), seed)


def chroma(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """Chroma's classes: Flux's blocks, all modulated by one small network; T5 alone."""
    approximator = dict(in_dim=64, hidden_dim=HIDDEN, out_dim=HIDDEN, n_layers=2)  # 64: what the host embeds times, guidance and indices to
    special = dict(image_model="chroma", in_channels=64, out_channels=64, vec_in_dim=None, dtype=dtype)  # channels of a patch, unlike Flux's
    return _models(comfy.supported_models.Chroma(_streams(comfy.ldm.chroma.model.ChromaParams, **approximator, **special)), seed)


def auraflow(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """AuraFlow's classes: double and single blocks with a projection for each of query, key, value; Pile-T5."""
    layers = dict(n_layers=4, n_double_layers=2, n_heads=HEADS, dim=HIDDEN, global_conddim=HIDDEN)
    return _models(comfy.supported_models.AuraFlow(dict(cond_seq_dim=WIDTH, max_seq=16 * 16, dtype=dtype, **layers)), seed)


def pixart(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """PixArt-alpha's classes: self- and cross-attention, the picture's size as a condition.

    Its latents must be 34 x 34 or larger: for smaller ones the host divides by zero.
    """
    layers = dict(depth=2, num_heads=HEADS, hidden_size=96, caption_channels=WIDTH)  # 96: sizes are embedded to thirds of it
    return _models(comfy.supported_models.PixArtAlpha(dict(image_model="pixart_alpha", micro_condition=True, pe_interpolation=1, dtype=dtype, **layers)), seed)


class _WideT5(comfy.text_encoders.sd3_clip.T5XXLModel):
    """A narrow T5, its output repeated to the width that SD3 expects."""

    def forward(self, tokens: Any) -> tuple[Any, ...]:
        states, *others = super().forward(tokens)
        return states.repeat(1, 1, WIDTH_SD3 // WIDTH), *others


class _SD3Encoders(comfy.text_encoders.sd3_clip.SD3ClipModel):
    """SD3's own, with a T5 that need not be 4096 wide: the embedding of its vocabulary would take half a gigabyte."""

    def __init__(self, **options: Any) -> None:
        super().__init__(t5=False, **options)
        self.t5_attention_mask = False
        self.t5xxl = _WideT5(**options)


def _sd3(dtype: torch.dtype, seed: int, **special: Any) -> Models:
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": WIDTH_SD3, "out_features": HIDDEN}}
    positions = dict(input_size=None, pos_embed_scaling_factor=None, num_patches=16 * 16, pos_embed_max_size=16)
    size = dict(in_channels=16, depth=HIDDEN // 64, num_blocks=2, adm_in_channels=2 * WIDTH)  # the host's hidden size is 64 times depth
    config = comfy.supported_models.SD3(dict(context_embedder_config=embedder, dtype=dtype, **positions, **size, **special))
    return _models(config, seed, comfy.supported_models_base.ClipTarget(comfy.text_encoders.sd3_clip.SD3Tokenizer, _SD3Encoders))


def _streams(params: type, **special: Any) -> dict[str, Any]:
    common = dict(
        context_in_dim=WIDTH,
        hidden_size=HIDDEN,
        num_heads=HEADS,
        mlp_ratio=4.0,
        depth=2,
        depth_single_blocks=2,
        axes_dim=[8, 12, 12],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        txt_ids_dims=[],
    )
    known = {"image_model", "dtype", *(field.name for field in fields(params))}  # newer hosts ask for more than older ones allow
    return {name: value for name, value in {**common, **special}.items() if name in known}


def _models(config: Any, seed: int, encoders: Any = None) -> Models:
    with torch.inference_mode():
        model = config.get_model({}, device=get_torch_device())
        encoders = encoders or config.clip_target()
        patcher = _patcher(model, seed)
        _fill_tables(model.diffusion_model, seed)
        return Models(model=patcher, clip=_clip(encoders.tokenizer, _narrow(encoders.clip), seed), vae=tiny_vae(config.latent_format.latent_channels, seed))


def _fill_tables(network: torch.nn.Module, seed: int) -> None:
    """What ``randomize`` leaves empty or near zero: tables of positions and tokens, norms' weights that some hosts call scales."""
    generator = torch.Generator().manual_seed(seed + 3)
    for name, values in [*network.named_parameters(), *network.named_buffers()]:
        match name.rpartition(".")[2]:
            case "scale":
                values.data.add_(1)
            case "positional_encoding" | "register_tokens" | "pos_embed" | "y_embedding":
                values.data.copy_(torch.randn(values.shape, generator=generator))


def _narrow(encoders: type) -> Callable[..., torch.nn.Module]:
    t5 = dict(d_model=WIDTH, d_kv=8, d_ff=32, num_heads=HEADS, num_layers=2)

    def build(model_options: dict[str, Any], **options: Any) -> torch.nn.Module:
        clips = {name: {**model_options[name], "hidden_size": WIDTH} for name in ("clip_l_model_config", "clip_g_model_config")}
        t5s = {"t5xxl_model_config": t5, "pile_t5xl_model_config": t5}
        return encoders(model_options={**model_options, **clips, **t5s}, **options)

    return build
