"""The virtual environment: made once, filled from requirement texts, believed on the word of a stamp."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dev_tools.files import write_text

# The versions that the tests ran on. Older Pythons get the newest torch that still serves them.
TORCH = """\
torch==2.14.1; python_version >= "3.11"
torchvision==0.29.1; python_version >= "3.11"
torchaudio==2.11.0; python_version >= "3.11"
torch; python_version < "3.11"
torchvision; python_version < "3.11"
torchaudio; python_version < "3.11"
torchsde
requests
"""
# Pinned above.
NOT_FROM_HOST = frozenset({"torch", "torchvision", "torchaudio"})


def fingerprint(*texts: str) -> str:
    """SHA-256 of the texts together, as hexadecimal digits."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def is_stamped(stamp: Path, expected: str) -> bool:
    """Whether ``stamp`` says that the work named by the fingerprint ``expected`` is done."""
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == expected


def python_of(venv: Path) -> Path:
    """The interpreter inside ``venv``."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip(venv: Path, *arguments: str) -> None:
    """Run the pip of ``venv``; the user's own pip configuration decides where packages come from.

    Raises:
        CalledProcessError: pip failed; what it printed says why.
    """
    subprocess.run([str(python_of(venv)), "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def ensure_venv(venv: Path) -> None:
    """Make ``venv`` unless it is there and its pip runs; a half-made one is made anew."""
    probe = [str(python_of(venv)), "-m", "pip", "--version"]
    if python_of(venv).exists() and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return
    print(f"Making the virtual environment {venv}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)


def forget_half_installed(venv: Path) -> None:
    """Remove the records of packages whose installation was cut off, which pip would take for installed."""
    packages = venv / "Lib" / "site-packages" if os.name == "nt" else next(venv.glob("lib/python*/site-packages"))
    for record in packages.glob("*.dist-info"):
        # pip writes this file after all the package's own.
        if not (record / "INSTALLER").exists():
            shutil.rmtree(record)


def host_requirements(text: str) -> str:
    """ComfyUI's requirements without the packages that we choose ourselves or leave out."""
    kept = [line for line in text.splitlines() if _name(line) not in NOT_FROM_HOST]
    return "\n".join(kept) + "\n"


def requirements(checkout: Path, comfyui: Path) -> str:
    """All requirements in one text: tools, torch, the host's and the pack's own."""
    return "\n".join(
        (
            (checkout / "requirements-dev.txt").read_text(encoding="utf-8"),
            TORCH,
            host_requirements((comfyui / "requirements.txt").read_text(encoding="utf-8")),
            (checkout / "requirements.txt").read_text(encoding="utf-8"),
        )
    )


def install(venv: Path, text: str, name: str = "installed") -> None:
    """Install the requirements in ``text`` into ``venv``; no pip call at all if the stamp of that name says it was done."""
    stamp = venv / f"{name}.sha256"
    if is_stamped(stamp, fingerprint(text)):
        return
    ensure_venv(venv)
    forget_half_installed(venv)
    wanted = venv / "requirements.txt"
    write_text(wanted, text)
    print(f"Installing into {venv} (minutes on the first run; PyTorch is large)", flush=True)
    pip(venv, "install", "--requirement", str(wanted))
    write_text(stamp, fingerprint(text))


def _name(line: str) -> str:
    """The package that a requirement line names, in lower case; empty for comments and options."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", line)
    return match.group(1).lower() if match else ""
