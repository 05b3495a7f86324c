"""What can go wrong, said so that the user knows which input to change."""

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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; only CUDA has an exception for that, other devices say so in words."""
    said = str(error)
    words = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED")  # the last is cuBLAS's and cuDNN's
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(word in said for word in words)
