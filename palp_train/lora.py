"""A LoRA inside a network that somebody else owns: peft's layers, put in and taken out again. Appendix C."""

import math
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

ADAPTER = "palp"
BASE = "__base__"
"""peft's name for a row of a mixed batch on which no adapter acts."""


class Lora:
    """The adapters of one network, with a switch for each row of a batch.

    Made by ``injected_lora``, which also takes the adapters out again.
    """

    def __init__(self, layers: dict[str, nn.Module], rank: int) -> None:
        """Wrap peft's layers, by the path of the linear layer that each adapts."""
        self.layers = layers
        self.rank = rank
        self._rows: list[str] | None = None
        self._hooks = [layer.register_forward_pre_hook(self._name_adapters, with_kwargs=True) for layer in layers.values()]

    def release(self) -> None:
        """Let go of the layers: they and their parameters would otherwise hold each other until the next garbage collection."""
        for hook in self._hooks:
            hook.remove()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The down and up matrices of every layer, float32."""
        for layer in self.layers.values():
            yield from _matrices(layer)

    def matrices(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Copies of (down, up) by the adapted layer's path, shapes (rank, in) and (out, rank), float32 on the CPU."""
        return {path: cast(tuple[Tensor, Tensor], tuple(m.detach().cpu().clone() for m in _matrices(layer))) for path, layer in self.layers.items()}

    @contextmanager
    def rows(self, personalized: Sequence[bool]) -> Generator[None, None, None]:
        """Within: the LoRA acts on just those rows of the batch. Off rows give the pre-trained model's output.

        Where some are on and some off, the first dimension of what each adapted layer gets has to be the batch.
        """
        self._rows = None if len(set(personalized)) < 2 else [ADAPTER if on else BASE for on in personalized]
        self._switch(off=not any(personalized))
        try:
            yield
        finally:
            self._rows = None
            self._switch(off=False)

    def _switch(self, *, off: bool) -> None:
        for layer in self.layers.values():
            cast(Any, layer)._disable_adapters = off  # peft's public way would also freeze the parameters

    def _name_adapters(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return None if self._rows is None else (args, {**kwargs, "adapter_names": self._rows})


@contextmanager
def injected_lora(network: nn.Module, targets: Iterable[str], rank: int, generator: torch.Generator) -> Generator[Lora, None, None]:
    """Within: the network's linear layers ``targets`` carry a LoRA; after, also on an error, they are the original objects again.

    The LoRA starts as the identity: down is Kaiming-uniform, up is zero, and alpha equals the rank, so its scale is 1.

    Args:
        network: the module to adapt. It must not hold adapters of peft's already.
        targets: paths of its linear layers.
        rank: rank of every adapter.
        generator: draws the down matrices, on the CPU, so that every device starts alike.
    """
    paths = list(targets)
    originals = {path: network.get_submodule(path) for path in paths}
    trained_before = [parameter for parameter in network.parameters() if parameter.requires_grad]  # peft freezes them
    lora = Lora({}, rank)
    try:
        layers = _inject(network, paths, rank)
        for layer in layers.values():
            _initialize(layer, generator)
        lora = Lora(layers, rank)
        yield lora
    finally:
        lora.release()
        for path, original in originals.items():
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, original)
        vars(network).pop("peft_config", None)
        for parameter in trained_before:
            parameter.requires_grad_(True)


def _inject(network: nn.Module, paths: list[str], rank: int) -> dict[str, nn.Module]:
    from peft import LoraConfig, inject_adapter_in_model  # late: it imports much, and the host imports us at every start

    exactly = "|".join(map(re.escape, paths))  # a list would match every path that ends like one of them
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=exactly, init_lora_weights=False)
    inject_adapter_in_model(config, network, adapter_name=ADAPTER, low_cpu_mem_usage=True)  # on "meta": draws no random numbers
    return {path: network.get_submodule(path) for path in paths}


def _initialize(layer: nn.Module, generator: torch.Generator) -> None:
    device = next(layer.get_submodule("base_layer").parameters()).device
    down, up = _adapter_linears(layer)
    values = nn.init.kaiming_uniform_(torch.empty(down.weight.shape), a=math.sqrt(5), generator=generator)
    down.weight = nn.Parameter(values.to(device))
    up.weight = nn.Parameter(torch.zeros(up.weight.shape, device=device))


def _adapter_linears(layer: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    return cast(nn.Linear, layer.get_submodule(f"lora_A.{ADAPTER}")), cast(nn.Linear, layer.get_submodule(f"lora_B.{ADAPTER}"))


def _matrices(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    down, up = _adapter_linears(layer)
    return cast(nn.Parameter, down.weight), cast(nn.Parameter, up.weight)
