"""Every family at its real size, without weights: networks on the "meta" device, whose training steps are traced and never run.

Import this only after the host and the pack: it needs their modules. Sizes are the published models', as the host detects them.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any

import comfy.ldm.chroma.model
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import comfy.model_patcher
import comfy.supported_models
import torch

from bench.contenders import PACK

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class FullSize:
    """A published model: the host's configuration class, its network's configuration, and what goes into it."""

    host_class: str
    network: Mapping[str, Any]
    latent: Shape
    """Of the picture that it is made for."""
    text: Shape
    """Of its text encoder's output, for a prompt of usual length."""
    more: Mapping[str, Shape | None] = field(default_factory=dict)
    """Of what else the encoder gives, by the host's name; None: it gives nothing there."""

    def conditioning(self) -> dict[str, torch.Tensor | None]:
        """Such an output."""
        return {name: shape and torch.ones(shape) for name, shape in {"cross_attn": self.text, **self.more}.items()}

    def model(self) -> Any:
        """The host's BaseModel in bfloat16, without weights."""
        configuration = getattr(comfy.supported_models, self.host_class)({**self.network, "dtype": torch.bfloat16})
        return configuration.get_model({}, device=torch.device("meta"))


def _unet(**special: Any) -> dict[str, Any]:
    return dict(image_size=32, in_channels=4, out_channels=4, model_channels=320, use_spatial_transformer=True, legacy=False) | special


def _known(params: type, config: dict[str, Any]) -> dict[str, Any]:
    """What this version of the host knows of a configuration."""
    names = {known.name for known in fields(params)} | {"image_model"}
    return {name: value for name, value in config.items() if name in names}


_SHALLOW = dict(
    num_res_blocks=[2] * 4,
    channel_mult=[1, 2, 4, 4],
    transformer_depth=[1] * 6 + [0] * 2,
    transformer_depth_middle=1,
    transformer_depth_output=[1] * 9 + [0] * 3,
    adm_in_channels=None,
)
_DEEP = dict(num_res_blocks=[2] * 3, channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_output=[0] * 3 + [2] * 3 + [10] * 3)
_SD3 = dict(
    in_channels=16,
    input_size=None,
    adm_in_channels=2048,
    pos_embed_scaling_factor=None,
)
_STREAMS = dict(in_channels=16, out_channels=16, context_in_dim=4096, hidden_size=3072, num_heads=24, mlp_ratio=4.0, depth=19, depth_single_blocks=38)
_STREAMS |= dict(axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[])
_NEXT_DIT = dict(image_model="lumina2", patch_size=2, in_channels=16, n_refiner_layers=2, qk_norm=True)


def _sd3(depth: int, positions: int, **special: Any) -> dict[str, Any]:
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}}
    return {**_SD3, "depth": depth, "num_patches": positions**2, "pos_embed_max_size": positions, "context_embedder_config": embedder, **special}


