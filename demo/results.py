"""The demo's result folder: pictures, the LoRA, the loss chart, the report."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from demo.errors import ComfyError
from demo.graph import LORA_NAMES, TITLES

ABOUT = (
    "The demo model is small: it draws 64 x 64 pixels of a world of thirty things. It has never seen Earl, a lime teapot with white stripes.\n"
    "Plain personalization and PALP learn him from the same picture, with the same settings and seeds."
)
ONE_OF_EACH = ("side_by_side.png", "loss.png", "report.txt", "server.log", "server.db")
OURS = (*(f"{name}_[0-9]*.png" for name in TITLES), *(f"{name}_[0-9]*.safetensors" for name in LORA_NAMES.values()), *ONE_OF_EACH)


def empty_folder(folder: Path) -> Path:
    """``folder``, made if need be, without the files of an earlier demo; any other file stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in OURS:
        for path in folder.glob(pattern):
            path.unlink()
    return folder


def find_loras(names: Iterable[str], base: Path) -> list[Path]:
    """The files of LoRA names as the stock LoraLoader lists them, in the order of their names.

    Raises:
        ComfyError: there are none in the base directory.
    """
    folders = (base / "output" / "loras", base / "models" / "loras")
    paths = [folder / name for name in sorted(names) for folder in folders if (folder / name).is_file()]
    if not paths:
        raise ComfyError(f"Training ended, but the LoraLoader lists no new LoRA below {base}.")
    return paths


def copy_into(folder: Path, path: Path) -> Path:
    """The copy of the file ``path`` in ``folder``."""
    return Path(shutil.copyfile(path, folder / path.name))


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)).get("__metadata__", {})


def draw_losses(path: Path, losses: Mapping[str, list[float]], title: str) -> None:
    """Write the chart of each training's loss, a running mean over a tenth of the steps."""
    figure = _figure(7, 4)
    axes = figure.subplots()
    for name, numbers in losses.items():
        axes.plot(range(1, len(numbers) + 1), running_mean(numbers, max(1, len(numbers) // 10)), label=name)
    axes.set(xlabel="step", ylabel="personalization loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def draw_side_by_side(path: Path, subject: Sequence[Path], rows: Mapping[str, Sequence[Path]], title: str) -> None:
    """Write the pictures in rows: the subject's own, then each kind's, one column for each seed."""
    from PIL import Image

    shown = {"what to learn from": subject, **rows}
    columns = max(len(pictures) for pictures in shown.values())
    figure = _figure(1.5 * columns, 1.75 * len(shown) + 0.4)
    figure.suptitle(title)
    for row, (name, pictures) in zip(figure.subfigures(len(shown), 1), shown.items(), strict=True):
        row.suptitle(name, fontsize=10)
        for axes, picture in zip_longest(row.subplots(1, columns), pictures):
            axes.axis("off")
            if picture:
                axes.imshow(Image.open(picture), interpolation="bicubic")
    figure.savefig(path, dpi=100)


def _figure(wide: float, high: float) -> Any:
    """A matplotlib figure of that size in inches, without a display; pyplot would look for one."""
    from matplotlib.figure import Figure

    return Figure(figsize=(wide, high), layout="constrained")


def running_mean(numbers: list[float], width: int) -> list[float]:
    """The mean of each number and those before it, ``width`` of them where there are so many."""
    windows = (numbers[max(0, end - width) : end] for end in range(1, len(numbers) + 1))
    return [sum(window) / len(window) for window in windows]


def report_text(trainer_reports: Mapping[str, str], stats: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """The report: what the demo is, the trainer's own words, versions, devices, times."""
    system = stats["system"]
    versions = {
        "ComfyUI": system.get("comfyui_version"),
        "PyTorch": system.get("pytorch_version"),
        "Python": system.get("python_version"),
        "device": ", ".join(device["name"] for device in stats["devices"]),
    }
    facts = [f"{name}: {value}" for name, value in versions.items()]
    times = [f"{name}: {value:.0f} s" for name, value in seconds.items()]
    told = [line for name, report in trainer_reports.items() for line in (f"The trainer's report: {name}", report.strip(), "")]
    return "\n".join([ABOUT, "", *told, *facts, *times, ""])
