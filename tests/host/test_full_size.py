"""Every family at its real size goes through a PALP step, traced without weights: shapes, types, batching, checkpointing."""

from importlib import import_module

import pytest

pytestmark = pytest.mark.slow
GIB = 2**30
MODELS = (
    *("SD 1.5, 512", "SD 2.1, 768", "SDXL, 1024", "SD 3 medium, 1024", "SD 3.5 medium, 1024", "SD 3.5 large, 1024", "Flux dev, 1024", "Chroma, 1024"),
    *("AuraFlow, 1024", "PixArt alpha, 1024", "HunyuanDiT 1.2, 1024", "HunyuanImage 2.1, 2048", "Lumina 2, 1024", "Z-Image, 1024"),
    *("Qwen-Image, 1024", "HiDream I1, 1024"),
)
SD15, SDXL = "SD 1.5, 512", "SDXL, 1024"


def test_every_model_is_listed(pack):
    from bench import full_size

    assert tuple(full_size.FULL_SIZES) == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_a_palp_step_of_a_published_model_takes_no_more_than_a_plain_one(pack, name):
    from bench import full_size

    plan = import_module(f"{pack.__name__}.palp_train.plan").Plan
    size = full_size.FULL_SIZES[name]
    with full_size.step_memory(size, "palp") as palp, full_size.step_memory(size, "none") as none:
        plain, plain_checkpointed = none.peak(plan()), none.peak(plan(checkpointing=True))
        assert plain <= palp.peak(plan(estimate_first=True)) <= 1.02 * plain
        assert palp.peak(plan(checkpointing=True, rows=1)) <= 1.02 * plain_checkpointed < 0.5 * plain
        assert palp.peak(plan()) >= palp.peak(plan(rows=1)) >= palp.peak(plan(estimate_first=True))


@pytest.mark.parametrize(("name", "checkpointing", "limit"), [(SD15, False, 5 * GIB), (SDXL, True, 9 * GIB)])
def test_weights_and_a_step_together_stay_below_what_small_cards_have(pack, name, checkpointing, limit):
    from bench import full_size

    plan, size = import_module(f"{pack.__name__}.palp_train.plan").Plan, full_size.FULL_SIZES[name]
    with full_size.step_memory(size, "palp") as palp:
        assert full_size.weight_bytes(size) + palp.peak(plan(checkpointing=checkpointing)) <= limit
