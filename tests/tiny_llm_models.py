"""Tiny models of the host's families that read their prompts with language models, made as in ``tiny_models``.

Import this only after the ``host`` fixture: it needs the host's modules.
"""

import io
import string
from dataclasses import fields
from typing import Any

import comfy.ldm.hunyuan_video.model
import comfy.ldm.models.autoencoder
import comfy.ldm.wan.vae
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.hidream
import sentencepiece
import torch
from comfy.model_management import get_torch_device
from tiny_models import WIDTH_G, WIDTH_L, Models, _patcher, randomize, tiny_vae

TEXT = 16  # width of the text encoders; their vocabularies are large
HIDDEN, HEADS = 64, 2  # width of the denoisers
ROPE = [8, 12, 12]  # a head's 32 channels, over time, height and width

CLIP = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
BERT = {"hidden_size": TEXT, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
T5 = {"d_model": TEXT, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 64}
LLAMA = {"hidden_size": TEXT, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}


@torch.inference_mode()
def hunyuan_dit(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """Hunyuan-DiT 1.2's classes: BERT and mT5, blocks with and without a long skip."""
    depth = 4  # the fewest that have a skip
    net = {"depth": depth, "hidden_size": HIDDEN, "num_heads": HEADS, "text_states_dim": TEXT, "text_states_dim_t5": TEXT, "dtype": dtype}
    config = comfy.supported_models.HunyuanDiT(net)
    pieces, vocabulary = _sentencepiece()
    options = {"hydit_clip_model_config": BERT, "mt5xl_model_config": {**T5, "vocab_size": vocabulary}}
    clip = _clip(config.clip_target(), options, seed, {"mt5xl.spiece_model": pieces})
    return Models(model=_model(config, seed), clip=clip, vae=tiny_vae(4, seed))


@torch.inference_mode()
def hunyuan_image(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """HunyuanImage 2.1's classes: Qwen2.5-VL, and ByT5 for text in quotes, double and single blocks."""
    net = {
        "in_channels": 64,
        "out_channels": 64,
        "vec_in_dim": None,
        "context_in_dim": TEXT,
        "hidden_size": HIDDEN,
        "mlp_ratio": 4.0,
        "num_heads": HEADS,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [16, 16],
        "theta": 256,
        "patch_size": [1, 1],
        "qkv_bias": True,
        "guidance_embed": False,
        "byt5": True,
        "meanflow": False,
        "meanflow_sum": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
    }
    known = {field.name for field in fields(comfy.ldm.hunyuan_video.model.HunyuanVideoParams)}  # meanflow_sum came later
    config = comfy.supported_models.HunyuanImage21({name: value for name, value in net.items() if name in known} | {"dtype": dtype})
    byt5 = {**T5, "d_model": 1472}  # ByT5's width is fixed in the denoiser; the host gives this encoder no name
    clip = _qwen_vl_clip(config.clip_target(), {"_model_config": byt5}, seed)
    return Models(model=_model(config, seed), clip=clip, vae=_deep_vae(seed))


@torch.inference_mode()
def lumina2(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """Lumina Image 2.0's classes: Gemma 2, grouped queries."""
    config = comfy.supported_models.Lumina2(_next_dit(dim=HIDDEN, n_heads=HEADS, n_kv_heads=1, rope_theta=10000.0, ffn_dim_multiplier=4.0, dtype=dtype))
    pieces, vocabulary = _sentencepiece(normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False)
    options = {"gemma2_2b_model_config": {**LLAMA, "vocab_size": vocabulary}}
    clip = _clip(config.clip_target(), options, seed, {"spiece_model": pieces})
    return Models(model=_model(config, seed), clip=clip, vae=tiny_vae(16, seed))


@torch.inference_mode()
def z_image(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """Z-Image's classes: Lumina's network with padding tokens, Qwen3."""
    width = 256  # its modulation is 256 wide, and no wider than the network
    special = {"rope_theta": 256.0, "ffn_dim_multiplier": 1.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32}
    config = comfy.supported_models.ZImage(_next_dit(dim=width, n_heads=8, n_kv_heads=8, **special, dtype=dtype))
    clip = _clip(config.clip_target(), {"qwen3_4b_model_config": LLAMA}, seed)
    return Models(model=_model(config, seed), clip=clip, vae=tiny_vae(16, seed))


@torch.inference_mode()
def qwen_image(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """Qwen-Image's classes: Qwen2.5-VL, latents with a time axis."""
    net = {"num_layers": 2, "attention_head_dim": HIDDEN // HEADS, "num_attention_heads": HEADS, "axes_dims_rope": ROPE, "joint_attention_dim": TEXT}
    config = comfy.supported_models.QwenImage({**net, "in_channels": 64, "dtype": dtype})
    return Models(model=_model(config, seed), clip=_qwen_vl_clip(config.clip_target(), {}, seed), vae=_wan_vae(seed))


@torch.inference_mode()
def hidream(dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """HiDream-I1's classes: two CLIPs, T5 and every layer of Llama 3.1, a mixture of experts."""
    net = {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": HIDDEN // HEADS,
        "num_attention_heads": HEADS,
        "caption_channels": [TEXT, TEXT],
        "text_emb_dim": WIDTH_L + WIDTH_G,
        "axes_dims_rope": [16, 8, 8],
        "max_resolution": [128, 128],
        "llama_layers": [1, 2, 3, 3],  # one a block, the last repeated
        "dtype": dtype,
    }
    options = {
        "clip_l_model_config": {**CLIP, "hidden_size": WIDTH_L},
        "clip_g_model_config": {**CLIP, "hidden_size": WIDTH_G},
        "t5xxl_model_config": T5,
        "llama_model_config": LLAMA,
    }
    target = comfy.supported_models_base.ClipTarget(comfy.text_encoders.hidream.HiDreamTokenizer, comfy.text_encoders.hidream.hidream_clip())
    return Models(model=_model(comfy.supported_models.HiDream(net), seed), clip=_clip(target, options, seed), vae=tiny_vae(16, seed))


def _next_dit(**special: Any) -> dict[str, Any]:
    common = dict(
        image_model="lumina2",
        patch_size=2,
        in_channels=16,
        cap_feat_dim=TEXT,
        n_layers=2,
        n_refiner_layers=1,
        qk_norm=True,
        axes_dims=ROPE,
        axes_lens=[300, 512, 512],
    )
    return common | special


def _model(config: Any, seed: int) -> Any:
    patcher = _patcher(config.get_model({}, device=get_torch_device()), seed)
    _norms_about_one(patcher.model.diffusion_model)
    return patcher


def _clip(target: Any, options: dict[str, Any], seed: int, tokenizer_data: dict[str, Any] | None = None) -> Any:
    clip = comfy.sd.CLIP(target, tokenizer_data=tokenizer_data or {}, model_options={**options, "dtype": torch.float32})
    randomize(clip.cond_stage_model, seed + 1)
    return clip


def _qwen_vl_clip(target: Any, options: dict[str, Any], seed: int) -> Any:
    """Qwen2.5-VL without its vision tower: no option of the host makes those 670 million weights fewer."""
    meta = {"dtype": torch.float32, "initial_device": torch.device("meta"), "qwen25_7b_model_config": LLAMA}
    clip = comfy.sd.CLIP(target, model_options={**options, **meta})
    del clip.cond_stage_model.qwen25_7b.transformer.visual
    randomize(clip.cond_stage_model.to_empty(device="cpu"), seed + 1)
    return clip


def _sentencepiece(**rules: Any) -> tuple[bytes, int]:
    """A tokenizer of single characters and its vocabulary's size: the host finds these families' tokenizers in the checkpoint."""
    file = io.BytesIO()
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}  # Gemma's
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{string.digits} {string.ascii_letters} {string.punctuation}"]),
        model_writer=file,
        model_type="char",
        character_coverage=1.0,
        user_defined_symbols=["\n"],
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
        **rules,
    )
    return file.getvalue(), sentencepiece.SentencePieceProcessor(model_proto=file.getvalue()).get_piece_size()


def _wan_vae(seed: int) -> Any:
    """The class that Qwen-Image shares with Wan 2.1: the host reads its width from the weights."""
    vae = comfy.ldm.wan.vae.WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
    return comfy.sd.VAE(sd=_weights(vae, seed))


def _deep_vae(seed: int) -> Any:
    """An AutoencoderKL of HunyuanImage's latents, 64 channels and 32 pixels: the host fixes the widths of that family's own class."""
    layers = {"z_channels": 64, "ch": 32, "ch_mult": [1, 1, 1, 1, 1, 1], "num_res_blocks": 1}
    common = {"double_z": True, "resolution": 256, "in_channels": 3, "out_ch": 3, "attn_resolutions": [], "dropout": 0.0}
    params = {"embed_dim": 64, "ddconfig": common | layers}
    vae = comfy.sd.VAE(sd=_weights(comfy.ldm.models.autoencoder.AutoencoderKL(**params), seed), config={"params": params})
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = 64, 32, 32
    return vae


def _weights(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    randomize(module, seed + 2)
    _norms_about_one(module)
    return module.state_dict()


def _norms_about_one(module: torch.nn.Module) -> None:
    """Scales about one under other names than ``weight`` too, the only one that ``randomize`` knows."""
    for name, parameter in module.named_parameters():
        if name.endswith(("scale", "gamma")):
            parameter.data.mul_(1 if parameter.ndim == 1 else 0.1).add_(1)
