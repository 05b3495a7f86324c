"""The host's own way to bring in weights as they are used (dynamic VRAM), on the CPU, where it would not choose it.

Import this only after the ``host`` fixture, on a host that has it.
"""

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import comfy_aimdo.control
import comfy_aimdo.host_buffer
import comfy_aimdo.model_mmap
import torch
from comfy.model_patcher import ModelPatcherDynamic
from safetensors.torch import save_file
from tiny_models import Models, clip_options

LEAST_BYTES = 16 * 1024
"""Layers with more than so many are brought in as they are used; the others are loaded at once."""


@contextmanager
def dynamic_vram() -> Generator[None, None, None]:
    """Within: whatever the host loads, it loads in this way."""
    _load_library()
    memory, patchers = comfy.memory_management, comfy.model_patcher
    before = memory.aimdo_enabled, patchers.CoreModelPatcher, ModelPatcherDynamic.__new__
    memory.aimdo_enabled, patchers.CoreModelPatcher = True, ModelPatcherDynamic
    ModelPatcherDynamic.__new__ = lambda cls, *_, **__: object.__new__(cls)  # else one for the CPU is of the old kind
    try:
        yield
    finally:
        memory.aimdo_enabled, patchers.CoreModelPatcher, ModelPatcherDynamic.__new__ = before


def _load_library() -> None:
    """What the host does before it imports anything else."""
    if comfy_aimdo.control.lib is None:
        assert comfy_aimdo.control.init("cuda")
        for module in (comfy_aimdo.host_buffer, comfy_aimdo.model_mmap):
            importlib.reload(module)


def from_file(models: Models, folder: Path, stored: torch.dtype, wanted: torch.dtype = torch.float32) -> Models:
    """The same diffusion model, written to a file in one type and loaded by the host, which is told to use another.

    It is computed in float32.
    """
    path = folder / f"{type(models.model.model).__name__}_{stored}.safetensors"
    with torch.inference_mode():
        weights = models.model.model.diffusion_model.state_dict()
        save_file({name: tensor.to(stored).contiguous() for name, tensor in weights.items()}, path)
        return replace(models, model=_loaded(models.model.model, path, wanted))


def clip_from_file(models: Models, folder: Path, stored: torch.dtype) -> Models:
    """The same text encoders, written to a file in one type and loaded by the host to be computed in float32."""
    original, path = models.clip, folder / f"{type(models.clip.cond_stage_model).__name__}_{stored}.safetensors"

    class Target:
        params: dict[str, Any] = {}  # noqa: RUF012  the host's own shape
        clip = type(original.cond_stage_model)
        tokenizer = type(original.tokenizer)

    with torch.inference_mode():
        weights = original.cond_stage_model.state_dict()
        save_file({name: tensor.to(stored).contiguous() for name, tensor in weights.items()}, path)
        state = comfy.utils.load_torch_file(str(path))
        clip = comfy.sd.CLIP(Target, state_dict=state, model_options=clip_options())
    return replace(models, clip=clip)


def _loaded(original: Any, path: Path, wanted: torch.dtype) -> Any:
    """A patcher with a model like this one, made from a file as the host's loaders make it."""
    config = type(original.model_config)({**original.model_config.unet_config, "dtype": wanted})
    config.set_inference_dtype(wanted, None if wanted == torch.float32 else torch.float32)
    config.custom_operations = None
    state = comfy.utils.load_torch_file(str(path))
    model = config.get_model(state, "", device=torch.device("cpu"))
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
    model.load_model_weights(state, "", assign=patcher.is_dynamic())
    return patcher


def lent(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers whose weights are brought in as they are used."""
    return [layer for layer in network.modules() if hasattr(layer, "_v")]


def let_large_layers_be_lent(network: torch.nn.Module) -> None:
    """Mark them as the host does on a GPU; on a CPU it then makes a copy of the weight at every use."""
    for layer in network.modules():
        tensors = [tensor for tensor in layer._parameters.values() if tensor is not None]
        nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if hasattr(layer, "comfy_cast_weights") and nbytes > LEAST_BYTES:
            layer._v = None
