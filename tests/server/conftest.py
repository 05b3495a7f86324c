"""A real ComfyUI server with this pack, a checkpoint of random weights and a fresh base directory."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A base directory with the pack linked into it; it reads the checkpoints of the development one."""
    if "PALP_DEV_DIR" not in os.environ:
        pytest.fail("These tests start a server: run them by 'python dev.py test'.")
    from dev_tools.host import ensure_base

    made = ensure_base(tmp_path_factory.mktemp("server") / "base", ROOT)
    shared = Path(os.environ["PALP_DEV_DIR"]) / "base"
    (made / "models.yaml").write_text(json.dumps({"shared": {"checkpoints": str(shared / "models" / "checkpoints")}}))
    for picture in (shared / "input").glob("*.png"):
        (made / "input" / picture.name).write_bytes(picture.read_bytes())
    return made


@pytest.fixture(scope="session")
def server(base):
    """The server, started once for all tests."""
    from demo.server import Server

    with Server(Path(os.environ["COMFYUI_PATH"]), base, base / "server.log", extra=["--extra-model-paths-config", str(base / "models.yaml")]) as running:
        yield running


@pytest.fixture
def client(server):
    """A client of its own for each test."""
    from demo.client import Client

    with Client(server.url) as connected:
        yield connected
