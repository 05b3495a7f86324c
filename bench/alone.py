"""What is measured in a process of its own: memory, growth, fixed costs, import time."""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from importlib import import_module
from typing import Any

from bench.choice import ROOT, models_of, paced

LONG_RUN = 500


def memory_of(options: argparse.Namespace) -> dict[str, float]:
    """Bytes and seconds of the contender ``options.one`` alone; to be called in a process of its own."""
    from bench import contenders

    steps, resident = options.steps, list[float]()
    run, _, device = paced(options.one, options, options.side, **options.train)
    first = run.step()
    seconds: list[float] = []
    with contenders.meter(device) as meter:
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


def fixed_costs(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a whole run beside its steps; to be called in a process of its own."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from bench import contenders

    import folder_paths  # isort: skip  the host's

    part = lambda name: import_module(f"{contenders.PACK}.{name}")  # noqa: E731
    folder_paths.set_output_directory(str(options.out / "fixed"))
    folder_paths.add_model_folder_path("loras", str(options.out / "fixed" / "loras"))
    job = contenders.our_job(models_of(options), options.side, method="palp", steps=options.steps)
    stepped: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: stepped.append(time.perf_counter()))
    began = time.perf_counter()
    outcome = part("nodes.host.training").run(job)
    trained = time.perf_counter()
    part("nodes.train_lora").save(job, outcome, "bench")
    ended = time.perf_counter()
    hook.remove()
    step = statistics.median(after - before for before, after in itertools.pairwise(stepped))
    before, after = stepped[0] - began - step, trained - stepped[-1]
    fixed = before + after + ended - trained
    share = fixed / (fixed + LONG_RUN * step)
    return {"set-up and what the first step takes longer": before, "giving back": after, "saving": ended - trained, "step": step, "share of 500 steps": share}


def command(options: argparse.Namespace, *flags: object, **values: object) -> list[str]:
    """The command for ``bench.run`` with these flags and values, in the places of the options."""
    parts: list[object] = [sys.executable, "-m", "bench.run", *flags]
    for name, value in {"comfyui": options.comfyui, "base": options.base, "out": options.out, **values}.items():
        parts += [f"--{name}", value]
    return [str(part) for part in parts]


def in_own_process(options: argparse.Namespace, *flags: object, **changes: object) -> dict[str, float]:
    """What ``bench.run`` with these flags says, run by itself."""
    parts = command(options, *flags, **{"model": options.model, "side": options.side, **changes})
    done = subprocess.run(parts, cwd=ROOT, check=True, capture_output=True, text=True)
    print(".", end="", flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def growth(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """How a PALP step's time and memory grow with batch, latents, rank and subjects."""
    cases: list[tuple[str, int, dict[str, Any]]] = [(f"batch {size}", 1, {"batch_size": size}) for size in (1, 2, 4, 8)]
    cases += [(f"latents {times * options.side} x {times * options.side}", times, {}) for times in (1, 2)]
    cases += [(f"rank {rank}", 1, {"rank": rank}) for rank in (4, 32, 128)]
    cases += [(f"{subjects} subjects", 1, {"subjects": subjects}) for subjects in (1, 2, 4)]
    measured: dict[str, dict[str, float]] = {}
    for title, times, train in cases:
        measured[title] = in_own_process(options, "--one", "ours PALP", side=times * options.side, steps=6, train=json.dumps(train))
    return measured


def import_seconds(options: argparse.Namespace) -> float:
    """What the pack adds to the server's start, after the host's own modules are there; the median of three."""
    code = (
        f"import sys, time; sys.path[:0] = [{str(options.comfyui)!r}, {str(ROOT)!r}]\n"
        "import comfy.cli_args; comfy.cli_args.args.cpu = True\n"
        "import torch, nodes, comfy_extras.nodes_train\n"
        "from pathlib import Path; from bench.contenders import load_pack\n"
        f"began = time.perf_counter(); load_pack(Path({str(ROOT)!r})); print(time.perf_counter() - began)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=options.out).stdout for _ in range(3)]
    return statistics.median(float(out.splitlines()[-1]) for out in runs)
