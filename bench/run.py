"""Measure, print tables, write JSON. Contenders take turns step by step, so that drift of the machine cancels; figures are medians."""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from bench.alone import LONG_RUN, fixed_costs, growth, import_seconds, in_own_process, memory_of
from bench.choice import MEMORY, MODELS, SPEED, contender, use_host
from bench.report import alone_report, foreseen_report, ratios, speed_report


def speed(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every step of every contender, in turns, without the first two; and why those that cannot train this model cannot."""
    from bench.pace import PacedRun

    runs, failed = dict[str, PacedRun](), dict[str, str]()
    for name in SPEED if options.model == "sd15" else SPEED[:-1]:  # diffusers' network has the shape of that one
        try:
            runs[name] = PacedRun(*contender(name, options, options.side))
            runs[name].step()
        except RuntimeError as error:
            runs.pop(name, None)
            failed[name] = f"fails: {error.__cause__ or error}".splitlines()[0]
    once, _ = contender("forward pass", options, options.side)
    taken: dict[str, list[float]] = {name: [] for name in (*runs, "forward pass")}
    for turn in range(options.steps + 1):
        for name, run in runs.items():
            taken[name].append(run.step())
        began = time.perf_counter()
        once()
        taken["forward pass"].append(time.perf_counter() - began)
        print(f"\rturn {turn + 1} of {options.steps + 1}", end="", flush=True)
    print()
    return {name: seconds[1:] for name, seconds in taken.items()}, failed


def side_by_side(options: argparse.Namespace) -> None:
    """Speed, memory and fixed costs of all contenders, printed as they are known; everything as JSON into the output folder."""
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    result: dict[str, Any] = {"machine": machine, "model": options.model, "side": options.side, "steps": options.steps}
    result["seconds"], result["failed"] = speed(options)
    result["ratios"] = ratios(result["seconds"])
    print(speed_report(result), flush=True)
    result["memory"] = {name: in_own_process(options, "--one", name, steps=6) for name in MEMORY if name not in result["failed"]}
    result["fixed"] = in_own_process(options, "--fixed", steps=6)
    result["growth"] = growth(options) if options.growth else {}
    result["long run"] = in_own_process(options, "--one", "ours PALP", steps=LONG_RUN) if options.growth else {}
    result["import seconds"] = import_seconds(options)
    (options.out / f"bench_{options.model}_{options.side}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(alone_report(result), flush=True)


def foreseen(options: argparse.Namespace) -> None:
    """What steps of published models take; the bytes as JSON into the output folder."""
    from bench import full_size

    found = full_size.foreseen()
    (options.out / "memory.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(foreseen_report(found), flush=True)


def parse() -> argparse.Namespace:
    """See ``python dev.py bench --help``."""
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    for name in ("--comfyui", "--base", "--out"):
        parser.add_argument(name, type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=MODELS, default="sd15", help="a narrow one of this family, random weights")
    parser.add_argument("--side", type=int, default=16, help="of the latents")
    parser.add_argument("--steps", type=int, default=20, help="turns of every contender")
    parser.add_argument("--growth", action="store_true", help="also how a PALP step grows, and 500 steps for drift and leaks: minutes more")
    parser.add_argument("--memory", action="store_true", help="only this: what steps of published models take, foreseen without their weights")
    parser.add_argument("--one", choices=SPEED, help="only this contender, in this process: its memory as JSON")
    parser.add_argument("--fixed", action="store_true", help="only a PALP run's fixed costs, in this process, as JSON")
    parser.add_argument("--train", type=json.loads, default={}, help="settings of --one, as JSON")
    return parser.parse_args()


def main() -> None:
    """Measure what the options ask for."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    use_host(options)
    if options.one:
        print(json.dumps(memory_of(options)))
    elif options.fixed:
        print(json.dumps(fixed_costs(options)))
    elif options.memory:
        foreseen(options)
    else:
        side_by_side(options)
    os._exit(0)  # the paced loops never end by themselves


if __name__ == "__main__":
    main()
