"""Measure, print tables, write JSON. Contenders take turns step by step, so that drift of the machine cancels; figures are medians."""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from bench.alone import LONG_RUN, fixed_costs, growth, import_seconds, in_own_process, memory_of
from bench.choice import FORWARD, MEMORY, MODELS, NARROW_SIDE, SPEED, paced, use_host
from bench.full import BATCHES, ROWS, STEPS, asked, full_sizes, one_row
from bench.published import PUBLISHED
from bench.report import alone_report, foreseen_report, ratios, speed_report

TURNS = 20


def speed(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every step of every contender, in turns, without the first two; and why those that cannot train this model cannot."""
    runs, failed = dict[str, Any](), dict[str, str]()
    names = SPEED if options.model == "sd15" else SPEED[:-1]  # diffusers' network has the shape of that one
    for name in (*names, FORWARD):
        try:
            runs[name], _, _ = paced(name, options, options.side)
            runs[name].step()
        except RuntimeError as error:
            runs.pop(name, None)
            failed[name] = f"fails: {error.__cause__ or error}".splitlines()[0]
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.steps + 1):
        for name, run in runs.items():
            taken[name].append(run.step())
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
    parser.add_argument("--side", type=int, help=f"of the latents; {NARROW_SIDE} where a model is narrow")
    parser.add_argument("--steps", type=int, help=f"turns of every contender; {TURNS}, of --full {STEPS}")
    parser.add_argument("--growth", action="store_true", help="also how a PALP step grows, and 500 steps for drift and leaks: minutes more")
    parser.add_argument("--memory", action="store_true", help="only this: what steps of published models take, foreseen without their weights")
    add_full(parser)
    alone = parser.add_argument_group("in this process, as JSON")
    alone.add_argument("--one", choices=ROWS, help="only this contender")
    alone.add_argument("--fixed", action="store_true", help="only a PALP run's fixed costs")
    parser.add_argument("--train", type=json.loads, default={}, help="settings of our training in --one and --full, as JSON")
    options = parser.parse_args()
    if options.narrow and options.full != "sd15":
        parser.error("--narrow: only --full sd15 has a narrow model.")
    if options.full and not options.one and not asked(options):
        parser.error(f"--only: {options.full} has none of these contenders; its text encoders may learn no word.")
    return options


def add_full(parser: argparse.ArgumentParser) -> None:
    """The options of ``bench.full``."""
    full = parser.add_argument_group("a published model at its real size, random weights, on the GPU where there is one")
    full.add_argument("--full", choices=PUBLISHED, help="only this")
    full.add_argument("--quick", action="store_true", help="batch 1 without checkpointing, fewer steps")
    full.add_argument("--narrow", action="store_true", help="sd15 with a narrow network and small encoders instead")
    full.add_argument("--only", choices=ROWS, nargs="+", metavar="NAME", help=f"these contenders: {'; '.join(ROWS)}")
    full.add_argument("--batch", type=int, nargs="+", help=f"these batches; {' and '.join(map(str, BATCHES))}")
    full.add_argument("--limit", type=float, help="seconds that a contender may take; 120 for sd15, sd2, sdxl, else 300")


def main() -> None:
    """Measure what the options ask for."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.full and not options.one:
        full_sizes(options)  # without the host: it would take a share of the GPU
        return
    use_host(options)
    if options.full:
        one_row(options)
    else:
        narrow(options)
    os._exit(0)  # the paced loops never end by themselves


def narrow(options: argparse.Namespace) -> None:
    """Measure narrow models, or foresee published ones."""
    options.side, options.steps = options.side or NARROW_SIDE, options.steps or TURNS
    if options.one:
        print(json.dumps(memory_of(options)))
    elif options.fixed:
        print(json.dumps(fixed_costs(options)))
    elif options.memory:
        foreseen(options)
    else:
        side_by_side(options)


if __name__ == "__main__":
    main()
