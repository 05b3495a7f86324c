"""Tiny models of the host's own classes with random weights, made in inference mode as the host makes them.

Import this only after the ``host`` fixture: it needs the host's modules.
"""

from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.taesd.taesd
import comfy.text_encoders.sd2_clip
import torch
from comfy.model_management import get_torch_device

WIDTH_L, WIDTH_G = 32, 48


@dataclass(frozen=True, kw_only=True)
class Models:
    """What a checkpoint loader gives."""

    model: Any
    clip: Any
    vae: Any


def sd15(
    dtype: torch.dtype = torch.float32,
    model_type: Any = None,
    seed: int = 0,
    operations: Any = None,
    text_device: torch.device | None = None,
) -> Models:
    """SD 1.5's classes, everything small; the text encoder runs where the host puts it, or on ``text_device``."""
    with torch.inference_mode():
        config = comfy.supported_models.SD15(_unet(context_dim=WIDTH_L, use_linear_in_transformer=False, adm_in_channels=None, dtype=dtype))
        config.custom_operations = operations
        model = comfy.model_base.BaseModel(config, model_type=model_type or comfy.model_base.ModelType.EPS, device=get_torch_device())
        clip = _clip(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel, seed, text_device)
        return Models(model=_patcher(model, seed), clip=clip, vae=tiny_vae(4, seed))


def sd2(dtype: torch.dtype = torch.float32, model_type: Any = None, seed: int = 0) -> Models:
    """SD 2.x's classes: OpenCLIP's text encoder."""
    with torch.inference_mode():
        unet = _unet(model_channels=64, context_dim=WIDTH_G, use_linear_in_transformer=True, adm_in_channels=None, dtype=dtype)
        kind = model_type or comfy.model_base.ModelType.EPS
        model = comfy.model_base.BaseModel(comfy.supported_models.SD20(unet), model_type=kind, device=get_torch_device())
        clip = _clip(comfy.text_encoders.sd2_clip.SD2Tokenizer, comfy.text_encoders.sd2_clip.SD2ClipModel, seed)
        return Models(model=_patcher(model, seed), clip=clip, vae=tiny_vae(4, seed))


def sdxl(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """SDXL's classes: two text encoders, pooled output and sizes through adm."""
    with torch.inference_mode():
        unet = _unet(
            model_channels=64,  # SDXL's heads are 64 wide
            context_dim=WIDTH_L + WIDTH_G,
            use_linear_in_transformer=True,
            adm_in_channels=WIDTH_G + 6 * 256,
            num_classes="sequential",
            dtype=dtype,
        )
        model = comfy.model_base.SDXL(comfy.supported_models.SDXL(unet), device=get_torch_device())
        clip = _clip(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel, seed)
        return Models(model=_patcher(model, seed), clip=clip, vae=tiny_vae(4, seed))


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Weights that keep activations of order one: the host leaves them uninitialized."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        values = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
        if parameter.ndim == 1:
            values = 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
        parameter.data.copy_(values)


def _unet(**special: Any) -> dict[str, Any]:
    common = dict(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=[1, 1],
        channel_mult=[1, 2],
        transformer_depth=[1, 1],
        transformer_depth_output=[1, 1, 1, 1],
        transformer_depth_middle=1,
        num_heads=2,
        num_head_channels=-1,
        use_spatial_transformer=True,
        legacy=False,
    )
    return common | special


def _patcher(model: torch.nn.Module, seed: int) -> Any:
    randomize(model.diffusion_model, seed)
    return comfy.model_patcher.ModelPatcher(model, load_device=get_torch_device(), offload_device=torch.device("cpu"))


def _clip(tokenizer: type, encoders: type, seed: int, device: torch.device | None = None) -> Any:
    class Target:
        params: dict[str, Any] = {}  # noqa: RUF012  the host's own shape
        clip = encoders

    Target.tokenizer = tokenizer
    options = clip_options() if device is None else {**clip_options(), "load_device": device}
    clip = comfy.sd.CLIP(Target, embedding_directory=None, model_options=options)
    randomize(clip.cond_stage_model, seed + 1)
    return clip


def clip_options() -> dict[str, Any]:
    """What the host's loader is told, so that its CLIPs are small."""
    small = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "hidden_act": "gelu"}
    options = {"clip_l_model_config": {**small, "hidden_size": WIDTH_L}, "clip_g_model_config": {**small, "hidden_size": WIDTH_G}, "dtype": torch.float32}
    options["clip_h_model_config"] = options["clip_g_model_config"]
    return options


def tiny_vae(channels: int, seed: int) -> Any:
    """The host's tiny autoencoder, eight pixels to a latent."""
    taesd = comfy.taesd.taesd.TAESD(latent_channels=channels)
    randomize(taesd, seed + 2)
    return comfy.sd.VAE(sd=taesd.state_dict())
