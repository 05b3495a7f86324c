"""A LoRA inside a network that somebody else owns: layers of ours, put in by peft and taken out again. Appendix C."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .frozen import OwnWeights, WeightReader

if TYPE_CHECKING:
    from .lora_layer import LayersState, LoraLinear

ADAPTER = "palp"


class Lora:
    """The adapters of one network, with a switch for the rows of a batch.

    Made by ``injected_lora``, which also takes the adapters out again.
    """

    def __init__(self, layers: Mapping[str, LoraLinear], rank: int) -> None:
        """Hold the layers, by the path of the linear layer that each adapts."""
        self.layers = layers
        self.rank = rank

    def parameters(self) -> Iterator[nn.Parameter]:
        """The down and up matrices of every layer, float32."""
        for layer in self.layers.values():
            yield layer.down
            yield layer.up

    def matrices(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Copies of (down, up) by the adapted layer's path, shapes (rank, in) and (out, rank), float32 on the CPU."""
        return {path: (_plain(layer.down), _plain(layer.up)) for path, layer in self.layers.items()}

    @contextmanager
    def rows(self, count: int) -> Generator[None, None, None]:
        """Let the LoRA act on the first ``count`` rows of a batch; the others give the pre-trained model's output.

        The first dimension of what each adapted layer gets has to be the batch, unless ``count`` is 0.
        """
        states = self._states()
        for state in states:
            state.copies.refresh(list(self.parameters()))
            state.rows = count
        try:
            yield
        finally:
            for state in states:
                state.rows = None

    def _states(self) -> list[LayersState]:
        """The one that all layers share; none where there are no layers."""
        return [layer.state for layer in list(self.layers.values())[:1]]


def _plain(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().cpu().clone()


@contextmanager
def injected_lora(
    network: nn.Module,
    targets: Iterable[str],
    rank: int,
    generator: torch.Generator,
    reader: WeightReader | None = None,
) -> Generator[Lora, None, None]:
    """Let the network's linear layers ``targets`` carry a LoRA; afterwards they are the original objects again.

    The LoRA starts as the identity: down is Kaiming-uniform, up is zero, and alpha equals the rank, so its scale is 1.

    Args:
        network: the module to adapt. It must not hold adapters of peft's already.
        targets: paths of its linear layers.
        rank: rank of every adapter.
        generator: draws the down matrices, on the CPU, so that every device starts alike.
        reader: how the layers' weights are kept; None: as PyTorch keeps them.
    """
    paths = list(targets)
    originals = {path: network.get_submodule(path) for path in paths}
    trained_before = [parameter for parameter in network.parameters() if parameter.requires_grad]  # peft freezes them
    try:
        layers = _inject(network, paths, rank)
        _share_state(layers.values(), reader or OwnWeights())
        for layer in layers.values():
            _initialize(layer, generator)
        yield Lora(layers, rank)
    finally:
        for path, original in originals.items():
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, original)
        vars(network).pop("peft_config", None)
        for parameter in trained_before:
            parameter.requires_grad_(True)


def _inject(network: nn.Module, paths: list[str], rank: int) -> dict[str, LoraLinear]:
    # Late: peft imports much, and the host imports us at every start.
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    from .lora_layer import LoraLinear

    class OnlyOurLayers(LoraModel):
        """Puts in layers of ours, without asking peft's own dispatchers, which import what is installed beside it."""

        @staticmethod
        def _create_new_module(lora_config: Any, adapter_name: str, target: nn.Module, **given: Any) -> nn.Module:
            return lora_config._custom_modules[type(target)](target, adapter_name, **given)

    exactly = "|".join(map(re.escape, paths))  # a list would match every path that ends like one of them
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=exactly, init_lora_weights=False)
    kinds: dict[type[nn.Module], type[nn.Module]] = {type(network.get_submodule(path)): LoraLinear for path in paths}
    config._register_custom_module(kinds)  # pyright: ignore[reportPrivateUsage]  peft's way in for layers of others
    OnlyOurLayers(network, {ADAPTER: config}, ADAPTER, low_cpu_mem_usage=True)  # on "meta": draws no random numbers
    return {path: cast(LoraLinear, network.get_submodule(path)) for path in paths}


def _share_state(layers: Iterable[LoraLinear], reader: WeightReader) -> None:
    from .lora_layer import LayersState

    state = LayersState(reader)
    for layer in layers:
        layer.state = state


def _initialize(layer: LoraLinear, generator: torch.Generator) -> None:
    device = next(layer.base_layer.parameters()).device
    down = nn.init.kaiming_uniform_(torch.empty(layer.down.shape), a=math.sqrt(5), generator=generator)
    layer.set_matrices(down.to(device), torch.zeros(layer.up.shape, device=device))
