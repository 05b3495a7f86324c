"""The host's CLIP with new words in it: for training, and for every stock node after Apply PALP LoRA."""

import copy
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.sd1_clip
import comfy.text_encoders.t5
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...palp_train.activations import activations_kept, listed_modules
from ...palp_train.denoiser import ConstantConditioning
from ...palp_train.embedding import WordEmbedding
from ...palp_train.errors import InputError
from ...palp_train.prompts import replace_placeholders
from ...palp_train.transfer import staying_on
from .weights import is_quantized, is_scaled


def clip_with_words(clip: Any, words: Sequence[WordEmbedding]) -> Any:
    """A clone of the CLIP that understands the placeholders; the one given is untouched."""
    clone = clip.clone()
    clone.tokenizer = copy.copy(clip.tokenizer)
    for name, tokenizer in _tokenizers(clip.tokenizer).items():
        setattr(clone.tokenizer, name, _tokenizer_with_words(tokenizer, words))
    return clone


def learned_encoders(clip: Any, *models: Any) -> frozenset[str]:
    """Keys of the text encoders that learn new words: every CLIP, and each T5 whose backward pass fits into memory beside these models' patchers.

    Ask once for a run: what fits changes as models are loaded. Language models learn no words.
    """
    return frozenset(tokenizer.embedding_key for tokenizer, encoder in _encoders(clip) if _learns(encoder, clip.patcher, models))


def learning_transformers(clip: Any, learned: Collection[str]) -> list[nn.Module]:
    """The networks of the encoders with these keys."""
    return [encoder.transformer for tokenizer, encoder in _encoders(clip) if tokenizer.embedding_key in learned]


@contextmanager
def quick_gelu_in_one_kernel(transformers: Iterable[nn.Module]) -> Generator[None, None, None]:
    """Let CLIPs compute ``x sigmoid(1.702 x)`` by PyTorch's SiLU: fewer kernels, and autograd keeps one tensor, not three."""
    modules = [module for transformer in transformers for module in transformer.modules()]
    quick = comfy.clip_model.ACTIVATIONS["quick_gelu"]
    changed: list[Any] = [module for module in modules if getattr(module, "activation", None) is quick]
    try:
        for module in changed:
            module.activation = _quick_gelu
        yield
    finally:
        for module in changed:
            module.activation = quick


def _quick_gelu(x: Tensor) -> Tensor:
    return nn.functional.silu(1.702 * x) / 1.702


def class_tokens(clip: Any, class_word: str, learned: Collection[str]) -> dict[str, Tensor]:
    """Token embeddings of the class word, by the key of each encoder that learns; shapes (tokens, width), float32.

    Raises:
        InputError: an encoder sees nothing in the class word.
    """
    learning = [(tokenizer, encoder) for tokenizer, encoder in _encoders(clip) if tokenizer.embedding_key in learned]
    device = clip.patcher.load_device
    return {tokenizer.embedding_key: _embed(encoder, tokenizer, class_word, device) for tokenizer, encoder in learning}


def _encoders(clip: Any) -> list[tuple[Any, Any]]:
    """(tokenizer, encoder) of each text encoder."""
    pairs = [(tokenizer, _encoder_of(clip.cond_stage_model, name)) for name, tokenizer in _tokenizers(clip.tokenizer).items()]
    return [(tokenizer, encoder) for tokenizer, encoder in pairs if isinstance(encoder, comfy.sd1_clip.SDClipModel)]


def _encoder_of(encoders: Any, name: str) -> Any:
    """The encoder that belongs to the tokenizer of that name; None if there is none. A lone T5's tokenizer is "clip_t5xxl" to the host."""
    return getattr(encoders, name, None) or getattr(encoders, name.removeprefix("clip_"), None)


def _learns(encoder: Any, patcher: Any, models: Sequence[Any]) -> bool:
    if _is_quantized(encoder):
        return False
    if isinstance(encoder.transformer, comfy.clip_model.CLIPTextModel):
        return True
    return isinstance(encoder.transformer, comfy.text_encoders.t5.T5) and _backward_fits(encoder.transformer, patcher, models)


def _is_quantized(encoder: nn.Module) -> bool:
    """Whether an encoder's weights are quantized, so that it runs as the host runs it and learns nothing."""
    return any(is_quantized(layer) or is_scaled(layer) for layer in encoder.modules())


def class_word_notes(clip: Any, learned: Collection[str]) -> list[str]:
    """Sentences for the report: which text encoders read the class word, because their weights are quantized."""
    quantized = [tokenizer.embedding_key for tokenizer, encoder in _encoders(clip) if _is_quantized(encoder)]
    reading = [key for key in quantized if key not in learned]
    if not learned or not reading:
        return []
    names = " and ".join(reading)
    return [f"{names} learned no word, because its weights are quantized: it read the class word in its place."]


def _backward_fits(transformer: nn.Module, patcher: Any, models: Sequence[Any]) -> bool:
    """Whether a backward pass through a text encoder that computes in float32 fits beside all that training loads.

    It widens its weights one by one, and keeps activations. Room is asked for as if it kept a float32 copy, and
    activations of an eighth of that, so that the diffusion model's own steps fit as well.
    """
    copies = sum(p.numel() * 4 for p in transformer.parameters() if p.dtype != torch.float32)
    activations = sum(p.numel() * 4 for p in transformer.parameters()) / 8
    still_to_load = sum(max(0, p.model_size() - p.loaded_size()) for p in (patcher, *models))
    return copies + activations + still_to_load < _room(patcher.load_device, (patcher, *models))


