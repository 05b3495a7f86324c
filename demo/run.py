"""The main job through a real ComfyUI server: start it, queue the graph, collect what it made."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from demo.client import Client, Outputs
from demo.errors import ComfyError
from demo.graph import LORA_NAME, TARGET_PROMPT, demo_graph
from demo.results import RANDOM_WEIGHTS, copy_into, draw_losses, empty_folder, find_lora, metadata_of, report_text
from demo.server import Server


def run(comfyui: Path, base: Path, results: Path) -> None:
    """Do the job and fill ``results``.

    Raises:
        ComfyError: the server or a node failed.
    """
    empty_folder(results)
    print(f"{RANDOM_WEIGHTS}\n\nStarting ComfyUI; its log: {results / 'server.log'}", flush=True)
    began = time.perf_counter()
    with Server(comfyui, base, results / "server.log") as server, Client(server.url) as client:
        ready = time.perf_counter()
        _require_pack(client)
        known = set(_loras(client))
        outputs = client.run(demo_graph(), show=True)
        seconds = {"server start": ready - began, "training and pictures": time.perf_counter() - ready}
        _save_pictures(client, outputs, results)
        report = report_text(outputs["report"]["text"][0], client.system_stats(), seconds)
        lora = copy_into(results, find_lora(set(_loras(client)) - known, base))
    (results / "report.txt").write_text(report, encoding="utf-8")
    draw_losses(results / "loss.png", json.loads(metadata_of(lora)["palp.losses"]), TARGET_PROMPT)
    print(f"\n{report}\n{_listing(results)}")


def _require_pack(client: Client) -> None:
    """Raise a ComfyError if ComfyUI started without our nodes."""
    if not client.object_info("PalpTrainLora"):
        raise ComfyError("ComfyUI runs but could not load the PALP nodes: see 'Cannot import' or 'IMPORT FAILED' in its log.")


def _loras(client: Client) -> list[str]:
    """The demo's LoRAs as the stock loader lists them; a Windows server writes backslashes."""
    names = client.choices("LoraLoader", "lora_name")
    return [name for name in names if Path(name).name.startswith(LORA_NAME)]


def _save_pictures(client: Client, outputs: Outputs, results: Path) -> None:
    """Write each saved picture as ``<node id>.png``."""
    for node_id, output in outputs.items():
        for picture in output.get("images", []):
            if picture["type"] == "output":
                (results / f"{node_id}.png").write_bytes(client.view(picture))


def _listing(results: Path) -> str:
    """What lies where, for the terminal."""
    kinds = {"LoRA": "*.safetensors", "pictures": "*_?.png", "chart": "loss.png", "report": "report.txt"}
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