def _full_sizes() -> dict[str, FullSize]:
    chroma = dict(image_model="chroma", in_channels=64, out_channels=64, vec_in_dim=None, in_dim=64, out_dim=3072, hidden_dim=5120, n_layers=5)
    hunyuan = dict(image_model="hunyuan_video", in_channels=64, out_channels=64, vec_in_dim=None, context_in_dim=3584, hidden_size=3584, num_heads=28)
    hunyuan |= dict(depth=20, depth_single_blocks=40, axes_dim=[64, 64], theta=256, patch_size=[1, 1], guidance_embed=False, byt5=True)
    hunyuan |= dict(meanflow=False, meanflow_sum=False, use_cond_type_embedding=False, vision_in_dim=None)
    lumina = dict(dim=2304, n_layers=26, n_heads=24, n_kv_heads=8, axes_dims=[32] * 3, axes_lens=[300, 512, 512], rope_theta=10000.0)
    z_image = dict(dim=3840, n_layers=30, n_heads=30, n_kv_heads=30, axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], rope_theta=256.0)
    z_image |= dict(ffn_dim_multiplier=8 / 3, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32, cap_feat_dim=2560)
    qwen = dict(image_model="qwen_image", in_channels=64, num_layers=60, attention_head_dim=128, num_attention_heads=24, axes_dims_rope=[16, 56, 56])
    hidream = dict(image_model="hidream", patch_size=2, in_channels=16, out_channels=16, num_layers=16, num_single_layers=32, attention_head_dim=128)
    hidream |= dict(num_attention_heads=20, caption_channels=[4096, 4096], text_emb_dim=2048, axes_dims_rope=[64, 32, 32], max_resolution=[128, 128])
    hidream |= dict(num_routed_experts=4, num_activated_experts=2, llama_layers=[*range(32), *[31] * 16])
    sd15 = _unet(**_SHALLOW, use_linear_in_transformer=False, context_dim=768, num_heads=8)
    sd2 = _unet(**_SHALLOW, use_linear_in_transformer=True, context_dim=1024, num_head_channels=64)
    sdxl = _unet(**_DEEP, transformer_depth_middle=10, use_linear_in_transformer=True, context_dim=2048, num_head_channels=64)
    sdxl |= dict(num_classes="sequential", adm_in_channels=2816)
    pixart = dict(image_model="pixart_alpha", micro_condition=True, pe_interpolation=2, depth=28, num_heads=16, hidden_size=1152, caption_channels=4096)
    aura = dict(n_layers=36, n_double_layers=4, n_heads=12, dim=3072, cond_seq_dim=2048, max_seq=64 * 64)
    hydit = dict(image_model="hydit", depth=40, hidden_size=1408, num_heads=16, mlp_ratio=4.3637)
    streams, many = comfy.ldm.flux.model.FluxParams, comfy.ldm.hunyuan_video.model.HunyuanVideoParams
    flux = _known(streams, {**_STREAMS, "image_model": "flux", "vec_in_dim": 768})
    chroma = _known(comfy.ldm.chroma.model.ChromaParams, {**_STREAMS, **chroma})
    hunyuan = _known(many, {**_STREAMS, **hunyuan})
    sd35 = _sd3(24, 384, qk_norm="rms", x_block_self_attn_layers=list(range(13)))
    t5, pooled = (1, 256, 4096), {"pooled_output": (1, 2048)}
    return {
        "SD 1.5, 512": FullSize(host_class="SD15", network=sd15, latent=(4, 64, 64), text=(1, 77, 768)),
        "SD 2.1, 768": FullSize(host_class="SD20", network=sd2, latent=(4, 96, 96), text=(1, 77, 1024)),
        "SDXL, 1024": FullSize(host_class="SDXL", network=sdxl, latent=(4, 128, 128), text=(1, 77, 2048), more={"pooled_output": (1, 1280)}),
        "SD 3 medium, 1024": FullSize(host_class="SD3", network=_sd3(24, 192), latent=(16, 128, 128), text=(1, 154, 4096), more=pooled),
        "SD 3.5 medium, 1024": FullSize(host_class="SD3", network=sd35, latent=(16, 128, 128), text=(1, 154, 4096), more=pooled),
        "SD 3.5 large, 1024": FullSize(host_class="SD3", network=_sd3(38, 192, qk_norm="rms"), latent=(16, 128, 128), text=(1, 154, 4096), more=pooled),
        "Flux dev, 1024": FullSize(host_class="Flux", network=flux, latent=(16, 128, 128), text=t5, more={"pooled_output": (1, 768)}),
        "Chroma, 1024": FullSize(host_class="Chroma", network=chroma, latent=(16, 128, 128), text=t5, more={"pooled_output": None}),
        "AuraFlow, 1024": FullSize(host_class="AuraFlow", network=aura, latent=(4, 128, 128), text=(1, 256, 2048)),
        "PixArt alpha, 1024": FullSize(host_class="PixArtAlpha", network=pixart, latent=(4, 128, 128), text=(1, 120, 4096)),
        "HunyuanDiT 1.2, 1024": FullSize(
            host_class="HunyuanDiT",
            network=hydit,
            latent=(4, 128, 128),
            text=(1, 77, 1024),
            more={"conditioning_mt5xl": (1, 256, 2048), "attention_mask": (1, 77), "attention_mask_mt5xl": (1, 256)},
        ),
        "HunyuanImage 2.1, 2048": FullSize(host_class="HunyuanImage21", network=hunyuan, latent=(64, 64, 64), text=(1, 64, 3584)),
        "Lumina 2, 1024": FullSize(
            host_class="Lumina2", network={**_NEXT_DIT, **lumina, "ffn_dim_multiplier": 4.0, "cap_feat_dim": 2304}, latent=(16, 128, 128), text=(1, 96, 2304)
        ),
        "Z-Image, 1024": FullSize(host_class="ZImage", network={**_NEXT_DIT, **z_image}, latent=(16, 128, 128), text=(1, 96, 2560)),
        "Qwen-Image, 1024": FullSize(host_class="QwenImage", network={**qwen, "joint_attention_dim": 3584}, latent=(16, 1, 128, 128), text=(1, 64, 3584)),
        "HiDream I1, 1024": FullSize(
            host_class="HiDream", network=hidream, latent=(16, 128, 128), text=(1, 128, 4096), more={**pooled, "conditioning_llama3": (1, 32, 128, 4096)}
        ),
    }