def _room(device: torch.device, patchers: Sequence[Any]) -> float:
    """Bytes that are free on a device once everything but these has left it, as it does before training."""
    others = [
        loaded
        for loaded in comfy.model_management.current_loaded_models
        if loaded.model is not None
        and loaded.device == device != loaded.model.offload_device
        and not any(loaded.model.is_clone(patcher) for patcher in patchers)
    ]
    held = sum(loaded.model_loaded_memory() for loaded in others)
    return comfy.model_management.get_free_memory(device) + held


def _embed(encoder: Any, tokenizer: Any, text: str, device: torch.device) -> Tensor:
    tokens = [token for section in tokenizer.tokenize_with_weights(text, return_word_ids=True) for token, _, word in section if word != 0]
    if not tokens or not all(isinstance(token, int) for token in tokens):
        raise InputError("class_word", f'"{text}" means nothing to the text encoder. Name what the subject is in plain words, for example "cat".')
    table = encoder.transformer.get_input_embeddings()
    return table(torch.tensor(tokens, device=device), out_dtype=torch.float32)


class HostTextEncoder:
    """The host's text encoders as the method's ``TextEncoder``: gradient reaches the words' vectors."""

    def __init__(self, clip: Any, words: Sequence[WordEmbedding]) -> None:
        """Take over a CLIP that is loaded."""
        self._clip = clip_with_words(clip, words)
        self._encoders: nn.Module = clip.cond_stage_model
        self._blocks = listed_modules(clip.cond_stage_model)
        self._device: torch.device = clip.patcher.load_device

    def __call__(self, prompt: str) -> Mapping[str, Any]:
        """The conditioning of one prompt, by the names that the host's models ask for."""
        encoders: Any = self._encoders
        encoders.reset_clip_options()
        if self._clip.layer_idx is not None:
            encoders.set_clip_options({"layer": self._clip.layer_idx})
        with activations_kept(self._blocks), staying_on(self._device):
            cross_attention, pooled, *extra = encoders.encode_token_weights(self._clip.tokenize(prompt))
        return {"cross_attn": cross_attention, "pooled_output": pooled, **(extra[0] if extra else {})}


def other_encoders(clip: Any, learned: Collection[str]) -> list[Any]:
    """The encoders without these keys."""
    return [encoder for tokenizer, encoder in _encoders(clip) if tokenizer.embedding_key not in learned]


@contextmanager
def output_stays(device: torch.device) -> Generator[None, None, None]:
    """Let the host's text encoders leave their output on that device; they bring it to the CPU otherwise."""
    host = comfy.model_management
    before = host.intermediate_device
    host.intermediate_device = lambda: device
    try:
        yield
    finally:
        host.intermediate_device = before


def quantized_encoders(clip: Any) -> list[nn.Module]:
    """The encoders whose weights only the host's own layers can read."""
    return [encoder for _, encoder in _encoders(clip) if _is_quantized(encoder)]


@contextmanager
def other_encoders_remembering(clip: Any, learned: Collection[str]) -> Generator[None, None, None]:
    """Within: text encoders that do not learn encode each prompt once, as the host does.

    A large T5 beside a CLIP that learns need not run in every step.
    """
    others = [encoder for tokenizer, encoder in _encoders(clip) if tokenizer.embedding_key not in learned]
    for encoder in others:
        encoder.encode_token_weights = _remembering(encoder.encode_token_weights)
    try:
        yield
    finally:
        for encoder in others:
            del encoder.encode_token_weights  # the class's own shows again


def _remembering(encode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[str, Any] = {}

    @torch.no_grad()
    def remembered(token_weight_pairs: Any) -> Any:
        key = repr(token_weight_pairs)
        encoded = known.get(key)
        if encoded is None:
            with torch.inference_mode():  # its weights were made in that mode
                encoded = encode(token_weight_pairs)
        if "tensor(" not in key:  # else it holds an embedding of the user's, which its text does not identify
            known[key] = encoded
        return pytree.tree_map_only(Tensor, Tensor.clone, encoded)  # the host writes into what it gets

    return remembered


class FixedTextEncoder:
    """Prompts that never change, encoded once by the host itself; its text encoders need not stay loaded."""

    def __init__(self, clip: Any, prompts: Iterable[str]) -> None:
        """Encode all ``prompts``."""
        with torch.inference_mode():
            encoded = {prompt: clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True, return_dict=True) for prompt in prompts}
        with torch.inference_mode(False):
            self._encoded = {prompt: _owned(conditioning) for prompt, conditioning in encoded.items()}

    def __call__(self, prompt: str) -> Mapping[str, Any]:
        """The conditioning of one of the prompts."""
        return self._encoded[prompt]


def _owned(conditioning: dict[str, Any]) -> ConstantConditioning:
    copies = pytree.tree_map_only(Tensor, Tensor.clone, conditioning)
    return ConstantConditioning({"cross_attn": copies.pop("cond"), **copies})


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
