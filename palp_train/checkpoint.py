"""The file: a LoRA, the new words beside it, and strings about them, in one ``.safetensors``."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from .embedding import WordEmbedding
from .errors import InputError

FORMAT = "1"
FORMAT_KEY = "palp.format"
TARGET_PROMPT_KEY = "palp.target_prompt"
CLASS_WORDS_KEY = "palp.class_words"
ARCHITECTURE_KEY = "modelspec.architecture"
WORD_PREFIX = "bundle_emb."


@dataclass(frozen=True, kw_only=True)
class PalpLora:
    """A trained LoRA with its words."""

    lora: Mapping[str, Tensor]
    """By the names that LoRA loaders know."""
    words: Sequence[WordEmbedding]
    metadata: Mapping[str, str]
    file: str
    """Its name as a LoRA loader lists it."""

    @property
    def target_prompt(self) -> str:
        """The prompt that it was aligned to."""
        return self.metadata.get(TARGET_PROMPT_KEY, "")

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the file holds: the LoRA and ``bundle_emb.<word>.<encoder>``."""
        words = {f"{WORD_PREFIX}{word.placeholder}.{encoder}": v for word in self.words for encoder, v in word.vectors.items()}
        return {**self.lora, **{name: vectors.detach().cpu().clone() for name, vectors in words.items()}}


def read_checkpoint(path: Path, file: str) -> PalpLora:
    """The LoRA in ``path``, to be known as ``file``.

    Raises:
        InputError: it is not one of ours, or of a format that is newer than this code.
    """
    metadata = read_metadata(path)
    if metadata.get(FORMAT_KEY) != FORMAT:
        found = metadata.get(FORMAT_KEY)
        raise InputError("palp_lora", f"{file} {'is not a PALP LoRA' if found is None else f'has format {found}; update ComfyUI-PALP to read it'}.")
    tensors = _load(path)
    words: dict[str, dict[str, Tensor]] = {}
    for name in [name for name in tensors if name.startswith(WORD_PREFIX)]:
        placeholder, _, encoder = name.removeprefix(WORD_PREFIX).rpartition(".")
        words.setdefault(placeholder, {})[encoder] = tensors.pop(name)
    classes = json.loads(metadata.get(CLASS_WORDS_KEY, "{}"))
    embeddings = [WordEmbedding(placeholder=p, class_word=classes.get(p, ""), vectors=v) for p, v in words.items()]
    return PalpLora(lora=tensors, words=embeddings, metadata=metadata, file=file)


def read_metadata(path: Path) -> dict[str, str]:
    """The strings in a safetensors file's header; empty where there are none or the file is something else."""
    try:
        with _open(path) as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        return {}


def _open(path: Path) -> Any:
    return safetensors.safe_open(path, framework="pt")


def _load(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)  # pyright: ignore[reportUnknownMemberType]  # of its PathLike


def write_checkpoint(folder: Path, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], others: Iterable[Path] = ()) -> Path:
    """Write ``<folder>/<name>_<counter>.safetensors``, a new file, whole or not at all.

    The counter follows the highest that is there. The temporary file is created exclusively before its final name is looked at, so
    two writers never meet in one name.

    Args:
        folder: made if it does not exist.
        name: a plain file name without its ending.
        tensors: what to write.
        metadata: strings for the header.
        others: more folders in which the name must be new, because a loader would look there too.

    Returns:
        The file's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counter = max(_highest_counter(each, name) for each in (folder, *(other for other in others if other.is_dir()))) + 1
    while True:
        final = folder / f"{name}_{counter:05}.safetensors"
        partial = final.with_suffix(".safetensors.partial")
        try:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:  # another run is writing it, or one died while it did
            counter += 1
            continue
        try:
            if not final.exists():
                _write(partial, final, tensors, metadata)
                return final
        finally:
            partial.unlink(missing_ok=True)
        counter += 1


def _write(partial: Path, final: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    safetensors.torch.save_file(dict(tensors), partial, metadata=dict(metadata))  # pyright: ignore[reportUnknownMemberType]
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, final)


def _highest_counter(folder: Path, name: str) -> int:
    """0 also where the folder cannot be listed, and then by no loader either."""
    pattern = re.compile(rf"{re.escape(name)}_(\d+)\.safetensors")
    try:
        return max((int(match[1]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))), default=0)
    except PermissionError:
        return 0
