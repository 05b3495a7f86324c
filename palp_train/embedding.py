"""The new word [V]: trainable vectors, one set for each text encoder that can take them. Appendix C."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .prompts import Subject


@dataclass(frozen=True, kw_only=True)
class WordEmbedding:
    """A placeholder and its vectors, by the text encoder's key ("clip_l", "clip_g", ...), each of shape (N, width)."""

    placeholder: str
    class_word: str
    """What a text encoder without vectors reads instead."""
    vectors: Mapping[str, Tensor]

    def parameters(self) -> Iterator[nn.Parameter]:
        """The vectors that train; none in a word that was loaded."""
        return (vectors for vectors in self.vectors.values() if isinstance(vectors, nn.Parameter))


def initial_vectors(class_tokens: Tensor, count: int) -> Tensor:
    """Vectors to start a new word from, shape (count, width), float32.

    One vector starts at the mean of the class word's token embeddings; several go through these in turn. Ours: the paper does not say.

    Args:
        class_tokens: token embeddings of the class word, shape (tokens, width).
        count: how many vectors the word has, at least 1.
    """
    class_tokens = class_tokens.float()
    if count == 1:
        return class_tokens.mean(dim=0, keepdim=True)
    return class_tokens[torch.arange(count, device=class_tokens.device) % len(class_tokens)]


def trainable_word(subject: Subject, class_tokens: Mapping[str, Tensor], count: int) -> WordEmbedding:
    """A new word that starts from its class, its vectors float32 and trainable.

    Args:
        subject: its placeholder and class.
        class_tokens: token embeddings of the class word for each text encoder, shapes (tokens, width).
        count: how many vectors the word has, at least 1.
    """
    vectors = {encoder: nn.Parameter(initial_vectors(tokens, count).clone()) for encoder, tokens in class_tokens.items()}
    return WordEmbedding(placeholder=subject.placeholder, class_word=subject.class_word, vectors=vectors)
