"""What training does about NaN and about half precision."""

from types import SimpleNamespace

import pytest
import torch
from small_models import GaussianDenoiser
from training_runs import NONE, PALP, gaussian_task, run

from palp_train.config import TrainConfig
from palp_train.errors import PalpError, UnstableTrainingError
from palp_train.trainer import train

# Instability


class Breaking(GaussianDenoiser):
    """Exact before its call of that number, NaN from there on, in value or only in gradient."""

    def __init__(self, call, *, gradient_only=False):
        super().__init__()
        self.last, self.gradient_only = call, gradient_only

    def forward(self, noised, sigma, queries):
        x0 = super().forward(noised, sigma, queries)
        if len(self.calls) < self.last:
            return x0
        return x0 + (self.shift - self.shift.detach()).abs().sqrt() if self.gradient_only else x0 * float("nan")


def broken(denoiser, loss):
    """The error of a run of five steps on it, and the parameter after each finished step and after the error."""
    task = gaussian_task(denoiser=denoiser)
    seen = []
    with pytest.raises(UnstableTrainingError) as error:
        for _ in train(task, [denoiser.shift], [], TrainConfig(steps=5, learning_rate=0.01), loss, torch.Generator()):
            seen.append(denoiser.shift.item())
    return SimpleNamespace(error=error.value, seen=seen, left=denoiser.shift.item())


BREAKS = pytest.mark.parametrize(
    ("denoiser", "loss"),
    [
        (lambda: Breaking(3), NONE),
        (lambda: Breaking(3, gradient_only=True), NONE),
        (lambda: Breaking(5), PALP),
        (lambda: Breaking(6), PALP),
    ],
    ids=["in the loss", "in the gradient", "in the estimate", "in the alignment"],
)


@BREAKS
def test_a_nan_stops_training_at_its_step(denoiser, loss):
    assert broken(denoiser(), loss).error.step == 3


@BREAKS
def test_a_nan_moves_nothing_and_stops_training_before_the_next_step_does(denoiser, loss):
    result = broken(denoiser(), loss)
    assert result.seen[2:] == [result.seen[1]] and result.left == result.seen[1]


def test_the_error_names_the_step_the_noise_level_and_what_to_change():
    denoiser = Breaking(3)
    error = broken(denoiser, NONE).error
    level = denoiser.calls[2].sigma.max().item()
    assert isinstance(error, PalpError) and all(text in str(error) for text in ("step 3", f"noise level {level:.4g}", "learning_rate", "alignment_weight"))


# Half precision


class HalfDenoiser(GaussianDenoiser):
    """A network that computes in float16: its gradients vanish below 6e-8 and overflow above 65504."""

    def __init__(self, gain, dtype=torch.float16):
        super().__init__(dtype=dtype)
        self.gain = gain

    def forward(self, noised, sigma, queries):
        x0 = super().forward(noised, sigma, queries).detach()
        return x0 + self.gain * self.shift.half().expand(x0.shape).float()


def test_a_gradient_that_vanishes_in_half_precision_is_saved_by_loss_scaling():
    task = gaussian_task(denoiser=HalfDenoiser(1e-9))
    run(task, config=TrainConfig(steps=1, learning_rate=0.01), loss=NONE)
    assert task.denoiser.shift.item() != 0


def test_that_gradient_does_vanish_where_the_network_is_not_said_to_be_half():
    task = gaussian_task(denoiser=HalfDenoiser(1e-9, dtype=torch.float32))
    run(task, config=TrainConfig(steps=1, learning_rate=0.01), loss=NONE)
    assert task.denoiser.shift.item() == 0


def test_loss_scaling_changes_neither_the_path_nor_the_reports():
    full, half = (gaussian_task(denoiser=GaussianDenoiser(dtype=dtype)) for dtype in (torch.float32, torch.float16))
    reports = [run(task, config=TrainConfig(steps=4, learning_rate=0.01)) for task in (full, half)]
    said = [[(r.personalization, r.alignment, pytest.approx(r.gradient_norm)) for r in one] for one in reports]
    assert said[0] == said[1] and full.denoiser.shift.item() == pytest.approx(half.denoiser.shift.item(), rel=1e-6)


def test_an_overflow_of_the_scaled_gradient_skips_steps_until_the_scale_fits():
    task, seen = gaussian_task(denoiser=HalfDenoiser(30.0)), []
    for _ in train(task, [task.denoiser.shift], [], TrainConfig(steps=12, learning_rate=1e-3), NONE, torch.Generator()):
        seen.append(task.denoiser.shift.item())
    assert seen[0] == 0 and seen[-1] != 0


def test_a_half_precision_networks_nan_loss_still_stops_training():
    denoiser = Breaking(3)
    denoiser.dtype = torch.float16
    assert broken(denoiser, NONE).error.step == 3


def test_a_half_precision_networks_gradient_that_no_scale_makes_finite_stops_training():
    denoiser = Breaking(1, gradient_only=True)
    denoiser.dtype = torch.float16
    with pytest.raises(UnstableTrainingError):
        run(gaussian_task(denoiser=denoiser), config=TrainConfig(steps=100), loss=NONE)
