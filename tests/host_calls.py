"""What the tests of the host's side share: calls of the nodes and of the host, and portraits of what must not change."""

import hashlib
from importlib import import_module

import torch
from torch import nn

SETTINGS = dict(steps=3, learning_rate=1e-2, rank=4, batch_size=1, seed=0, word_vectors=2, word_learning_rate=1e-2, resolution=64)
TARGET = "a sketch of [V] in Paris"


def family(name, **arguments):
    """A tiny model of a family in ``tiny_families.FAMILIES``."""
    import tiny_families

    return tiny_families.FAMILIES[name](**arguments)


def subject(nodes, **changes):
    given = dict(images=[torch.rand(2, 64, 48, 3)], class_word="cat", placeholder="[V]", personalization_prompt="a photo of [V]") | changes
    return nodes.PalpSubject.execute(**{k: v if isinstance(v, list) else [v] for k, v in given.items()})[0]


def train(nodes, models, **changes):
    given = dict(target_prompt=TARGET, name="test", subject=None, **SETTINGS) | changes
    given["subject"] = given["subject"] or subject(nodes)
    with torch.inference_mode():
        return nodes.PalpTrainLora.execute(models.model, models.clip, models.vae, **given)


def denoised(model, conditioning, negative=None, *, steps=1, cfg=1.0):
    """A denoised tensor by the host's own sampler: what a picture depends on."""
    import comfy.sample
    import tiny_families

    with torch.inference_mode():
        noise = torch.randn(1, *tiny_families.latent_shape(model), generator=torch.Generator().manual_seed(5))
        return comfy.sample.sample(model, noise, steps, cfg, "euler", "normal", conditioning, negative or conditioning, torch.zeros_like(noise), seed=5)


def encoded(clip, text):
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def portrait(root: nn.Module) -> dict:
    """Everything that could have changed in a module tree: objects, attributes, hooks, and the bits of every tensor."""
    seen = {}
    for path, module in root.named_modules():
        tables = {name: {k: id(v) for k, v in vars(module)[name].items()} for name in ("_modules", "_parameters", "_buffers")}
        hooks = {name: list(value) for name, value in vars(module).items() if "hooks" in name and value}
        others = {name: value for name, value in vars(module).items() if name not in tables and "hooks" not in name}
        plain = {name: as_it_is(value) for name, value in others.items()}
        flags = {name: (p.requires_grad, p.is_inference()) for name, p in module._parameters.items() if p is not None}
        seen[path] = (id(module), type(module), tables, hooks, plain, flags)
    bits = {name: hashlib.sha256(t.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest() for name, t in root.state_dict().items()}
    return {"modules": seen, "bits": bits}


def as_it_is(value):
    """Tells whether an attribute has changed: its object, or its content where the host makes an equal one anew."""
    if isinstance(value, list):
        return [as_it_is(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else id(value)


def load_on_gpu(patchers) -> None:
    """Load again what the host has unloaded from a GPU: it makes room for training by unloading all else."""
    import comfy.model_management

    movable = [patcher for patcher in patchers if patcher.load_device.type != "cpu"]
    unloaded = [patcher for patcher in movable if patcher.loaded_size() < patcher.model_size()]
    if unloaded:
        with torch.inference_mode():
            comfy.model_management.load_models_gpu(unloaded)


def everything(models) -> list:
    """The portrait of a user's MODEL and CLIP, with their patchers' own state, on a GPU when both are loaded."""
    patchers = [models.model, models.clip.patcher]
    load_on_gpu(patchers)
    attributes = [{k: repr(v) if k != "model" else id(v) for k, v in vars(p).items()} for p in patchers]
    clip = {k: id(v) for k, v in vars(models.clip).items()}
    return [portrait(models.model.model), portrait(models.clip.cond_stage_model), attributes, clip]


def sampled(models) -> torch.Tensor:
    """A picture's latent by the host's own sampler, in two guided steps."""
    return denoised(models.model, encoded(models.clip, "a sketch of a cat"), encoded(models.clip, ""), steps=2, cfg=4.0)


def short_job(pack, models, steps=3):
    part = lambda name: import_module(f"{pack.__name__}.{name}")  # noqa: E731
    prompts, config = part("palp_train.prompts"), part("palp_train.config")
    subject = prompts.Subject()
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1))
    return part("nodes.host.training").Job(
        model=models.model,
        clip=models.clip,
        vae=models.vae,
        subjects=[part("nodes.host.pictures").SubjectPictures(subject=subject, images=(picture,))],
        prompts=prompts.prompt_set([subject], "a sketch of [V] in Paris"),
        train=config.TrainConfig(steps=steps, rank=4, resolution=64, learning_rate=1e-3, word_learning_rate=1e-3),
        loss=config.LossConfig(),
    )