FULL_SIZES = _full_sizes()


@contextmanager
def step_memory(size: FullSize, method: str, device: str | None = None, **train: Any) -> Generator[Any, None, None]:
    """Within: the ``StepMemory`` of such a model in bfloat16, its LoRA of rank 32 in place; prompts hold no learned word.

    Args:
        size: the model.
        method: of the alignment.
        device: the type of the device whose memory is foreseen; None: the CPU.
        train: settings.
    """
    part = lambda name: import_module(f"{PACK}.{name}")  # noqa: E731
    families, training, session, config = (part(name) for name in ("nodes.host.families", "nodes.host.training", "nodes.host.session", "palp_train.config"))
    trainer, prompts = part("palp_train.trainer"), part("palp_train.prompts")
    model = size.model()
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
    settings, network = config.TrainConfig(**train), model.diffusion_model
    targets, reader = families.adapted_layers(network, settings.layers), part("nodes.host.weights").HostWeights()
    with (
        session.trainable_networks(),
        part("palp_train.lora").injected_lora(network, targets, settings.rank, torch.Generator(), reader) as lora,
    ):
        denoiser, checkpointed = training.trainable_denoisers(patcher, lora)
        task = trainer.Task(
            denoiser=denoiser,
            checkpointed=checkpointed,
            text_encoder=lambda _prompt: size.conditioning(),
            pictures=[trainer.Picture(latent=torch.zeros(size.latent), prompt="a photo of [V]")],
            prompts=prompts.prompt_set([prompts.Subject()], "a sketch of [V] in Paris"),
        )
        yield part("nodes.host.memory").StepMemory(task, [model], settings, config.LossConfig(method=method), device)


def weight_bytes(size: FullSize) -> int:
    """Of the network in bfloat16."""
    return sum(parameter.nbytes for parameter in size.model().diffusion_model.parameters())


def foreseen() -> dict[str, dict[str, float]]:
    """Bytes of the weights, and of a plain and a PALP step beside them by plan on CUDA, for each model."""
    plan = import_module(f"{PACK}.palp_train.plan").Plan
    plans = {
        "all predictions at once": plan(),
        "one at a time": plan(rows=1),
        "estimate first": plan(estimate_first=True),
        "checkpointing": plan(checkpointing=True),
        "checkpointing, one at a time": plan(checkpointing=True, rows=1),
    }
    found: dict[str, dict[str, float]] = {}
    for name, size in FULL_SIZES.items():
        with step_memory(size, "none", "cuda") as plain, step_memory(size, "palp", "cuda") as palp:
            found[name] = {
                "weights": weight_bytes(size),
                "plain": plain.peak(plan()),
                **{f"PALP, {title}": palp.peak(one) for title, one in plans.items()},
                "plain, checkpointing": plain.peak(plan(checkpointing=True)),
            }
        print(".", end="", flush=True)
    print()
    return found
