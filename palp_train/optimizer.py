"""Adam that leaves out steps whose loss or gradient is not finite, and does not wait for a device to know it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .errors import InputError

SMALLEST_LOSS_SCALE = 1.0
"""Below it float16 gradients overflow however small the loss is made: they are not finite in themselves."""
NEVER = 2**31 - 1
"""Steps after which a loss scale that is to stay 1 would grow."""


class FiniteAdam:
    """Adam over the LoRA and the words, with loss scaling for float16 networks (Micikevicius et al. 2018).

    Ours: Appendix C names no optimizer.
    """

    def __init__(self, lora: Iterable[nn.Parameter], words: Iterable[nn.Parameter], config: TrainConfig, *, half: bool) -> None:
        """Take the parameters, float32, with a learning rate for each kind.

        Args:
            lora: the LoRA's parameters.
            words: the words' vectors; one of both may be empty.
            config: for the learning rates.
            half: whether the network computes in float16.

        Raises:
            InputError: it does, and the device cannot scale losses.
        """
        kinds = ((list(lora), config.learning_rate), (list(words), config.word_learning_rate))
        self.parameters = [parameter for parameters, _ in kinds for parameter in parameters]
        self._optimizer = _adam([{"params": parameters, "lr": rate} for parameters, rate in kinds if parameters])
        self._scaler = _loss_scaler(self.parameters[0].device, half=half)

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        self._optimizer.zero_grad()

    def backward(self, loss: Tensor, share: float = 1.0) -> None:
        """Add this share of the gradient of a loss, a scalar, to the parameters' own; not finite where the loss is not."""
        scaled = self._scaler.scale(loss)
        weight = scaled.detach().mul(0).add_(share)  # 0 times infinity is not a number
        torch.autograd.backward(scaled, weight)

    def gradients(self) -> list[Tensor]:
        """Those that there are."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients together, a scalar; to be asked once a step, before ``step``."""
        self._scaler.unscale_(self._optimizer)
        return nn.utils.get_total_norm(self.gradients())

    def step(self) -> None:
        """Move the parameters, unless a gradient is not finite."""
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def loss_scale(self) -> Tensor:
        """The present one, a scalar; 1 where none is needed."""
        scale: Tensor | None = self._scaler._scale  # its public way waits for the device
        return torch.ones(()) if scale is None else scale


def _adam(groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """In one kernel where the device has one: that one can leave a step out without telling the CPU first."""
    try:
        return torch.optim.Adam(groups, fused=True)
    except RuntimeError:
        return torch.optim.Adam(groups)


def _loss_scaler(device: torch.device, *, half: bool) -> Any:
    """PyTorch's own, which is also what knows without waiting whether all gradients are finite."""
    try:
        _try_loss_scaler(device)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        if half:
            problem = f"{device.type} cannot scale the losses of float16 networks. Choose bf16 or fp32."
            raise InputError("precision", problem) from error
        return NoLossScaler()
    if half:
        return torch.amp.GradScaler(device.type)
    return torch.amp.GradScaler(device.type, init_scale=1.0, growth_interval=NEVER)


def _try_loss_scaler(device: torch.device) -> None:
    """Return quietly if PyTorch's loss scaling works on that device."""
    probe = nn.Parameter(torch.ones((), device=device))
    optimizer, scaler = torch.optim.SGD([probe]), torch.amp.GradScaler(device.type)
    torch.autograd.backward(scaler.scale(probe * 1))
    scaler.step(optimizer)
    scaler.update()


class NoLossScaler:
    """In the place of a ``GradScaler`` on devices that have none: looks itself whether gradients are finite, and waits."""

    _scale = None

    def scale(self, loss: Tensor) -> Tensor:
        """The loss as it is."""
        return loss

    def unscale_(self, _optimizer: torch.optim.Optimizer) -> None:
        """There is nothing to undo."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step, unless a gradient is not finite."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if nn.utils.get_total_norm(gradients).isfinite():
            optimizer.step()

    def update(self) -> None:
        """There is nothing to change."""
