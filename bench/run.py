"""Measure, print a table, write JSON. Contenders take turns step by step, so that drift of the machine cancels; figures are medians."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from demo import CHECKPOINT

ROOT = Path(__file__).resolve().parent.parent
SPEED = ("ours plain", "ours plain, no word", "ours PALP", "ours PALP, no word", "host plain", "host plain, checkpointing", "diffusers + peft plain")
MEMORY = ("ours plain", "ours PALP", "host plain")
TARGETS = {  # (numerator, denominator, what we want it to be at most)
    "PALP / host's plain step": ("ours PALP", "host plain", 0.9),
    "PALP / host's plain step, no word in either": ("ours PALP, no word", "host plain", 0.9),
    "ours plain / host's plain step": ("ours plain", "host plain", 0.45),
    "ours plain / host's plain step, no word in either": ("ours plain, no word", "host plain", 0.45),
    "ours plain / diffusers + peft": ("ours plain", "diffusers + peft plain", 1.0),
    "ours plain / diffusers + peft, no word in either": ("ours plain, no word", "diffusers + peft plain", 1.0),
    "PALP in forward passes": ("ours PALP", "forward pass", 6.0),
    "PALP in forward passes, no word": ("ours PALP, no word", "forward pass", 6.0),
}


def contender(name: str, places: argparse.Namespace, side: int, **train: Any) -> tuple[Callable[[], object], Any]:
    """(the loop, its device) of a name in SPEED, on models of its own."""
    import torch

    from bench import contenders

    models = contenders.narrow_sd15(places.base / "models" / "checkpoints" / CHECKPOINT)
    loops: Mapping[str, Callable[[], Callable[[], object]]] = {
        "ours plain": lambda: contenders.ours(models, side, method="none", **train),
        "ours plain, no word": lambda: contenders.ours(models, side, method="none", word_vectors=0, **train),
        "ours PALP": lambda: contenders.ours(models, side, method="palp", **train),
        "ours PALP, no word": lambda: contenders.ours(models, side, method="palp", word_vectors=0, **train),
        "host plain": lambda: contenders.hosts(models, torch.randn(1, 4, side, side), checkpointing=False),
        "host plain, checkpointing": lambda: contenders.hosts(models, torch.randn(1, 4, side, side), checkpointing=True),
        "diffusers + peft plain": lambda: contenders.diffusers_plain(models, side),
        "forward pass": lambda: contenders.forward(models, side),
    }
    return loops[name](), models.model.load_device


def use_host(places: argparse.Namespace) -> None:
    """Put the host first on the path and the pack in place, on the CPU where there is nothing better."""
    sys.path.insert(0, str(places.comfyui))
    import comfy.cli_args
    import torch

    comfy.cli_args.args.cpu = not torch.accelerator.is_available()
    from bench import contenders

    contenders.load_pack(ROOT)


def speed(places: argparse.Namespace, side: int, steps: int) -> dict[str, list[float]]:
    """Seconds of every step of every contender, in turns; the first two of each are left out."""
    from bench.pace import PacedRun

    runs = {name: PacedRun(*contender(name, places, side)) for name in SPEED}
    once, _ = contender("forward pass", places, side)
    taken: dict[str, list[float]] = {name: [] for name in (*SPEED, "forward pass")}
    for turn in range(steps + 2):
        for name, run in runs.items():
            seconds = run.step()
            if turn > 1:
                taken[name].append(seconds)
        began = time.perf_counter()
        once()
        if turn > 1:
            taken["forward pass"].append(time.perf_counter() - began)
        print(f"\rturn {turn + 1} of {steps + 2}", end="", flush=True)
    print()
    return taken


def ratios(taken: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """For each target the ratio of medians, with the quartiles of the ratios turn by turn."""
    result: dict[str, dict[str, float]] = {}
    for title, (above, below, target) in TARGETS.items():
        by_turn = sorted(a / b for a, b in zip(taken[above], taken[below], strict=True))
        quartiles = statistics.quantiles(by_turn, n=4) if len(by_turn) > 1 else [by_turn[0]] * 3
        result[title] = {
            "ratio": statistics.median(taken[above]) / statistics.median(taken[below]),
            "lower quartile": quartiles[0],
            "upper quartile": quartiles[2],
            "target": target,
        }
    return result


def memory_of(name: str, places: argparse.Namespace, side: int, steps: int, train: Mapping[str, Any]) -> dict[str, float]:
    """Bytes and seconds of one contender alone; to be called in a process of its own."""
    from bench import contenders
    from bench.pace import PacedRun

    loop, device = contender(name, places, side, **train)
    run, resident = PacedRun(loop, device), list[float]()
    first = run.step()
    seconds: list[float] = []
    with import_module(f"{contenders.PACK}.nodes.host.meter").Meter(device) as meter:
        for _ in range(steps):
            seconds.append(run.step())
            resident.append(float(meter.in_use()))
    tenth = max(1, steps // 10)
    return {
        "peak": float(meter.peak_memory),
        "after step 20": resident[min(19, steps - 1)],
        "after the last": resident[-1],
        "first step": first,
        "step": statistics.median(seconds),
        "last steps / first steps": statistics.median(seconds[-tenth:]) / statistics.median(seconds[:tenth]),
    }


def in_own_process(places: argparse.Namespace, name: str, side: int, steps: int, **train: Any) -> dict[str, float]:
    """``memory_of`` in a process of its own."""
    command = [sys.executable, "-m", "bench.run", "--comfyui", places.comfyui, "--base", places.base, "--out", places.out, "--side", side]
    command += ["--steps", steps, "--one", name, "--train", json.dumps(train)]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, check=True, capture_output=True, text=True)
    print(".", end="", flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def growth(places: argparse.Namespace, side: int) -> dict[str, dict[str, float]]:
    """How a PALP step's time and memory grow with batch, latents, rank and subjects."""
    cases: list[tuple[str, int, dict[str, Any]]] = [(f"batch {size}", side, {"batch_size": size}) for size in (1, 2, 4, 8)]
    cases += [(f"latents {larger} x {larger}", larger, {}) for larger in (side, 2 * side)]
    cases += [(f"rank {rank}", side, {"rank": rank}) for rank in (4, 32, 128)]
    cases += [(f"{subjects} subjects", side, {"subjects": subjects}) for subjects in (1, 2, 4)]
    return {title: in_own_process(places, "ours PALP", of_side, 6, **train) for title, of_side, train in cases}


