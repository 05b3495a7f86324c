"""How much a step asks of a device: counted at the dispatcher on the narrow SD 1.5 with its full-size CLIP-L, so not noisy."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FORWARD = 369
"""Operations of one forward pass of this network, the unit in which the bounds below were set."""


@pytest.fixture(scope="module")
def models(pack, checkpoint):
    """Each test gets the same ones: training gives them back as they were."""
    import comfy.cli_args
    import comfy.sd

    with torch.inference_mode():
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=True, output_clip=True)
    return SimpleNamespace(model=model, clip=clip, vae=vae)


def counted(pack, models, **settings):
    """What the dispatcher saw of a run's third step, without the optimizer."""
    from bench import contenders
    from bench.watch import OperationCount

    contenders.PACK, before = pack.__name__, contenders.PACK
    try:
        job = contenders.our_job(models, 16, **{"steps": 3, **settings})
    finally:
        contenders.PACK = before
    with import_module(f"{pack.__name__}.nodes.host.training").prepared(job) as training:
        steps = training.steps()
        next(steps), next(steps)
        with OperationCount() as count:
            next(steps)
        steps.close()
    return count


if torch.cuda.is_available():

    def test_the_counts_hold_on_the_cpu_of_this_machine():
        """They are of float32; on a GPU the host computes in other types, and casts are operations."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)

else:

    @pytest.mark.parametrize(
        ("settings", "forward_passes"),
        [
            ({"method": "none", "word_vectors": 0}, 2.6),
            ({"method": "palp", "word_vectors": 0}, 3.8),
            ({"method": "palp"}, 5.2),
        ],
        ids=["plain, no word", "PALP, no word", "PALP, word"],
    )
    def test_a_step_takes_no_more_operations_and_waits_than_it_needs(pack, models, settings, forward_passes):
        count = counted(pack, models, **settings)
        assert count.kernels <= forward_passes * FORWARD
        assert count.indexing <= 10
        assert count.waits <= 1
