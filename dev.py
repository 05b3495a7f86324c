"""One command for everything around the pack.

    python dev.py demo     train and sample through a real ComfyUI server, headless; results in .dev/demo
    python dev.py test     all tests; -k, -m, paths and the like are handed to pytest
    python dev.py serve    ComfyUI with its web page (--port N); what follows -- is handed to ComfyUI
    python dev.py bench    speed and memory side by side with the host's own trainer; JSON in .dev/bench
                           (--full sdxl: a published model at its real size, on the GPU where there is one)
    python dev.py experiment NAME
                           a study of the method, from training to a report with figures; in .dev/experiments
    python dev.py check    format, style and types

It needs nothing but Python and pip. What it installs or makes goes into .dev/ beside this file.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import CHECKPOINT
from dev_tools import environment, host
from dev_tools.files import write_text

CHECKOUT = Path(__file__).resolve().parent
DEV = CHECKOUT / ".dev"


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where a finished set-up has its things."""

    comfyui: Path
    base: Path
    venv: Path

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return environment.python_of(self.venv)


def prepare(comfyui: str | None) -> Workspace:
    """The whole set-up: environment, host, base directory. What a former run finished is not done again.

    Args:
        comfyui: folder of an existing ComfyUI; None or empty means the pinned one.
    """
    DEV.mkdir(exist_ok=True)
    if comfyui:
        folder = host.existing_host(comfyui)
        venv = DEV / f"venv-{environment.fingerprint(str(folder))[:8]}"
    else:
        venv = DEV / "venv"
        folder = host.ensure_pinned_host(DEV, venv)
    environment.install(venv, environment.requirements(CHECKOUT, folder))
    base = host.ensure_base(DEV / "base", CHECKOUT)
    return Workspace(comfyui=folder, base=base, venv=venv)


def ensure_checkpoint(space: Workspace) -> None:
    """Make the checkpoint of random weights that tests and the bench use, and their input picture, in the base directory, once."""
    recipe = environment.fingerprint((CHECKOUT / "bench" / "random_checkpoint.py").read_text(encoding="utf-8"))
    stamp = space.base / "random_checkpoint.sha256"
    if environment.is_stamped(stamp, recipe) and (space.base / "models" / "checkpoints" / CHECKPOINT).is_file():
        return
    print("Making a checkpoint of random weights for tests and the bench", flush=True)
    places = ("--comfyui", str(space.comfyui), "--base", str(space.base))
    subprocess.run([str(space.python), "-m", "bench.random_checkpoint", *places], cwd=CHECKOUT, check=True)
    write_text(stamp, recipe)


def run(command: Sequence[str | Path], variables: Mapping[str, str] | None = None) -> int:
    """Exit status of ``command``, run from the checkout with these environment variables added."""
    child = subprocess.Popen([str(part) for part in command], cwd=CHECKOUT, env={**os.environ, **(variables or {})})
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            status = child.wait()
            return status if status >= 0 else 128 - status  # Ended by a signal: as a shell would count it.
        except KeyboardInterrupt:
            continue  # A terminal sends Ctrl-C to the child too: let it clean up and end.


def run_demo(space: Workspace, rest: Sequence[str]) -> int:
    """Run the main job through a real server and write the results to ``.dev/demo``."""
    places = ("--comfyui", space.comfyui, "--base", space.base, "--results", DEV / "demo")
    return run([space.python, "-m", "demo.run", *places, *rest])


def run_tests(space: Workspace, rest: Sequence[str]) -> int:
    """Run pytest with the arguments ``rest``."""
    ensure_checkpoint(space)
    # The tests run a server beside themselves: PyTorch's threads in two processes would starve each other if they waited by spinning.
    waiting = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    variables = {"COMFYUI_PATH": str(space.comfyui), "PALP_DEV_DIR": str(DEV), **waiting}
    return run([space.python, "-m", "pytest", *rest], variables)


def run_bench(space: Workspace, rest: Sequence[str]) -> int:
    """Measure speed and memory side by side with the host's own trainer; JSON into ``.dev/bench``."""
    ensure_checkpoint(space)
    places = ("--comfyui", space.comfyui, "--base", space.base, "--out", DEV / "bench")
    # The contenders have a thread each, whose helpers would starve each other if they waited by spinning.
    return run([space.python, "-m", "bench.run", *places, *rest], {"OMP_WAIT_POLICY": "PASSIVE"})


def run_experiment(space: Workspace, rest: Sequence[str]) -> int:
    """Carry out a study; its files and its report go into ``.dev/experiments``."""
    environment.install(space.venv, (CHECKOUT / "requirements-experiments.txt").read_text(encoding="utf-8"), "experiments")
    places = ("--comfyui", space.comfyui, "--base", space.base, "--out", DEV / "experiments")
    return run([space.python, "-m", "experiments.run", *places, *rest])


def serve(space: Workspace, rest: Sequence[str]) -> int:
    """Start ComfyUI with its web page; arguments other than ``--port`` are ComfyUI's.

    Raises:
        SystemExit: another program has the port.
    """
    parser = argparse.ArgumentParser(prog="dev.py serve", allow_abbrev=False, add_help=False)
    parser.add_argument("--port", type=int, default=8188)
    options, extra = parser.parse_known_args(rest)
    if host.answers(options.port):
        raise SystemExit(f"--port: something answers at port {options.port} already, perhaps another ComfyUI. Stop it, or give --port another number.")
    ensure_checkpoint(space)
    command = host.server_command(space.comfyui, space.base, options.port, python=str(space.python), extra=extra)
    print(f"\nComfyUI with PALP: http://127.0.0.1:{options.port}  (Ctrl-C stops it)\n", flush=True)
    return run(command)


def check(space: Workspace, rest: Sequence[str]) -> int:
    """Check format, style and types: all three run, and the first failure is the exit status."""
    tools = (("ruff", "format", "--check"), ("ruff", "check"), ("basedpyright", "--pythonpath", space.python))
    statuses = [run([space.python, "-m", *tool, *rest]) for tool in tools]
    return next((status for status in statuses if status), 0)


COMMANDS: dict[str, Callable[[Workspace, Sequence[str]], int]] = {
    "demo": run_demo,
    "test": run_tests,
    "serve": serve,
    "bench": run_bench,
    "experiment": run_experiment,
    "check": check,
}


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and the rest in its order: that belongs to the tool behind the command."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument(
        "--comfyui",
        metavar="PATH",
        default=os.environ.get("COMFYUI_PATH"),
        help="use the ComfyUI in this folder, of any version (default: COMFYUI_PATH, else ComfyUI 0.3.75 from PyPI)",
    )
    options, rest = parser.parse_known_args(arguments[:cut])
    return options, [*rest, *arguments[cut + 1 :]]


def main(arguments: Sequence[str]) -> int:
    """The exit status of the command that ``arguments`` name."""
    options, rest = parse(arguments)
    try:
        return COMMANDS[options.command](prepare(options.comfyui), rest)
    except subprocess.CalledProcessError as error:
        failed = " ".join(error.cmd)
        print(f"\nThis failed, its output is above: {failed}\nThe same command again goes on from here.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the same command again goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
