"""Fixtures for the tests that call the nodes in this process."""

from importlib import import_module

import pytest
from host_calls import family, sampled, short_job


@pytest.fixture(scope="module")
def nodes(pack):
    return import_module(f"{pack.__name__}.nodes")


@pytest.fixture(scope="module")
def errors(pack):
    return import_module(f"{pack.__name__}.palp_train.errors")


@pytest.fixture(scope="module")
def part(pack):
    """Imports a module of the pack by its name."""
    return lambda name: import_module(f"{pack.__name__}.{name}")


@pytest.fixture(scope="module")
def models(request, pack):
    """A tiny SD 1.x, or what a test names, that has been sampled with: the host's own loading leaves its marks."""
    made = family(getattr(request, "param", "sd15"))
    sampled(made)
    return made


@pytest.fixture
def output(tmp_path, host):
    """A fresh output folder, whose loras folder the host lists."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    folder_paths.add_model_folder_path("loras", str(tmp_path / "loras"))
    yield tmp_path
    folder_paths.set_output_directory(before)
    folder_paths.folder_names_and_paths["loras"][0].remove(str(tmp_path / "loras"))


@pytest.fixture
def training(pack, models):
    """(run, job): a short training job on the models, and what runs it."""
    module = import_module(f"{pack.__name__}.nodes.host.training")
    return module, short_job(pack, models)
