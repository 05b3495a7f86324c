"""The loops that are compared: ours, the host's own trainer, and diffusers with peft, on one architecture, rank, batch and precision."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

PACK = "palp_pack"
RANK = 32
LEARNING_RATE = 5e-5
STEPS = 100_000  # more than anyone waits for: the bench stops asking


@dataclass(frozen=True, kw_only=True)
class Models:
    """What a checkpoint loader gives."""

    model: Any
    clip: Any
    vae: Any


def load_pack(root: Path) -> None:
    """Load the pack from its folder, as the host does."""
    spec = importlib.util.spec_from_file_location(PACK, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec and spec.loader
    sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])


def narrow_sd15(checkpoint: Path) -> Models:
    """The checkpoint of random weights, as the stock loader loads it."""
    import comfy.sd

    with torch.inference_mode():
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=True, output_clip=True)
    return Models(model=model, clip=clip, vae=vae)


def tiny(name: str) -> Models:
    """One of ``tests/tiny_families.py``."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
    made = import_module("tiny_families").FAMILIES[name]()
    return Models(model=made.model, clip=made.clip, vae=made.vae)


def ours(models: Models, side: int, **settings: Any) -> Callable[[], object]:
    """Our training run on latents of that side, as ``our_job`` makes it."""
    job = our_job(models, side, **settings)
    return lambda: import_module(f"{PACK}.nodes.host.training").run(job)


def our_job(models: Models, side: int, *, method: str, subjects: int = 1, **train: Any) -> Any:
    """What the training node makes of its inputs."""
    part = lambda name: import_module(f"{PACK}.{name}")  # noqa: E731
    config, prompts, pictures, training = (part(name) for name in ("palp_train.config", "palp_train.prompts", "nodes.host.pictures", "nodes.host.training"))
    words = [f"[V{number}]" for number in range(subjects)]
    taught = [prompts.Subject(placeholder=word, personalization_prompt=f"a photo of {word}") for word in words]
    pixels = side * int(models.vae.spacial_compression_encode())
    image = torch.rand(pixels, pixels, 3, generator=torch.Generator().manual_seed(0))
    return training.Job(
        model=models.model,
        clip=models.clip,
        vae=models.vae,
        subjects=[pictures.SubjectPictures(subject=subject, images=(image,)) for subject in taught],
        prompts=prompts.prompt_set(taught, f"a sketch of {' and '.join(words)} in Paris"),
        train=config.TrainConfig(
            **{"steps": STEPS, "rank": RANK, "learning_rate": LEARNING_RATE, "resolution": pixels, "gradient_checkpointing": "off"} | train
        ),
        loss=config.LossConfig(method=method),
    )


def hosts(models: Models, latent: torch.Tensor, *, checkpointing: bool) -> Callable[[], object]:
    """The host's own TrainLoraNode on two such latents: it fails on a single one."""
    import comfy_extras.nodes_train
    from comfy_api.latest import io

    node = comfy_extras.nodes_train.TrainLoraNode
    with torch.inference_mode():
        conditioning = models.clip.encode_from_tokens_scheduled(models.clip.tokenize("a photo of a cat"))
    wanted = {
        "model": models.model,
        "latents": None,
        "positive": conditioning,
        "steps": STEPS,
        "rank": RANK,
        "learning_rate": LEARNING_RATE,
        "optimizer": "Adam",
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "gradient_checkpointing": checkpointing,
    }
    # Versions differ in their inputs: what we do not set keeps its default.
    inputs: list[Any] = node.define_schema().inputs
    given = {i.id: [wanted[i.id] if i.id in wanted else getattr(i, "default", None)] for i in inputs if isinstance(i, io.Input)}
    given["latents"] = [{"samples": latent}, {"samples": latent.clone()}]
    return lambda: node.execute(**given)


def diffusers_plain(models: Models, side: int) -> Callable[[], object]:
    """The step of diffusers' DreamBooth-LoRA script on its own UNet of the same shape and weights, the text encoded beforehand."""
    import comfy.utils
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from peft import LoraConfig

    network = models.model.model.diffusion_model
    channels = models.model.model.model_config.unet_config["model_channels"]
    blocks: dict[str, Any] = dict(down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2, layers_per_block=1)
    unet = UNet2DConditionModel(sample_size=side, block_out_channels=(channels, 2 * channels), cross_attention_dim=768, attention_head_dim=8, **blocks)
    names, weights = comfy.utils.unet_to_diffusers(models.model.model.model_config.unet_config), network.state_dict()
    with torch.inference_mode(False):
        unet.load_state_dict({key: weights[names[key]].clone().float() for key in unet.state_dict()})
    unet.requires_grad_(False).to(models.model.load_device)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]))

    def loop() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            device = models.model.load_device
            latent, text = torch.randn(1, 4, side, side, device=device), torch.randn(1, 77, 768, device=device)
            trained = [p for p in unet.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
            signal = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=device) ** 2, dim=0)
            for _ in range(STEPS):
                time, noise = torch.randint(0, 1000, (1,), device=device), torch.randn_like(latent)
                noised = signal[time].sqrt() * latent + (1 - signal[time]).sqrt() * noise
                loss = torch.nn.functional.mse_loss(unet(noised, time, text).sample.float(), noise)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()

    return loop


def forward(models: Models, side: int) -> Callable[[], None]:
    """One no-gradient forward pass of the network at batch 1, the unit of the method's floor."""
    import comfy.model_management

    part = lambda name: import_module(f"{PACK}.{name}")  # noqa: E731
    device = models.model.load_device
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([models.model])
        denoiser = part("nodes.host.denoiser").HostDenoiser(models.model)
        conditioning = part("nodes.host.text_encoder").FixedTextEncoder(models.clip, ["a photo of a cat"])("a photo of a cat")
        query = part("palp_train.denoiser").Query(conditioning=conditioning, personalized=False)
        latent, sigma = torch.randn(1, *latent_shape(models, side), device=device), denoiser.sigmas[-1:]

    def once() -> None:
        with torch.inference_mode():
            denoiser(latent, sigma, [query])
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    return once


def latent_shape(models: Models, side: int) -> tuple[int, ...]:
    """(C, H, W) of a latent of that side."""
    return models.model.model.latent_format.latent_channels, side, side
