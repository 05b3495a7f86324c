"""Contact sheets: for a prompt, a row of pictures for each condition, all from the same noise."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from dev_tools.files import write_whole
from experiments.store import read_pictures, slug
from experiments.study import Cell
from experiments.world import Ask, Case

SIDE, SHOWN, MARGIN, LABEL = 96, 6, 4, 170
"""Pixels of a picture; pictures in a row; pixels around each and beside the row."""


def write_sheets(batches: Iterable[tuple[Cell, int, Ask, Path]], count: int, folder: Path) -> list[Path]:
    """One sheet for each subject and prompt, of the first seed and each condition's last step; their files.

    Args:
        batches: where each batch of pictures is.
        count: pictures in a batch.
        folder: where the sheets go.
    """
    rows: dict[tuple[str, str], dict[str, Path]] = {}
    about: dict[tuple[str, str], tuple[Case, Ask]] = {}
    for cell, _, ask, strip in batches:
        if cell.seed == 0:
            key = (cell.case.name, ask.name)
            about[key] = (cell.case, ask)
            rows.setdefault(key, {})[cell.condition.name] = strip  # later steps replace earlier ones
    written: list[Path] = []
    for key, strips in rows.items():
        path = folder / f"sheet-{slug(' '.join(key))}.jpg"
        sheet = _sheet(*about[key], strips, count)
        write_whole(path, lambda partial, sheet=sheet: sheet.save(partial, format="jpeg", quality=80))
        written.append(path)
    return written


def _sheet(case: Case, ask: Ask, strips: dict[str, Path], count: int) -> Image.Image:
    taught = [_as_image(picture) for each in case.taught for picture in each.images]
    rows = [("training pictures", taught), *((name, [_as_image(picture) for picture in read_pictures(strip, count)]) for name, strip in strips.items())]
    across = min(SHOWN, max(count, 3))
    sheet = Image.new("RGB", (LABEL + across * (SIDE + MARGIN), 24 + len(rows) * (SIDE + MARGIN)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 5), f"{case.name}: {ask.target}", fill="black", font_size=13)
    for number, (name, pictures) in enumerate(rows):
        top = 24 + number * (SIDE + MARGIN)
        pen.multiline_text((MARGIN, top + SIDE // 2 - 8), textwrap.fill(name, 24), fill="black", font_size=12)
        _paste(sheet, pictures[:across], top)
    return sheet


def _paste(sheet: Image.Image, pictures: Sequence[Image.Image], top: int) -> None:
    for place, picture in enumerate(pictures):
        sheet.paste(ImageOps.pad(picture, (SIDE, SIDE), Image.Resampling.BICUBIC, color="white"), (LABEL + place * (SIDE + MARGIN), top))


def _as_image(picture: object) -> Image.Image:
    import numpy as np

    return Image.fromarray((np.asarray(picture) * 255).round().astype("uint8"))
