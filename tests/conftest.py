"""Fixtures: the real host in this process, with tiny models of its own classes and random weights."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACK = "palp_pack"


def pytest_configure() -> None:
    """Put the host first on the path: it has a module ``nodes`` and we a package of that name."""
    if host := os.environ.get("COMFYUI_PATH"):
        sys.path.insert(0, host)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The host's modules can be imported, and run on the GPU if CUDA knows one, else on the CPU; its user folder is empty."""
    if "COMFYUI_PATH" not in os.environ:
        pytest.fail("These tests need ComfyUI: run them by 'python dev.py test', or set COMFYUI_PATH.")
    import comfy.cli_args
    import torch
    from devices import compute_in_full_float32

    compute_in_full_float32()
    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    import comfy.model_management
    import folder_paths

    folder_paths.set_user_directory(str(tmp_path_factory.mktemp("user")))


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The checkpoint of random weights that the tests and the bench use."""
    from bench import CHECKPOINT

    path = Path(os.environ.get("PALP_DEV_DIR", ROOT / ".dev")) / "base" / "models" / "checkpoints" / CHECKPOINT
    if not path.is_file():
        pytest.fail(f"There is no {path}: run these tests by 'python dev.py test', which makes it.")
    return path


@pytest.fixture(scope="session")
def pack(host: None):
    """This pack, loaded from its path as the host loads it."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module
