"""Files that are whole or not there: what was done once is not done again."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from dev_tools.files import write_text, write_whole


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of ``folder`` in the end; an earlier one stays until then."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as beside:
        new = Path(beside) / folder.name
        new.mkdir()
        yield new
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError)
"""What loaders raise at a file that is cut off or holds no model."""


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as JSON, whole."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def fingerprint(value: object) -> str:
    """Ten hexadecimal digits that change when the value does."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]


def picture_fingerprint(picture: Tensor) -> str:
    """Ten hexadecimal digits that change when a picture does."""
    return fingerprint([list(picture.shape), hashlib.sha256(picture.contiguous().numpy().tobytes()).hexdigest()])


def file_fingerprint(*files: Path) -> str:
    """Ten hexadecimal digits that change when one of the files is exchanged; large ones are known by size and time."""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns if file.stat().st_size > 2**26 else _digest(file)) for file in files]
    return fingerprint(facts)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def slug(text: str) -> str:
    """The text as part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def write_pictures(path: Path, pictures: Tensor) -> None:
    """Write pictures (N, H, W, 3) in [0, 1] side by side, without loss, whole."""
    strip = np.concatenate([(picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy() for picture in pictures], axis=1)
    write_whole(path, lambda partial: Image.fromarray(strip).save(partial, format="png"))


def read_pictures(path: Path, count: int) -> Tensor:
    """The pictures of a strip, shape (N, H, W, 3), values in [0, 1]."""
    strip = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
    return torch.stack(strip.chunk(count, dim=1)).float() / 255


@dataclass(frozen=True, kw_only=True)
class CellFiles:
    """Where a cell's files are."""

    folder: Path

    def checkpoint(self, step: int) -> Path:
        """The LoRA and the words as they were after a step."""
        return self.folder / f"step-{step:05}.safetensors"

    def cost(self, step: int) -> Path:
        """What training to that step took."""
        return self.folder / f"step-{step:05}-cost.json"

    @property
    def unstable(self) -> Path:
        """Where it is noted that the training did not stay finite."""
        return self.folder / "unstable.json"

    def pictures(self, step: int, ask: str, settings: Mapping[str, object]) -> Path:
        """The strip of pictures sampled after a step."""
        return self.folder / f"step-{step:05}" / f"{slug(ask)}-{fingerprint(settings)}.png"


def measures_of(pictures: Path, ruler: object) -> Path:
    """Where the measures of a strip are, taken with that ruler."""
    return pictures.with_name(f"{pictures.stem}-{fingerprint(ruler)}.json")
