"""What can go wrong, said so that the user knows which input to change."""

from collections.abc import Sequence

import torch


class PalpError(ValueError):
    """A fault that the user can mend; its text is shown to them as it stands."""


class InputError(PalpError):
    """One input cannot be used as given."""

    def __init__(self, name: str, problem: str) -> None:
        """Say what is wrong with the input ``name``: what was given, what is needed."""
        super().__init__(f"{name}: {problem}")
        self.name = name


class UnstableTrainingError(PalpError):
    """The loss or its gradient stopped being finite."""

    def __init__(self, step: int, sigma: float) -> None:
        """Name the step and the highest noise level of its batch."""
        super().__init__(
            f"Training became unstable: the loss or its gradient is not finite at step {step} (noise level {sigma:.4g}). "
            "Lower learning_rate, or alignment_weight in PALP Loss Config, and run again."
        )
        self.step = step
        self.sigma = sigma


class NoGradientError(PalpError):
    """Something that is to learn got no gradient."""

    def __init__(self, names: Sequence[str]) -> None:
        """Name the first of them, and how many more there are."""
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        super().__init__(f"No gradient reaches {names[0]}{more}: it would not learn.")
        self.names = tuple(names)


SAID_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
"""Words of devices that have no exception for it; the last is cuBLAS's and cuDNN's."""
NO_MEMORY = 2
"""``cudaErrorMemoryAllocation``, which CUDA may report by a general error, later than it happened."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError | getattr(torch, "OutOfMemoryError", MemoryError)):
        return True
    if isinstance(error, getattr(torch, "AcceleratorError", ())) and getattr(error, "error_code", None) == NO_MEMORY:
        return True
    return any(word in str(error) for word in SAID_OF_MEMORY)
