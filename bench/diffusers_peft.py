"""The step of diffusers' DreamBooth-LoRA script, on diffusers' own UNet with the weights of the host's model."""

from collections.abc import Callable, Mapping
from typing import Any

import comfy.utils
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor

from bench.contenders import LEARNING_RATE, RANK, STEPS, Models

TOKENS = 77
ADDED_TOKENS = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}


def plain(models: Models, side: int, batch_size: int = 1) -> Callable[[], None]:
    """The loop; its text is encoded beforehand."""
    unet = same_unet(models)
    return lambda: _train(unet, side, batch_size, models.model.load_device)


def same_unet(models: Models) -> UNet2DConditionModel:
    """Diffusers' UNet with the host's weights, in the precision that the host computes in, and a LoRA in float32."""
    host = models.model.model
    names, weights = comfy.utils.unet_to_diffusers(host.model_config.unet_config), host.diffusion_model.state_dict()
    dtype = host.manual_cast_dtype or host.get_dtype()
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(host.model_config.unet_config))
    with torch.inference_mode(False):
        own = {key: weights[names[key]].clone().to(dtype) for key in unet.state_dict()}
        unet.load_state_dict(own, assign=True)
        unet.requires_grad_(False).to(models.model.load_device)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets))
        for parameter in _trained(unet):
            parameter.data = parameter.data.float()
    return unet


def unet_config(host: Mapping[str, Any]) -> dict[str, Any]:
    """Diffusers' configuration of the host's UNet, of SD 1.x's or SDXL's kind."""
    widths = [host["model_channels"] * times for times in host["channel_mult"]]
    starts = [sum(host["num_res_blocks"][:level]) for level in range(len(widths))]
    depths = [host["transformer_depth"][start] for start in starts]
    kinds = ["CrossAttn" if depth else "" for depth in depths]
    per_head = host.get("num_head_channels", -1)
    added = host.get("adm_in_channels")
    return {
        "block_out_channels": widths,
        "layers_per_block": list(host["num_res_blocks"]),
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "cross_attention_dim": host["context_dim"],
        "attention_head_dim": [width // per_head if per_head > 0 else host["num_heads"] for width in widths],
        "use_linear_projection": host.get("use_linear_in_transformer", False),
        **({**ADDED_TOKENS, "projection_class_embeddings_input_dim": added} if added else {}),
    }


def _trained(unet: UNet2DConditionModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def _train(unet: UNet2DConditionModel, side: int, batch_size: int, device: torch.device) -> None:
    trained = _trained(unet)
    dtype = next(parameter.dtype for parameter in unet.parameters() if not parameter.requires_grad)
    with torch.inference_mode(False), torch.enable_grad():
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        latent = torch.randn(batch_size, 4, side, side, device=device)
        conditioning = _conditioning(unet, batch_size, dtype, device)
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=device) ** 2
        signal = torch.cumprod(1 - beta, dim=0)
        for _ in range(STEPS):
            time, noise = torch.randint(0, 1000, (batch_size,), device=device), torch.randn_like(latent)
            scale = signal[time].view(-1, 1, 1, 1)
            noised = scale.sqrt() * latent + (1 - scale).sqrt() * noise
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                predicted = unet(noised.to(dtype), time, **conditioning).sample
            loss = torch.nn.functional.mse_loss(predicted.float(), noise)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


def _conditioning(
    unet: UNet2DConditionModel,
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """An encoded prompt as the UNet takes it; SDXL's takes pooled text and sizes too."""
    config: Any = unet.config

    def drawn(*shape: int) -> Tensor:
        return torch.randn(batch_size, *shape, device=device, dtype=dtype)

    conditioning: dict[str, Any] = {"encoder_hidden_states": drawn(TOKENS, config.cross_attention_dim)}
    if config.addition_embed_type:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        conditioning["added_cond_kwargs"] = {"text_embeds": drawn(pooled), "time_ids": drawn(6)}
    return conditioning
