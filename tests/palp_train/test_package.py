"""The package as a whole: its equation map, its version, and what importing it brings along."""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import palp_train

ROOT = Path(palp_train.__file__).resolve().parent.parent
MAP = re.findall(r"``(\w+)\.(\w+)``", palp_train.__doc__.split("Here", 1)[1])
MODULES = [module.name for module in pkgutil.iter_modules(palp_train.__path__)]


@pytest.mark.parametrize(("module", "name"), MAP)
def test_every_name_in_the_equation_map_exists(module, name):
    assert hasattr(importlib.import_module(f"palp_train.{module}"), name)


@pytest.mark.parametrize("equation", ["(1)", "(2)", "(4)", "(5)", "(6)", "(7)"])
def test_the_equation_map_holds_every_equation_of_the_method_and_its_function(equation):
    (row,) = [line for line in palp_train.__doc__.splitlines() if line.startswith(f"Eq. {equation}")]
    assert re.search(r"``\w+\.\w+``", row)


@pytest.fixture(scope="module")
def loaded():
    """What a fresh process has loaded once it has imported every module of the library."""
    imports = "; ".join(f"import palp_train.{name}" for name in MODULES)
    code = f"import json, sys; {imports}; print(json.dumps(sorted(sys.modules)))"
    return set(json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout))


def test_a_fresh_process_loads_the_whole_library(loaded):
    assert {f"palp_train.{name}" for name in MODULES} <= loaded and len(MODULES) >= 10


@pytest.mark.parametrize("package", ["comfy", "comfy_api", "folder_paths", "server", "nodes"])
def test_the_library_loads_nothing_of_the_host(loaded, package):
    assert not [name for name in loaded if name.split(".")[0] == package]


@pytest.mark.parametrize("package", ["peft", "transformers", "diffusers"])
def test_the_library_loads_no_heavy_library_until_it_is_used(loaded, package):
    assert not [name for name in loaded if name.split(".")[0] == package]


def test_the_version_is_the_projects():
    assert re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1] == palp_train.__version__
