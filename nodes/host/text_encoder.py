"""The host's CLIP with new words in it: for training, and for every stock node after Apply PALP LoRA."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.clip_model
import comfy.sd1_clip
import torch
from torch import Tensor, nn

from ...palp_train.activations import activations_kept
from ...palp_train.embedding import WordEmbedding
from ...palp_train.errors import InputError
from ...palp_train.prompts import replace_placeholders


def clip_with_words(clip: Any, words: Sequence[WordEmbedding]) -> Any:
    """A clone of the CLIP that understands the placeholders; the one given is untouched."""
    clone = clip.clone()
    clone.tokenizer = copy.copy(clip.tokenizer)
    for name, tokenizer in _tokenizers(clip.tokenizer).items():
        setattr(clone.tokenizer, name, _tokenizer_with_words(tokenizer, words))
    return clone


def class_tokens(clip: Any, class_word: str) -> dict[str, Tensor]:
    """Token embeddings of the class word, by the key of each encoder that can take a new word; shapes (tokens, width), float32.

    Raises:
        InputError: the CLIP has no such encoder.
    """
    found: dict[str, Tensor] = {}
    for name, tokenizer in _tokenizers(clip.tokenizer).items():
        encoder: Any = getattr(clip.cond_stage_model, name, None)
        if isinstance(encoder, comfy.sd1_clip.SDClipModel) and isinstance(encoder.transformer, comfy.clip_model.CLIPTextModel):
            found[tokenizer.embedding_key] = _embed(encoder, tokenizer, class_word)
    if not found:
        raise InputError("clip", f"{type(clip.cond_stage_model).__name__} has no CLIP text encoder that could learn a new word. Set word_vectors to 0.")
    return found


def _embed(encoder: Any, tokenizer: Any, text: str) -> Tensor:
    tokens = [token for section in tokenizer.tokenize_with_weights(text, return_word_ids=True) for token, _, word in section if word != 0]
    table = encoder.transformer.get_input_embeddings()
    return table(torch.tensor(tokens, device=table.weight.device), out_dtype=torch.float32)


class HostTextEncoder:
    """The host's text encoders as the method's ``TextEncoder``: gradient reaches the words' vectors."""

    def __init__(self, clip: Any, words: Sequence[WordEmbedding]) -> None:
        """Take over a CLIP that is loaded."""
        self._clip = clip_with_words(clip, words)
        self._encoders: nn.Module = clip.cond_stage_model

    def __call__(self, prompt: str) -> Mapping[str, Any]:
        """The conditioning of one prompt, by the names that the host's models ask for."""
        encoders: Any = self._encoders
        encoders.reset_clip_options()
        if self._clip.layer_idx is not None:
            encoders.set_clip_options({"layer": self._clip.layer_idx})
        with activations_kept(self._encoders):
            cross_attention, pooled, *extra = encoders.encode_token_weights(self._clip.tokenize(prompt))
        return {"cross_attn": cross_attention, "pooled_output": pooled, **(extra[0] if extra else {})}


def _tokenizers(tokenizer: Any) -> dict[str, Any]:
    return {name: part for name, part in vars(tokenizer).items() if isinstance(part, comfy.sd1_clip.SDTokenizer)}


def _tokenizer_with_words(tokenizer: Any, words: Sequence[WordEmbedding]) -> Any:
    """A copy of one encoder's tokenizer that turns placeholders into the words' vectors, by the host's own ``embedding:`` mechanism.

    Where a word has no vectors for this encoder, its class word is read instead.
    """
    known = {_embedding_name(word): word.vectors[tokenizer.embedding_key] for word in words if tokenizer.embedding_key in word.vectors}
    says_name = _says_name(tokenizer)

    class TokenizerWithWords(type(tokenizer)):
        def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> Any:
            return super().tokenize_with_weights(_named(text, words, known), *args, **kwargs)

        def _try_get_embedding(self, embedding_name: str) -> tuple[Any, ...]:
            name, *rest = embedding_name.split()
            if name not in known:
                return super()._try_get_embedding(embedding_name)
            leftover = " ".join(rest)
            return (known[name], name, leftover) if says_name else (known[name], leftover)

    clone = copy.copy(tokenizer)
    clone.__class__ = TokenizerWithWords
    if clone.embedding_directory is None:
        clone.embedding_directory = []  # else the host does not look for embeddings in the text at all
    return clone


def _says_name(tokenizer: Any) -> bool:
    """Whether the host's embedding lookup gives (embedding, name, leftover), as it does from 0.33 at the latest, not (embedding, leftover)."""
    probe = copy.copy(tokenizer)
    probe.embedding_directory = []  # nothing is searched
    return len(probe._try_get_embedding("palp")) == 3


def _named(text: str, words: Sequence[WordEmbedding], known: Mapping[str, Tensor]) -> str:
    texts: dict[str, str] = {}
    for word in words:
        name = _embedding_name(word)
        texts[word.placeholder] = f" embedding:{name} " if name in known else word.class_word or word.placeholder
    return replace_placeholders(text, texts)


def _embedding_name(word: WordEmbedding) -> str:
    """A name that no file has, without characters that prompts give a meaning; one placeholder has one name."""
    return f"palp-{word.placeholder.encode().hex()}"
