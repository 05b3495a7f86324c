"""``bench --full``: a published model with random weights, every contender in a process of its own, a row for each."""

import argparse
import json
import statistics
import subprocess
import time
import traceback
from pathlib import Path
from typing import Any

from bench.alone import command
from bench.choice import FORWARD, ROOT, paced
from bench.full_report import figures_row, head, ratio_report, ratios
from bench.machine import has_gpu, in_words
from bench.published import PUBLISHED, WITH_DIFFUSERS

DIFFUSERS = "diffusers + peft plain"
PLAIN = (
    "host plain",
    "ours plain",
    "ours plain, no word",
    "ours PALP",
    "ours PALP, no word",
    DIFFUSERS,
    FORWARD,
)
ROWS = (*PLAIN, *(f"{name}, checkpointing" for name in PLAIN[:5]))
BATCHES = (1, 8)
LONGEST_SENTENCE = 200
WARM_UP, STEPS, QUICK_STEPS = 2, 10, 5
MARK = "FIGURES "
"""What a line of a contender's log begins with that is not for people."""


def full_sizes(options: argparse.Namespace) -> None:
    """Measure all contenders.

    A row is printed as soon as it is known, and what is known so far is in the output folder as JSON.
    """
    gpu, name = has_gpu(), f"full_{options.full}" + ("_narrow" if options.narrow else "")
    published = PUBLISHED[options.full]
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "machine": in_words(options.comfyui),
        "model": options.full,
        "size": "narrow" if options.narrow else published.size,
        "files": published.dtype,
        "gpu": gpu,
        "rows": rows,
        "ratios": [],
    }
    wanted = options.full in WITH_DIFFUSERS and gpu and not options.narrow
    print("\n".join(head(result)), flush=True)
    for title, batch_size in asked(options):
        log = options.out / f"{name}_logs" / f"{title}, batch {batch_size}.log"
        rows.append({"contender": title, "batch": batch_size, **in_time(options, title, batch_size, log)})
        print(figures_row(rows[-1], gpu=gpu), flush=True)
        result["ratios"] = ratios(rows, wanted=wanted)
        (options.out / f"{name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print("\n".join(ratio_report(result["ratios"])), flush=True)


def asked(options: argparse.Namespace) -> list[tuple[str, int]]:
    """(contender, batch) of each row that the options ask for and that this model can have."""
    names = options.only or (PLAIN if options.quick else ROWS)
    if not PUBLISHED[options.full].learns_word:
        names = [name for name in names if not name.startswith("ours") or "no word" in name]
    if options.full not in WITH_DIFFUSERS:
        names = [name for name in names if name != DIFFUSERS]
    batches = options.batch or (BATCHES[:1] if options.quick else BATCHES)
    rows: list[tuple[str, int]] = []
    for batch_size in batches:
        rows += [(name, batch_size) for name in names]
    return rows


def in_time(options: argparse.Namespace, name: str, batch_size: int, log: Path) -> dict[str, Any]:
    """What a contender says of itself in a process of its own, which is ended when its time is over."""
    limit = options.limit or PUBLISHED[options.full].limit
    flags = ("--narrow",) if options.narrow else ()
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    train = json.dumps({**options.train, "batch_size": batch_size})
    values = {"full": options.full, "one": name, "train": train, "steps": steps, "limit": limit}
    if options.side:
        values["side"] = options.side
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        try:
            parts = command(options, *flags, **values)
            status = subprocess.run(parts, cwd=ROOT, stdout=file, stderr=file, timeout=limit, check=False).returncode
            ended = f"ended with status {status}: see {log.name}" if status else ""
        except subprocess.TimeoutExpired:
            ended = f"ended after {limit:g} s, its time"
    figures = last_figures(log)
    return {"error": ended, **figures} if ended else figures


def last_figures(log: Path) -> dict[str, Any]:
    """What the contender said last; nothing if it did not come so far."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    return json.loads(said[-1]) if said else {}


def one_row(options: argparse.Namespace) -> None:
    """Say what is known of the contender ``options.one``, each time that it is more.

    To be called in a process of its own.
    """
    figures: dict[str, Any] = {}
    try:
        _measure(options, figures)
    except Exception as error:
        cause = error.__cause__ or error
        said = " ".join(str(cause).split()) or type(cause).__name__
        figures["error"] = f"fails: {said[:LONGEST_SENTENCE]}"
        _say(figures)
        traceback.print_exc()  # for the log


def _measure(options: argparse.Namespace, figures: dict[str, Any]) -> None:
    from bench import contenders, full_models
    from bench.watch import watched

    over = time.perf_counter() + options.limit / 2
    latent = full_models.sizes(options.full, narrow=options.narrow).network.latent
    figures["side"] = options.side or latent[-1]
    run, loop, device = paced(options.one, options, figures["side"], **options.train)
    first = run.step()
    for _ in range(WARM_UP):
        run.step()
    seconds: list[float] = []
    with contenders.meter(device) as meter:
        while len(seconds) < options.steps and (not seconds or time.perf_counter() < over):
            seconds.append(run.step())
    step = statistics.median(seconds)
    figures |= {"seconds": seconds, "step": step, "peak": meter.peak_memory}
    if options.one != FORWARD:
        figures["before the first step"] = max(0.0, first - step)  # on a busy machine steps differ by more than that
    if isinstance(loop, contenders.OurRun):
        figures |= {"foreseen": loop.foreseen, "plan": loop.plan, "computed in": loop.dtype}
    _say(figures)
    figures |= watched(run.step, device)
    if "busy seconds" in figures:
        figures["busy"] = figures["busy seconds"] / step
    _say(figures)


def _say(figures: dict[str, Any]) -> None:
    print(f"\n{MARK}{json.dumps(figures)}", flush=True)
