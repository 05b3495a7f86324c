"""Text encoders on another device than the model: a second GPU, or the CPU beside the only one, as stock loaders offer.

Where there is no GPU, both are on the CPU.
"""

import pytest
import torch
from devices import other_device
from host_calls import everything, sampled, short_job


@pytest.fixture(scope="module")
def apart(models):
    """The same tiny model as ``models``, its text encoders elsewhere."""
    import tiny_models

    made = tiny_models.sd15(text_device=other_device(models.model.load_device))
    sampled(made)
    return made


def test_training_with_the_text_encoder_elsewhere_gives_everything_back(training, pack, apart):
    module, _ = training
    picture, before = sampled(apart), everything(apart)
    with torch.inference_mode():
        module.run(short_job(pack, apart))
    assert everything(apart) == before
    assert torch.equal(sampled(apart), picture)


def test_the_word_and_the_lora_learn_the_same_wherever_the_text_encoder_runs(training, pack, apart):
    module, job = training
    with torch.inference_mode():
        expected, found = module.run(job), module.run(short_job(pack, apart))
    assert [step.sigma for step in found.steps] == [step.sigma for step in expected.steps]
    for part in ("personalization", "alignment", "gradient_norm"):
        reported = [[getattr(step, part) for step in outcome.steps] for outcome in (found, expected)]
        assert reported[0] == pytest.approx(reported[1], rel=1e-2), part
    words = [outcome.words[0].vectors["clip_l"] for outcome in (found, expected)]
    assert (words[0] - words[1]).abs().mean() < 0.1 * job.train.word_learning_rate  # a tenth of what a step moves them
