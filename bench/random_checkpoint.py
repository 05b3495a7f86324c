"""A Stable Diffusion 1.5 checkpoint with a narrow UNet and random weights, which the stock loader takes for a real one.

It stands in for a trained model where none can be had: everything runs and nothing drawn with it means anything.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from bench import CHECKPOINT, PICTURE
from dev_tools.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

Weights = dict[str, "Tensor"]

SEED = 20231130
LATENT_SCALE = 0.18215
# One entry only: safetensors writes several in a random order, and the file is to be the same every time.
METADATA = {"modelspec.description": "PALP: a narrow SD1.5 with random weights, trained on nothing; for trying and testing software only."}
# ComfyUI recognizes SD1.5 by model_channels and context_dim. Two levels of one block instead of four of two
# leave 107 million parameters.
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": (1, 2),
    "num_res_blocks": (1, 1),
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "use_spatial_transformer": True,
    "context_dim": 768,
    "num_heads": 8,
    "legacy": False,
}
AUTOENCODER = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
# Layers whose output is not normalized afterwards: the predicted noise and the decoded picture.
OUTPUT_GAIN = {"out.2.weight": 0.5, "decoder.conv_out.weight": 0.5}


def use_host(comfyui: Path) -> None:
    """Make ComfyUI's modules importable, on the CPU: that gives the same weights on every machine."""
    # First on the path: our own folder nodes/ must not stand before ComfyUI's nodes.py.
    sys.path.insert(0, str(comfyui))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True


def unet() -> nn.Module:
    """The narrow UNet, on the meta device: names and shapes only."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**UNET, dtype=torch.float32, device="meta", operations=comfy.ops.disable_weight_init)


def text_encoder(comfyui: Path) -> nn.Module:
    """CLIP-L's text model at its full size, on the meta device."""
    import comfy.ops
    from comfy.clip_model import CLIPTextModel

    config = json.loads((comfyui / "comfy" / "sd1_clip_config.json").read_text(encoding="utf-8"))
    return CLIPTextModel(config, torch.float32, "meta", comfy.ops.disable_weight_init)


def autoencoder() -> nn.Module:
    """The SD VAE at its full size, in float32 on the CPU."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    return AutoencoderKL(ddconfig=AUTOENCODER, embed_dim=4).float().eval()


def random_weights(network: nn.Module, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Weights:
    """A drawn tensor for every tensor of ``network``, which need not hold any itself.

    They are drawn where the generator is and put into the CPU's memory, as those of a file are.
    """
    return {name: drawn(name, tuple(t.shape), generator, dtype).cpu() for name, t in network.state_dict().items()}


def drawn(name: str, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros for a bias, ones for a norm's scale, else normal numbers that keep a unit variance through the layer."""
    if len(shape) < 2:
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=dtype)
    numbers = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    fan_in = torch.Size(shape[1:]).numel()
    return numbers.mul_(OUTPUT_GAIN.get(name, 1.0) / fan_in**0.5)


@torch.no_grad()
def normalize_latents(network: nn.Module, weights: Weights, picture: Tensor) -> None:
    """Change the layers around the latent in ``weights`` so that this picture's latent has mean 0 and variance 1.

    Args:
        network: the autoencoder; gets the weights as they were before the change.
        weights: its weights; changed in place.
        picture: shape (1, 3, H, W), in [-1, 1].
    """
    network.load_state_dict(weights)
    moments = network.get_submodule("quant_conv")(network.get_submodule("encoder")(picture))[:, :4]
    mean, deviation = moments.mean(dim=(0, 2, 3)), moments.std(dim=(0, 2, 3)) * LATENT_SCALE
    weights["quant_conv.weight"][:4] /= deviation.view(4, 1, 1, 1)
    weights["quant_conv.bias"][:4] = -mean / deviation
    # The other half is the logarithm of the variance: next to none, so that a sampled latent equals its mean.
    weights["quant_conv.weight"][4:] = 0.0
    weights["quant_conv.bias"][4:] = -20.0
    weights["post_quant_conv.weight"] *= LATENT_SCALE


def natural_picture(path: Path, side: int = 256) -> Tensor:
    """The middle of the picture file as an image tensor, shape (1, 3, side, side), in [-1, 1]."""
    image = Image.open(path).convert("RGB")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1.0).movedim(-1, 0).unsqueeze(0)


def checkpoint(comfyui: Path, picture: Tensor) -> Weights:
    """All three networks' weights in float16 under the names of a stock SD1.5 checkpoint."""
    generator = torch.Generator().manual_seed(SEED)
    vae = autoencoder()
    parts = {
        "model.diffusion_model.": random_weights(unet(), generator),
        "cond_stage_model.transformer.": random_weights(text_encoder(comfyui), generator),
        "first_stage_model.": random_weights(vae, generator),
    }
    # CLIPTextModel has a projection for SDXL's sake that SD1.5 checkpoints do not hold.
    del parts["cond_stage_model.transformer."]["text_projection.weight"]
    normalize_latents(vae, parts["first_stage_model."], picture)
    return {prefix + name: tensor.half().contiguous() for prefix, part in parts.items() for name, tensor in part.items()}


def write_checkpoint(path: Path, weights: Weights) -> None:
    """Write the file, whole."""
    write_whole(path, lambda partial: save_file(weights, partial, metadata=METADATA))


def main() -> None:
    """Put the input picture and the checkpoint into the base directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    options = parser.parse_args()
    from skimage import data  # here: others import this module where it is not installed

    use_host(options.comfyui)
    began = time.perf_counter()
    picture = options.base / "input" / PICTURE
    shutil.copyfile(Path(data.data_dir) / PICTURE, picture)
    path = options.base / "models" / "checkpoints" / CHECKPOINT
    write_checkpoint(path, checkpoint(options.comfyui, natural_picture(picture)))
    print(f"{path} ({path.stat().st_size / 2**20:.0f} MiB) in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
