"""The main job as a graph in ComfyUI's API format: learn a cat from one picture, then draw it as the prompt says."""

from __future__ import annotations

from typing import Any

from demo import CHECKPOINT, PICTURE

Node = dict[str, Any]
Graph = dict[str, Node]
Link = list[str | int]

CLASS_WORD = "cat"
PLACEHOLDER = "[V]"
PERSONALIZATION_PROMPT = "a photo of [V]"
TARGET_PROMPT = "a sketch of [V] in Paris"
CLEAN_PROMPT = "a sketch of a cat in Paris"
LORA_NAME = "demo_cat"

SIDE = 128
STEPS = 60
# Many times the default: sixty steps have to show something.
LEARNING_RATE = 5e-4
SAMPLING_STEPS = 12
SEEDS = (1, 2)


def demo_graph() -> Graph:
    """All of it: training, then pictures without and with the LoRA from the same seeds."""
    pretrained = _branch("base", ["checkpoint", 0], ["checkpoint", 1], CLEAN_PROMPT)
    personalized = _branch("palp", ["apply", 0], ["apply", 1], TARGET_PROMPT)
    return {**_training(), **pretrained, **personalized}


def _training() -> Graph:
    """From the picture to a model that wears the LoRA; the report as text."""
    model, clip, vae = (["checkpoint", output] for output in range(3))
    return {
        "checkpoint": _node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "picture": _node("LoadImage", image=PICTURE),
        "subject": _node(
            "PalpSubject",
            images=["picture", 0],
            class_word=CLASS_WORD,
            placeholder=PLACEHOLDER,
            personalization_prompt=PERSONALIZATION_PROMPT,
        ),
        "train": _node(
            "PalpTrainLora",
            model=model,
            clip=clip,
            vae=vae,
            subject=["subject", 0],
            target_prompt=TARGET_PROMPT,
            clean_prompt=CLEAN_PROMPT,
            name=LORA_NAME,
            steps=STEPS,
            learning_rate=LEARNING_RATE,
            rank=32,
            batch_size=1,
            seed=0,
            resolution=SIDE,
        ),
        "report": _node("PreviewAny", source=["train", 3]),
        "apply": _node("ApplyPalpLora", model=model, clip=clip, palp_lora=["train", 0], strength=1.0),
    }


def _branch(name: str, model: Link, clip: Link, prompt: str) -> Graph:
    """One picture a seed, saved as ``<name>_<seed>``."""
    positive, negative = f"{name} prompt", f"{name} negative"
    graph = {positive: _node("CLIPTextEncode", clip=clip, text=prompt), negative: _node("CLIPTextEncode", clip=clip, text="")}
    for seed in SEEDS:
        graph |= _picture(f"{name}_{seed}", seed, model, [positive, 0], [negative, 0])
    return graph


def _picture(name: str, seed: int, model: Link, positive: Link, negative: Link) -> Graph:
    """Noise, sampler, decoder and the saved picture."""
    return {
        f"{name} noise": _node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
        f"{name} sampler": _node(
            "KSampler",
            model=model,
            positive=positive,
            negative=negative,
            latent_image=[f"{name} noise", 0],
            seed=seed,
            steps=SAMPLING_STEPS,
            cfg=7.5,
            sampler_name="ddim",
            scheduler="normal",
            denoise=1.0,
        ),
        f"{name} decoder": _node("VAEDecode", samples=[f"{name} sampler", 0], vae=["checkpoint", 2]),
        name: _node("SaveImage", images=[f"{name} decoder", 0], filename_prefix=f"palp_demo/{name}"),
    }


def _node(class_type: str, **inputs: Any) -> Node:
    return {"class_type": class_type, "inputs": inputs}
