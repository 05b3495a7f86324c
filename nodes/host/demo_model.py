"""The demo model: a small text-to-image model of SD 1.x's classes, made by ``demo.make``, whose weights are part of this repository.

It makes pictures of 64 x 64 pixels. Everything that shapes it is here, for the maker as for the node.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import folder_paths
import safetensors.torch
import torch
from torch import Tensor, nn

WEIGHTS = Path(__file__).resolve().parents[2] / "demo" / "weights" / "palp_demo.safetensors"
TOKENIZER = WEIGHTS.parent / "tokenizer"
UNET, CLIP, VAE = "model.diffusion_model.", "cond_stage_model.clip_l.transformer.", "first_stage_model."
"""What the names of the tensors begin with, as in SD 1.x's checkpoints."""
LATENT_CHANNELS, TEXT_WIDTH, TEXT_LENGTH = 12, 128, 32

UNET_CONFIG = {
    "image_size": 8,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "model_channels": 96,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": TEXT_WIDTH,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "legacy": False,
    "dtype": torch.float32,
}
TEXT_CONFIG = {
    "hidden_size": TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "hidden_act": "gelu",
    "max_position_embeddings": TEXT_LENGTH,
}
VAE_CONFIG = {
    "double_z": True,
    "z_channels": LATENT_CHANNELS,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
GROUPS = 8
"""Of channels that are normalized together. The host's 32 would be a few channels each, or one: normalized so, pictures forget brightness and colors."""


class DemoLatents(comfy.latent_formats.LatentFormat):
    """Twelve channels, eight pixels to a latent."""

    latent_channels = LATENT_CHANNELS

    def __init__(self, scale_factor: float = 1.0) -> None:
        """Latents times ``scale_factor`` have a standard deviation of one."""
        self.scale_factor = scale_factor


class DemoConfig(comfy.supported_models.SD15):
    """SD 1.x, only small. Its noise ends a little higher, so that what it starts from at inference is what it learned to start from."""

    unet_config = {}  # noqa: RUF012  the host's own shape, here and below
    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}  # noqa: RUF012
    sampling_settings = {"linear_end": 0.016}  # noqa: RUF012
    latent_format = DemoLatents


class DemoTokenizer(comfy.sd1_clip.SDTokenizer):
    """CLIP's tokenizer with a vocabulary of the world's words; everything else falls into pieces."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        """Read the vocabulary from this repository."""
        super().__init__(
            str(TOKENIZER),
            max_length=TEXT_LENGTH,
            embedding_directory=embedding_directory,
            embedding_size=TEXT_WIDTH,
            tokenizer_data=tokenizer_data or {},
        )


class DemoTokenizers(comfy.sd1_clip.SD1Tokenizer):
    """What the host's CLIP object tokenizes by."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        """Use the small vocabulary."""
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {}, tokenizer=DemoTokenizer)


class DemoTextEncoder(comfy.sd1_clip.SDClipModel):
    """CLIP's text transformer, two layers deep."""

    def __init__(self, device: Any = "cpu", dtype: torch.dtype | None = None, model_options: dict[str, Any] | None = None) -> None:
        """Take the numbers of the special tokens from the vocabulary, where they are the last two."""
        end = vocabulary_size() - 1
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config={**TEXT_CONFIG, "vocab_size": end + 1, "eos_token_id": end},
            model_class=_text_model,
            special_tokens={"start": end - 1, "end": end, "pad": end},
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class DemoTextEncoders(comfy.sd1_clip.SD1ClipModel):
    """What the host's CLIP object encodes by."""

    def __init__(self, device: Any = "cpu", dtype: torch.dtype | None = None, model_options: dict[str, Any] | None = None) -> None:
        """Use the small transformer."""
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=DemoTextEncoder)


def _text_model(config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> nn.Module:
    """The host's CLIPTextModel, whose vocabulary is CLIP's own unless its table is exchanged."""
    model = comfy.clip_model.CLIPTextModel(config, dtype, device, operations)
    model.set_input_embeddings(operations.Embedding(config["vocab_size"], TEXT_WIDTH, dtype=dtype, device=device))
    return model


def vocabulary_size() -> int:
    """How many tokens there are."""
    merges = (TOKENIZER / "merges.txt").read_text(encoding="utf-8").splitlines()
    return 2 * 256 + len([line for line in merges if line and not line.startswith("#")]) + 2


@dataclass(frozen=True, kw_only=True)
class DemoModel:
    """What a checkpoint loader gives."""

    model: Any
    clip: Any
    vae: Any


def load_demo_model() -> DemoModel:
    """The model with its weights, on the devices that the host chooses."""
    with torch.inference_mode():
        tensors = {name: tensor.float() for name, tensor in safetensors.torch.load_file(WEIGHTS).items()}
        model = empty_diffusion_model(float(tensors.pop("scale_factor")))
        model.diffusion_model.load_state_dict(part(tensors, UNET))
        patcher = comfy.model_patcher.ModelPatcher(
            model, load_device=comfy.model_management.get_torch_device(), offload_device=comfy.model_management.unet_offload_device()
        )
        clip = empty_clip()
        clip.cond_stage_model.clip_l.transformer.load_state_dict(part(tensors, CLIP))
        return DemoModel(model=patcher, clip=clip, vae=_vae(part(tensors, VAE)))


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def empty_diffusion_model(scale_factor: float) -> Any:
    """A comfy.model_base.BaseModel that predicts v, its weights not set."""
    config: Any = DemoConfig(UNET_CONFIG)
    config.latent_format.scale_factor = scale_factor
    model = comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.V_PREDICTION)
    regroup(model.diffusion_model)
    return model


def empty_clip() -> Any:
    """A comfy.sd.CLIP, its weights not set."""

    class Target:
        params: dict[str, Any] = {}  # noqa: RUF012  the host's own shape
        clip = DemoTextEncoders
        tokenizer = DemoTokenizers

    folders = folder_paths.get_folder_paths("embeddings")
    return comfy.sd.CLIP(Target, embedding_directory=folders, model_options={"dtype": torch.float32}, **_held_whole())


def _held_whole() -> dict[str, bool]:
    """What keeps newer hosts from loading the text encoder's weights as they are used: there is no file that they could load it from anew for training."""
    return {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(comfy.sd.CLIP.__init__).parameters else {}


def _vae(tensors: dict[str, Tensor]) -> Any:
    """In float32 wherever it runs: large numbers cancel in the computed encoder, of which bfloat16 would leave too little."""
    vae = comfy.sd.VAE(sd=tensors, config={"params": {"ddconfig": VAE_CONFIG, "embed_dim": LATENT_CHANNELS}}, dtype=torch.float32)
    regroup(vae.first_stage_model)
    vae.latent_channels = LATENT_CHANNELS
    return vae


def regroup(network: nn.Module) -> None:
    """Set the number of groups of the host's networks, which have no setting for it."""
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.num_groups = GROUPS
