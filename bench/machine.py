"""The machine in words, for whoever reads a report: cards, processor, versions; no names of users or folders."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import psutil
import torch

from palp_train import __version__

GIB = 2**30
CHECKOUT = Path(__file__).resolve().parent.parent


def has_gpu() -> bool:
    """Whether PyTorch has anything better than the CPU."""
    return torch.accelerator.is_available()


def in_words(comfyui: Path) -> str:
    """All of it in one line.

    Args:
        comfyui: the host's folder.
    """
    return "; ".join([*_cards(), _processor(), _versions(comfyui)])


def _cards() -> list[str]:
    if not torch.cuda.is_available():
        return [str(torch.accelerator.current_accelerator())] if has_gpu() else []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    cards = [f"{card.name}, {card.total_memory / GIB:.0f} GiB" for card in found]
    return [*cards, f"driver {driver or 'unknown'}"]


def _processor() -> str:
    """Its name, cores and memory."""
    known = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", known.read_text(), re.MULTILINE) if known.is_file() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {psutil.virtual_memory().total / GIB:.0f} GiB, {platform.system()}"


def _versions(comfyui: Path) -> str:
    backend = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    python = f"Python {platform.python_version()}"
    parts = [f"PyTorch {torch.__version__}", *([backend] if has_gpu() else []), python]
    parts += [f"ComfyUI {_host_version(comfyui)}", f"PALP {__version__} {_commit()}".strip()]
    return ", ".join([*parts, *(f"{name} {_installed(name)}" for name in ("peft", "diffusers"))])


def _host_version(comfyui: Path) -> str:
    known = comfyui / "comfyui_version.py"
    found = re.search(r'__version__ = "(.+)"', known.read_text(encoding="utf-8")) if known.is_file() else None
    return found[1] if found else "of an unknown version"


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The pack's, in brackets; empty outside of a git checkout."""
    said = _said("git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--exclude", "*")
    return f"({said})" if said else ""


def _said(*command: str) -> str:
    """What a program says; nothing where there is none or it fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
