"""Where LoRAs and words are kept, so that the host's own loaders list them at once."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile

import folder_paths
from torch import Tensor

from ...palp_train.checkpoint import FORMAT_KEY, PalpLora, read_checkpoint, read_metadata, write_checkpoint
from ...palp_train.errors import InputError

SUBFOLDER = "palp"
MAX_NAME_BYTES = 120
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def check_name(name: str) -> str:
    """The name, if every operating system can keep a file of that name.

    Raises:
        InputError: it cannot; the text says why.
    """
    problem = _name_problem(name)
    if problem:
        raise InputError("name", f'"{name}" {problem}. Use a plain name such as "my_subject".')
    return name


def _name_problem(name: str) -> str | None:
    if not name.strip():
        return "is empty"
    if _FORBIDDEN.search(name) or ".." in name:
        return "contains a path separator, '..' or a character that file names cannot have"
    if name != name.strip() or name.startswith(".") or name.endswith("."):
        return "begins or ends with a space or a dot"
    if _RESERVED.fullmatch(name):
        return "is reserved by Windows"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"is too long ({len(name.encode())} bytes; at most {MAX_NAME_BYTES})"
    return None


def lora_folder() -> Path:
    """Where new LoRAs go: the ``loras`` folder below the output folder if the host lists it, else its first ``loras`` folder."""
    listed = [Path(folder) for folder in folder_paths.get_folder_paths("loras")]
    preferred = Path(folder_paths.get_output_directory()) / "loras"
    return (preferred if preferred in listed else listed[0]) / SUBFOLDER


def refuse_unwritable() -> None:
    """Return quietly if files can be written into ``lora_folder``: better known before a training than after it.

    Raises:
        InputError: they cannot.
    """
    folder = lora_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError("name", f"no file can be written into {folder} ({error.strerror}), where the LoRA belongs. Make it writable.") from error


def write_lora(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a new file into ``lora_folder`` whose listed name is new in all of the host's ``loras`` folders; its path."""
    everywhere = [Path(folder) / SUBFOLDER for folder in folder_paths.get_folder_paths("loras")]
    return write_checkpoint(lora_folder(), name, tensors, metadata, everywhere)


def embedding_folder() -> Path:
    """Where exported words go: the host's first ``embeddings`` folder."""
    return Path(folder_paths.get_folder_paths("embeddings")[0])


def listed_name(path: Path) -> str:
    """How the host's LoRA loaders list a file of ``lora_folder``."""
    return os.path.join(SUBFOLDER, path.name)


def palp_lora_files() -> list[str]:
    """Names of the LoRAs that carry our metadata, as the host lists them."""
    return [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors") and _is_ours(name)]


def read_palp_lora(file: str) -> PalpLora:
    """The LoRA of that listed name.

    Raises:
        InputError: there is none, or it is not ours.
    """
    return read_checkpoint(_full_path(file), file)


def file_fingerprint(file: str) -> str:
    """Changes when the file does."""
    stat = _full_path(file).stat()
    return f"{stat.st_mtime_ns}-{stat.st_size}"


def _full_path(file: str) -> Path:
    path = folder_paths.get_full_path("loras", file)
    if path is None:
        raise InputError("palp_lora", f'"{file}" is not in the loras folders any more. Press R to refresh the list and choose again.')
    return Path(path)


def _is_ours(file: str) -> bool:
    path = folder_paths.get_full_path("loras", file)
    return path is not None and _has_our_format(path, os.stat(path).st_mtime_ns)


@cache
def _has_our_format(path: str, _modified: int) -> bool:
    return FORMAT_KEY in read_metadata(Path(path))
