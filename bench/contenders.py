"""The loops that are compared, at one rank and batch: ours and the host's own trainer; one more is in ``diffusers_peft``."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bench.pace import wait_for

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


def meter(device: torch.device) -> Any:
    """The pack's own meter of memory."""
    return import_module(f"{PACK}.nodes.host.meter").Meter(device)


class OurRun:
    """Our training run, as the node makes it; while it trains, it tells what it foresaw."""

    def __init__(self, job: Any) -> None:
        """Nothing runs yet."""
        self._job = job
        self.foreseen: int | None = None
        """Bytes of the expected peak; None: not known yet, or it could not be traced."""
        self.plan = ""
        """How the last step was made."""
        self.dtype = ""
        """What the network computes in."""

    def __call__(self) -> None:
        """Train.

        Raises:
            RuntimeError: a word is wanted, but no text encoder learns one here.
        """
        with import_module(f"{PACK}.nodes.host.training").prepared(self._job) as training:
            if self._job.train.word_vectors and not training.words:
                raise RuntimeError("no text encoder of this model learns a word, or not in this memory")
            if training.needed is not None:
                self.foreseen = training.needed + meter(training.session.device).in_use()
            self.dtype = str(training.task.denoiser.dtype).removeprefix("torch.")
            for report in training.steps():
                self.plan = str(report.plan)


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


def hosts(models: Models, side: int, *, checkpointing: bool, batch_size: int = 1) -> Callable[[], object]:
    """The host's own TrainLoraNode on as many latents as a batch takes, two at the least: it fails on a single one.

    On the CPU it computes in float32 as we do there, elsewhere in its own default.
    """
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
        "batch_size": batch_size,
        "gradient_checkpointing": checkpointing,
    }
    if models.model.load_device.type == "cpu":
        wanted |= {"training_dtype": "fp32", "lora_dtype": "fp32"}
    # Versions differ in their inputs: what we do not set keeps its default.
    inputs: list[Any] = node.define_schema().inputs
    given = {i.id: [wanted[i.id] if i.id in wanted else getattr(i, "default", None)] for i in inputs if isinstance(i, io.Input)}
    shape = latent_shape(models, side)
    given["latents"] = [{"samples": torch.randn(1, *shape)} for _ in range(max(2, batch_size))]
    return lambda: node.execute(**given)


def forward(models: Models, side: int, batch_size: int = 1) -> Callable[[], None]:
    """One no-gradient forward pass of the network; at batch 1 the unit of the method's floor."""
    import comfy.model_management

    part = lambda name: import_module(f"{PACK}.{name}")  # noqa: E731
    device = models.model.load_device
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([models.model])
        denoiser = part("nodes.host.denoiser").HostDenoiser(models.model)
        conditioning = part("nodes.host.text_encoder").FixedTextEncoder(models.clip, ["a photo of a cat"])("a photo of a cat")
        query = part("palp_train.denoiser").Query(conditioning=conditioning, personalized=False)
        latent = torch.randn(batch_size, *latent_shape(models, side), device=device)
        sigma = denoiser.sigmas[-1:].expand(batch_size)

    def once() -> None:
        with torch.inference_mode():
            denoiser(latent, sigma, [query] * batch_size)
            wait_for(device)

    return once


def latent_shape(models: Models, side: int) -> tuple[int, ...]:
    """(C, H, W) of a latent of that side, or (C, 1, H, W) where the model's latents have a time axis."""
    latent_format = models.model.model.latent_format
    return latent_format.latent_channels, *[1] * (latent_format.latent_dimensions - 2), side, side
