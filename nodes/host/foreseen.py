"""What passes through networks take in memory, remembered in ComfyUI's user folder from one start to the next.

The file holds digests and numbers, nothing of the user's. A file that is missing, wrong, foreign or cannot be written
is ignored: all that it saves is seconds.
"""

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import comfy.cli_args
import comfyui_version
import folder_paths
import torch
from torch import nn

from ...palp_train import __version__

FILE_NAME = "palp_foreseen.json"
FORMAT = 1
MOST_ENTRIES = 512
LARGEST_FILE = 2**20
"""Bytes; ours stays far below it."""
PACK = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Bytes that a pass through the network takes."""

    kept: int = 0
    """Alive at its end, or before its backward pass."""
    peak: int = 0


_found: dict[str, Pass] = {}
"""What was found since ComfyUI started, by digest."""


def digest(*parts: object) -> str:
    """A name for what a result depends on."""
    return sha256(repr(parts).encode()).hexdigest()


def recalled(key: str) -> Pass | None:
    """What was remembered under this digest."""
    if key not in _found:
        known = _read().get(key)
        if known is None:
            return None
        _found[key] = known
    return _found[key]


def remember(key: str, found: Pass) -> None:
    """Keep a result, for the next start too where the user folder can be written."""
    _found[key] = found
    entries = {**_read(), key: found}
    newest = dict(list(entries.items())[-MOST_ENTRIES:])
    try:
        _write(newest)
    except OSError as error:
        logging.debug("PALP: what was foreseen is not remembered: %s", error)


def _path() -> Path:
    return Path(folder_paths.get_user_directory()) / FILE_NAME


def _read() -> dict[str, Pass]:
    """The file's entries that are whole, oldest first."""
    path = _path()
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            content = json.loads(file.read(LARGEST_FILE))
    except (OSError, ValueError, RecursionError) as error:
        logging.debug("PALP: %s is not read: %s", path, error)
        return {}
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("passes"), dict):
        logging.debug("PALP: %s holds something else", path)
        return {}
    entries: dict[str, Pass] = {}
    for key, entry in content["passes"].items():
        if _is_whole(key, entry):
            entries[key] = Pass(kept=entry[0], peak=entry[1])
    return entries


def _is_whole(key: str, entry: Any) -> bool:
    if not isinstance(entry, list) or [type(value) for value in entry] != [int, int, str]:
        return False
    return entry[2] == digest(key, *entry[:2])


def _write(entries: dict[str, Pass]) -> None:
    """Write the file, whole or not at all."""
    passes = {key: [one.kept, one.peak, digest(key, one.kept, one.peak)] for key, one in entries.items()}
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = NamedTemporaryFile("w", dir=path.parent, prefix=FILE_NAME, delete=False, encoding="utf-8")
    try:
        with partial:
            json.dump({"format": FORMAT, "passes": passes}, partial)
        os.replace(partial.name, path)
    except OSError:
        Path(partial.name).unlink(missing_ok=True)
        raise


def surroundings(networks: Sequence[nn.Module]) -> str:
    """What decides beside shapes how these networks compute: versions, the host's switches, code and patches."""
    versions = torch.__version__, comfyui_version.__version__, __version__
    switches = sorted(
        (name, repr(sorted(map(str, value))) if isinstance(value, set) else repr(value))
        for name, value in vars(comfy.cli_args.args).items()
        if isinstance(value, bool | Enum | set)
    )
    return repr((versions, switches, _stamps(_code_folders(networks)), _patches(networks)))


def _code_folders(networks: Sequence[nn.Module]) -> set[Path]:
    """Where the classes of the networks' layers come from, and this pack."""
    modules = {type(layer).__module__ for network in networks for layer in network.modules()}
    files = [getattr(sys.modules.get(name), "__file__", None) for name in modules]
    return {PACK / "palp_train", PACK / "nodes" / "host", *(Path(file).parent for file in files if file)}


def _stamps(folders: Iterable[Path]) -> list[tuple[str, str, int, int]]:
    """Of each Python file: its folder's name, its own, its size and when it was changed."""
    stamps: list[tuple[str, str, int, int]] = []
    for folder in folders:
        for path in folder.glob("*.py"):
            with suppress(OSError):  # a link to nowhere, as editors make
                stat = path.stat()
                stamps.append((folder.name, path.name, stat.st_size, stat.st_mtime_ns))
    return sorted(stamps)


def _patches(networks: Sequence[nn.Module]) -> list[tuple[str, list[str]]]:
    """Layers that do not compute as their class does, with the names of what was put there."""
    patches: list[tuple[str, list[str]]] = []
    for network in networks:
        for path, layer in network.named_modules():
            hooks = [*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()]
            own = [*hooks, vars(layer)["forward"]] if "forward" in vars(layer) else hooks
            if own:
                patches.append((path, [getattr(one, "__qualname__", type(one).__qualname__) for one in own]))
    return patches