def import_seconds(places: argparse.Namespace) -> float:
    """What the pack adds to the server's start, after the host's own modules are there; the median of three."""
    code = (
        f"import sys, time; sys.path[:0] = [{str(places.comfyui)!r}, {str(ROOT)!r}]\n"
        "import comfy.cli_args; comfy.cli_args.args.cpu = True\n"
        "import torch, nodes, comfy_extras.nodes_train\n"
        "from pathlib import Path; from bench.contenders import load_pack\n"
        f"began = time.perf_counter(); load_pack(Path({str(ROOT)!r})); print(time.perf_counter() - began)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=places.out).stdout for _ in range(3)]
    return statistics.median(float(out.splitlines()[-1]) for out in runs)


def report(result: Mapping[str, Any]) -> str:
    """The table, in Markdown."""
    lines = [f"{result['machine']}, latents of {result['side']} x {result['side']}, {result['steps']} turns", "", "| | seconds a step |", "|---|---|"]
    lines += [f"| {name} | {statistics.median(taken):.3f} |" for name, taken in result["seconds"].items()]
    lines += ["", "| ratio | measured (quartiles) | target |", "|---|---|---|"]
    for title, r in result["ratios"].items():
        lines.append(f"| {title} | {r['ratio']:.2f} ({r['lower quartile']:.2f} to {r['upper quartile']:.2f}) | {r['target']:g} |")
    lines += ["", "| peak memory of the process, training | GiB |", "|---|---|"]
    lines += [f"| {name} | {memory['peak'] / 2**30:.2f} |" for name, memory in result["memory"].items()]
    if result["growth"]:
        lines += ["", "| PALP | seconds a step | peak GiB |", "|---|---|---|"]
        lines += [f"| {title} | {one['step']:.2f} | {one['peak'] / 2**30:.2f} |" for title, one in result["growth"].items()]
    if result["long run"]:
        long = result["long run"]
        lines += [
            "",
            f"500 PALP steps: memory after step 500 / after step 20: {long['after the last'] / long['after step 20']:.3f}; "
            f"time of the last steps / of the first: {long['last steps / first steps']:.2f}",
        ]
    lines += ["", f"The pack's import at the server's start: {result['import seconds']:.2f} s"]
    return "\n".join(lines)


def main() -> None:
    """See ``python dev.py bench --help``."""
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    for name in ("--comfyui", "--base", "--out"):
        parser.add_argument(name, type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, default=16, help="of the latents")
    parser.add_argument("--steps", type=int, default=20, help="turns of every contender")
    parser.add_argument("--growth", action="store_true", help="also how a PALP step grows, and 500 steps for drift and leaks: minutes more")
    parser.add_argument("--one", choices=SPEED, help="only this one, in this process: its memory as JSON")
    parser.add_argument("--train", type=json.loads, default={}, help="settings of --one, as JSON")
    options = parser.parse_args()
    use_host(options)
    if options.one:
        print(json.dumps(memory_of(options.one, options, options.side, options.steps, options.train)))
        os._exit(0)  # the paced loop never ends by itself
    options.out.mkdir(parents=True, exist_ok=True)
    taken = speed(options, options.side, options.steps)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "side": options.side,
        "steps": options.steps,
        "seconds": taken,
        "ratios": ratios(taken),
        "memory": {name: in_own_process(options, name, options.side, 6) for name in MEMORY},
        "growth": growth(options, options.side) if options.growth else {},
        "long run": in_own_process(options, "ours PALP", 8, 500) if options.growth else {},
        "import seconds": import_seconds(options),
    }
    (options.out / f"bench_{options.side}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(report(result), flush=True)
    os._exit(0)  # the paced loops never end by themselves


if __name__ == "__main__":
    main()
