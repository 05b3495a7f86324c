"""Everything that is to learn has to get a gradient in the first step that should give it one."""

import pytest
import torch
from small_models import PERSONAL, GaussianDenoiser
from training_runs import NONE, gaussian_task

from palp_train.batch import Picture
from palp_train.config import TrainConfig
from palp_train.errors import NoGradientError, PalpError
from palp_train.trainer import Learner, train

OTHER = "a photo of [W]"


def steps(task, learners, count=3, words=()):
    parameters = [task.denoiser.shift, *words]
    return train(task, parameters, [], TrainConfig(steps=count), NONE, torch.Generator(), learners=learners)


def test_a_parameter_that_no_gradient_reaches_stops_training_before_the_first_step_moves_anything():
    task, dead = gaussian_task(), torch.nn.Parameter(torch.ones(3))
    learners = [Learner(name="the shift", parameter=task.denoiser.shift), Learner(name="layer a", parameter=dead)]
    with pytest.raises(NoGradientError, match="No gradient reaches layer a: it would not learn") as error:
        list(steps(task, learners, words=[dead]))
    assert isinstance(error.value, PalpError) and error.value.names == ("layer a",)
    assert task.denoiser.shift.item() == 0


def test_a_gradient_of_zeros_is_none():
    word = torch.nn.Parameter(torch.tensor(0.0))
    task = gaussian_task(means={PERSONAL: word * 0})
    learners = [Learner(name=f"layer {name}", parameter=word) for name in "abc"]
    with pytest.raises(NoGradientError, match=r"layer a \(and 2 more\)"):
        next(steps(task, learners, words=[word]))


def test_what_gets_a_gradient_trains_to_the_end():
    task = gaussian_task()
    assert len(list(steps(task, [Learner(name="the shift", parameter=task.denoiser.shift)]))) == 3


def two_words(second):
    """A task of two pictures, the second one's word reached by a gradient or not; and a learner for each word."""
    words = [torch.nn.Parameter(torch.tensor(0.0)) for _ in range(2)]
    pictures = [Picture(latent=torch.ones(1, 2, 2), prompt=prompt) for prompt in (PERSONAL, OTHER)]
    means = {PERSONAL: words[0], OTHER: words[1] if second else words[1].detach()}
    task = gaussian_task(denoiser=GaussianDenoiser(), means=means, pictures=pictures)
    named = zip(words, ("[V]", "[W]"), strict=True)
    return task, words, [Learner(name=name, parameter=word, placeholder=name) for word, name in named]


def test_a_word_is_looked_at_in_the_first_step_whose_prompts_hold_it():
    task, words, learners = two_words(second=True)
    assert len(list(steps(task, learners, count=8, words=words))) == 8


def test_a_word_that_no_gradient_reaches_stops_training_when_its_turn_comes():
    task, words, learners = two_words(second=False)
    taken = 0
    with pytest.raises(NoGradientError, match=r"\[W\]"):
        for _ in steps(task, learners, count=50, words=words):
            taken += 1
    prompts = [call.queries[0].conditioning["prompt"] for call in task.denoiser.calls]
    assert prompts == [PERSONAL] * taken + [OTHER]
