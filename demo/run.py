"""The main job through a real ComfyUI server: start it, queue the graph, collect what it made."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo.client import Client
from demo.errors import ComfyError
from demo.graph import LORA_NAMES, SUBJECT, SUBJECT_PICTURES, TARGET_PROMPT, TITLES, demo_graph
from demo.make.paths import SUBJECTS
from demo.results import ABOUT, copy_into, draw_losses, draw_side_by_side, empty_folder, find_loras, metadata_of, report_text
from demo.server import Server


def run(comfyui: Path, base: Path, results: Path) -> None:
    """Do the job and fill ``results``.

    Raises:
        ComfyError: the server or a node failed.
    """
    empty_folder(results)
    print(f"{ABOUT}\n\nStarting ComfyUI; its log: {results / 'server.log'}", flush=True)
    began = time.perf_counter()
    with Server(comfyui, base, results / "server.log") as server, Client(server.url) as client:
        ready = time.perf_counter()
        _require_pack(client)
        known = set(_loras(client))
        outputs = client.run(demo_graph(), show=True)
        seconds = {"server start": ready - began, "training and pictures": time.perf_counter() - ready}
        pictures = {title: _saved_pictures(client, outputs[name], results / name) for name, title in TITLES.items()}
        reports = {TITLES[name]: outputs[f"report {name}"]["text"][0] for name in LORA_NAMES}
        report = report_text(reports, client.system_stats(), seconds)
        loras = [copy_into(results, lora) for lora in find_loras(set(_loras(client)) - known, base)]
    (results / "report.txt").write_text(report, encoding="utf-8")
    draw_losses(results / "loss.png", {lora.stem: json.loads(metadata_of(lora)["palp.losses"]) for lora in loras}, TARGET_PROMPT)
    draw_side_by_side(results / "side_by_side.png", sorted((SUBJECTS / SUBJECT).glob("*.png"))[:SUBJECT_PICTURES], pictures, TARGET_PROMPT)
    print(f"\n{report}\n{_listing(results)}")


def _require_pack(client: Client) -> None:
    """Raise a ComfyError if ComfyUI started without our nodes."""
    if not client.object_info("PalpTrainLora"):
        raise ComfyError("ComfyUI runs but could not load the PALP nodes: see 'Cannot import' or 'IMPORT FAILED' in its log.")


def _loras(client: Client) -> list[str]:
    """The demo's LoRAs as the stock loader lists them; a Windows server writes backslashes."""
    names = client.choices("LoraLoader", "lora_name")
    return [name for name in names if Path(name).name.startswith(tuple(LORA_NAMES.values()))]


def _saved_pictures(client: Client, output: Mapping[str, Any], stem: Path) -> list[Path]:
    """Write the pictures of a node as ``<stem>_<number>.png``."""
    paths = [stem.with_name(f"{stem.name}_{number}.png") for number in range(1, len(output["images"]) + 1)]
    for path, picture in zip(paths, output["images"], strict=True):
        path.write_bytes(client.view(picture))
    return paths


def _listing(results: Path) -> str:
    """What lies where, for the terminal."""
    kinds = {"LoRAs": "*.safetensors", "pictures": "*_?.png", "compare": "side_by_side.png", "chart": "loss.png", "report": "report.txt"}
    lines = [f"{kind:9}{path}" for kind, pattern in kinds.items() for path in sorted(results.glob(pattern))]
    return "\n".join(lines)


def main() -> int:
    """The exit status of the demo."""
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    # So that the server is stopped too when we are.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(options.comfyui, options.base, options.results)
    except ComfyError as error:
        print(f"\nThe demo failed. {error}\nServer log: {options.results / 'server.log'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
