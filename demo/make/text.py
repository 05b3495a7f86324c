"""The text encoder: learns to say what a prompt asks for, then stays as it is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer

from demo.make.dataset import label_row
from demo.make.grammar import ATTRIBUTES, phrase, random_scene
from demo.make.host import architecture, new_text_encoder
from demo.make.paths import WORK
from demo.make.run_state import Stage, warm_cosine

STEPS, BATCH, PEAK_RATE = 1200, 96, 2e-3


class Reader(nn.Module):
    """The encoder, and what reads the scene out of its outputs."""

    def __init__(self) -> None:
        """Start from nothing."""
        super().__init__()
        self.transformer = out_of_place(new_text_encoder().transformer)
        width = architecture().TEXT_WIDTH
        self.from_end = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})
        self.from_all = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, tokens: Tensor) -> dict[str, list[Tensor]]:
        """Logits of each attribute, from the end token and from the mean of all tokens."""
        outputs = encode(self.transformer, tokens)
        end = outputs[torch.arange(len(tokens)), (tokens == tokens.max()).int().argmax(dim=1)]
        return {name: [self.from_end[name](end), self.from_all[name](outputs.mean(dim=1))] for name in ATTRIBUTES}


def encode(transformer: Any, tokens: Tensor) -> Tensor:
    """What the denoiser attends to, shape (B, length, width): the same as the host's CLIP gives for these tokens."""
    embeddings = transformer.get_input_embeddings()(tokens, out_dtype=torch.float32)
    return transformer(None, None, embeds=embeddings, num_tokens=[1] * len(tokens), dtype=torch.float32)[0]


def tokenize(prompts: Sequence[str]) -> Tensor:
    """Token numbers, filled up with end tokens as the host does, shape (B, length)."""
    length = architecture().TEXT_LENGTH
    numbers = _tokenizer()(list(prompts), padding="max_length", max_length=length, truncation=True)["input_ids"]
    return torch.tensor(numbers)


@functools.cache
def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(architecture().TOKENIZER))


def out_of_place(transformer: Any) -> Any:
    """The host's transformer, whose layers no longer add onto tensors that autograd has saved."""
    for layer in transformer.text_model.encoder.layers:
        layer.forward = functools.partial(_layer, layer)
    return transformer


def _layer(layer: Any, x: Tensor, mask: Tensor | None = None, optimized_attention: Any = None) -> Tensor:
    x = x + layer.self_attn(layer.layer_norm1(x), mask, optimized_attention)
    return x + layer.mlp(layer.layer_norm2(x))


def train(until: int | None = None) -> None:
    """Train it up to that step, or to the end; resumes where it was."""
    torch.manual_seed(0)
    reader = Reader().requires_grad_(True)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    stage = Stage(name="text", modules=reader, optimizer=optimizer, steps=STEPS, until=until)
    stage.train(lambda step: _loss(reader, step), warm_cosine(PEAK_RATE))


def _loss(reader: Reader, step: int) -> Tensor:
    tokens, labels = prompts_and_labels(np.random.default_rng([2, step]), BATCH)
    logits = reader(tokens)
    losses = [functional.cross_entropy(guess, labels[:, row]) for row, name in enumerate(ATTRIBUTES) for guess in logits[name]]
    return torch.stack(losses).mean()


def prompts_and_labels(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Tokens of random prompts, and the numbers of what they ask for."""
    scenes = [random_scene(rng) for _ in range(count)]
    return tokenize([phrase(scene, rng) for scene in scenes]), torch.tensor([label_row(scene) for scene in scenes])


def trained() -> Any:
    """The transformer with the weights of the training so far."""
    reader = Reader()
    reader.load_state_dict(torch.load(WORK / "text.pt", weights_only=True)["modules"])
    return reader.transformer.eval().requires_grad_(False)


@torch.no_grad()
def quality() -> dict[str, float]:
    """Which part of 1000 new prompts is read right, by attribute."""
    reader = Reader()
    reader.load_state_dict(torch.load(WORK / "text.pt", weights_only=True)["modules"])
    tokens, labels = prompts_and_labels(np.random.default_rng(3), 1000)
    return {name: float((logits[0].argmax(dim=1) == labels[:, row]).float().mean()) for row, (name, logits) in enumerate(reader(tokens).items())}
