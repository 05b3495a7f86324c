"""Where the tests' models run, and what comes out the same twice there.

Models are where the host puts them: on a GPU if there is one. Random numbers come from the CPU all the same, so that
they are the same everywhere.

A forward pass gives the same numbers bit by bit each time, on a CPU and on a GPU. A training does so only on a CPU: on
CUDA, the backward pass of attention adds in no fixed order. Two equal trainings then differ by rounding, and Adam makes
that a whole step wherever a gradient is nearly zero.
"""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

TRAINING_IS_EXACT = not torch.cuda.is_available()
"""Whether the same training gives the same numbers bit by bit."""


def compute_in_full_float32() -> None:
    """Let CUDA compute in float32 as a CPU does: its convolutions would round their inputs to the 10 bits of TF32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def other_device(device: torch.device) -> torch.device:
    """A device that is not this one: another GPU, else the CPU; the same one only where there is no GPU."""
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return next((gpu for gpu in gpus if gpu != device), torch.device("cpu"))


def fill_normal(tensor: Tensor, deviation: float, generator: torch.Generator) -> None:
    """Fill a tensor on any device with normal numbers of mean 0, drawn on the CPU."""
    tensor.copy_(deviation * torch.randn(tensor.shape, generator=generator))


def random_states() -> list[bytes]:
    """The states of PyTorch's global generators: the CPU's, and each GPU's."""
    return [bytes(state.tolist()) for state in (torch.get_rng_state(), *torch.cuda.get_rng_state_all())]


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Both hold the same numbers bit by bit, whatever device each is on."""
    assert torch.equal(found.cpu(), expected.cpu())


def assert_same_losses(found: Sequence[float], expected: Sequence[float]) -> None:
    """Both are the losses of one training: bit by bit, or where trainings differ by rounding, nearly so."""
    if TRAINING_IS_EXACT:
        assert list(found) == list(expected)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)  # of a forward pass alone
    assert found == pytest.approx(expected, rel=1e-4)


def assert_same_training(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
) -> None:
    """The first two are what one training has learned, ``other`` is what another seed has.

    They are equal bit by bit, or where trainings differ by rounding, a hundred times nearer than to the other's.
    """
    first, second, third = (_joined(learned, sorted(expected)) for learned in (found, expected, other))
    if TRAINING_IS_EXACT:
        assert torch.equal(first, second)
    assert (first - second).norm() < 0.01 * (third - second).norm()


def _joined(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in names])
