"""The demo's result folder: pictures, the LoRA, the loss chart, the report."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RANDOM_WEIGHTS = (
    "The checkpoint of this demo has random weights and was trained on nothing, so the pictures mean nothing:\n"
    "the demo shows that every step runs, from the subject's picture to the LoRA and back into ComfyUI.\n"
    "With a trained checkpoint the same graph draws the subject as the prompt says."
)
OURS = ("*.png", "*.safetensors", "report.txt", "server.log", "server.db")


def empty_folder(folder: Path) -> Path:
    """``folder``, made if need be, without the files of an earlier demo; any other file stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in OURS:
        for path in folder.glob(pattern):
            path.unlink()
    return folder


def find_lora(names: Iterable[str], base: Path) -> Path:
    """The newest file among LoRA names as the stock LoraLoader lists them.

    Raises:
        FileNotFoundError: none of them lies in the base directory.
    """
    folders = (base / "output" / "loras", base / "models" / "loras")
    paths = [folder / name for name in names for folder in folders if (folder / name).is_file()]
    if not paths:
        raise FileNotFoundError(f"Training ended, but the LoraLoader lists no new LoRA below {base}.")
    return max(paths, key=os.path.getmtime)


def copy_into(folder: Path, path: Path) -> Path:
    """The copy of the file ``path`` in ``folder``."""
    return Path(shutil.copyfile(path, folder / path.name))


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)).get("__metadata__", {})


def draw_losses(path: Path, losses: list[float], title: str) -> None:
    """Write the chart of the loss over the training steps, with a running mean over a tenth of them."""
    # Without a display; pyplot would look for one.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, linewidth=0.8, alpha=0.5, label="each step")
    axes.plot(steps, running_mean(losses, max(1, len(losses) // 10)), label="running mean")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def running_mean(numbers: list[float], width: int) -> list[float]:
    """The mean of each number and those before it, ``width`` of them where there are so many."""
    windows = (numbers[max(0, end - width) : end] for end in range(1, len(numbers) + 1))
    return [sum(window) / len(window) for window in windows]


def report_text(trainer_report: str, stats: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """The report: what to think of the pictures, the trainer's own words, versions, devices, times."""
    system = stats["system"]
    versions = {
        "ComfyUI": system.get("comfyui_version"),
        "PyTorch": system.get("pytorch_version"),
        "Python": system.get("python_version"),
        "device": ", ".join(device["name"] for device in stats["devices"]),
    }
    facts = [f"{name}: {value}" for name, value in versions.items()]
    times = [f"{name}: {value:.0f} s" for name, value in seconds.items()]
    return "\n".join([RANDOM_WEIGHTS, "", "The trainer's report", trainer_report.strip(), "", *facts, *times, ""])
