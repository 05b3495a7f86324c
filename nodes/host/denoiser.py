"""The host's diffusion model as the method's ``Denoiser``."""

import copy
import itertools
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import comfy.clip_model
import comfy.model_sampling
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...palp_train.denoiser import (
    Conditioning,
    ConstantConditioning,
    EpsilonPrediction,
    Parametrization,
    Query,
    RectifiedFlow,
    SamplePrediction,
    VelocityPrediction,
    add_noise,
    taken,
)
from ...palp_train.errors import InputError
from ...palp_train.lora import Lora
from ...palp_train.transfer import staying_on, to_device
from .families import family_of


def parametrization_of(model_sampling: Any, name: str = "model") -> Parametrization:
    """What the network predicts: the one of ours that does just what the host's ModelSampling object does.

    Raises:
        InputError: none does, so we do not know how to train it.
    """
    known = (EpsilonPrediction(), VelocityPrediction(getattr(model_sampling, "sigma_data", 1.0)), SamplePrediction(), RectifiedFlow())
    for parametrization in known if not isinstance(model_sampling, comfy.model_sampling.IMG_TO_IMG) else ():
        if _does_the_same(model_sampling, parametrization):
            return parametrization
    kinds = ", ".join(base.__name__ for base in type(model_sampling).__bases__)
    raise InputError(
        name,
        f"its sampling ({kinds}) cannot be trained. Models that predict noise, v, x0 or a flow can; remove the ModelSampling node that changes it.",
    )


def _does_the_same(model_sampling: Any, parametrization: Parametrization) -> bool:
    """Whether both noise an image alike and turn the network's output into x0 alike, at a few levels of the schedule."""
    sigmas = model_sampling.sigmas.detach().cpu().double()
    sigma = sigmas[torch.linspace(0, len(sigmas) - 1, 5).long()]
    image, noise, output = torch.randn(3, len(sigma), 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noised = model_sampling.noise_scaling(sigma, noise.clone(), image.clone())
    moved = model_sampling.calculate_denoised(sigma, output, noised) - model_sampling.calculate_denoised(sigma, 0 * output, noised)
    scale = parametrization.output_scale(sigma).view(-1, 1, 1, 1)
    return torch.allclose(noised, add_noise(image, noise, sigma, parametrization)) and torch.allclose(moved.abs(), (scale * output).abs())


class HostDenoiser:
    """x0 from the host's own ``apply_model``, each row with or without the LoRA."""

    def __init__(self, patcher: Any, lora: Lora | None = None, keeping: Callable[[], AbstractContextManager[None]] | None = None) -> None:
        """Take over a patcher that is loaded.

        Args:
            patcher: comfy.model_patcher.ModelPatcher.
            lora: what its network carries; None: nothing, so that no row can be personalized.
            keeping: what has to be entered for a pass with gradient, see ``palp_train.activations``; None: nothing.

        Raises:
            InputError: the model predicts something that we cannot train.
        """
        self._model = patcher.model
        self._lora = lora or Lora({}, 0)
        self._constant: dict[Any, tuple[Conditioning, dict[str, Any]]] = {}
        self._keeping = keeping or nullcontext
        self._family = family_of(patcher.model)
        self._options = patcher.model_options.get("transformer_options", {})
        self.parametrization = parametrization_of(self._model.model_sampling)
        self.sigmas: Tensor = self._model.model_sampling.sigmas.detach().clone().to(patcher.load_device)
        self.dtype: torch.dtype = self._model.manual_cast_dtype or self._model.get_dtype()

    def __call__(self, noised: Tensor, sigma: Tensor, queries: Sequence[Query]) -> Tensor:
        """See ``palp_train.denoiser.Denoiser``."""
        inputs = self._inputs(queries, noised[:1])
        groups = _batches(inputs, [query.personalized for query in queries], mixed=self._family.mixes_rows)
        estimates: list[Tensor] = []
        for group in groups:
            with self._lora.rows(sum(queries[row].personalized for row in group)):
                estimates.append(self._apply(taken(noised, group), taken(sigma, group), [inputs[row] for row in group]))
        if len(groups) == 1:
            return taken(estimates[0], _places(groups[0]))
        return taken(torch.cat(estimates), _places(list(itertools.chain(*groups))))

    def _inputs(self, queries: Sequence[Query], latent: Tensor) -> list[dict[str, Any]]:
        """What the network takes beside the latent, for each query; made once for each conditioning."""
        made: dict[int, dict[str, Any]] = {}
        for query in queries:
            conditioning = query.conditioning
            if id(conditioning) not in made:
                made[id(conditioning)] = self._input(conditioning, latent)
        return [made[id(query.conditioning)] for query in queries]

    def _input(self, conditioning: Conditioning, latent: Tensor) -> dict[str, Any]:
        if not isinstance(conditioning, ConstantConditioning):
            return self.model_inputs(conditioning, latent)
        key = id(conditioning), latent.shape
        if key not in self._constant:
            self._constant[key] = conditioning, self.model_inputs(conditioning, latent)
        return self._constant[key][1]

    def _apply(self, noised: Tensor, sigma: Tensor, rows: list[dict[str, Any]]) -> Tensor:
        options = {**self._options, "optimized_attention_override": _pytorch_attention, "cond_or_uncond": [0] * len(rows), "sigmas": sigma}
        staying = staying_on(noised.device) if self._family.brings_tensors else nullcontext()
        with staying, self._keeping() if torch.is_grad_enabled() else nullcontext():
            return self._model.apply_model(noised, sigma, transformer_options=options, **comfy.samplers.cond_cat(rows))

    def to_trace(self, inputs: Mapping[int, dict[str, Any]], sigmas: Tensor) -> "HostDenoiser":
        """The same denoiser for tensors without data: it reads these inputs, by the conditioning's id, and these noise levels.

        It is without the user's patches, which may keep what they are given.
        """
        clone = copy.copy(self)
        clone.sigmas, clone._options, clone._constant = sigmas, {}, {}
        clone.model_inputs = lambda conditioning, latent: inputs[id(conditioning)]
        return clone

    def model_inputs(self, conditioning: Conditioning, latent: Tensor) -> dict[str, Any]:
        """What the host's model makes of a conditioning (cross attention, pooled output with sizes ...), for one row of such latents, (1, C, H, W)."""
        conds = [{**conditioning, "model_conds": {}}]
        with staying_on(latent.device):
            return self._encoded(conds, latent)

    def _encoded(self, conds: list[dict[str, Any]], latent: Tensor) -> dict[str, Any]:
        (encoded,) = comfy.samplers.encode_model_conds(self._model.extra_conds, conds, latent, latent.device, "positive", latent_image=latent)
        made = encoded["model_conds"].items()
        return {name: _on_device(cond.process_cond(batch_size=1, area=None, device=latent.device), latent.device) for name, cond in made}


@contextmanager
def differentiable_attention() -> Generator[None, None, None]:
    """Let the host's networks and CLIPs attend by PyTorch's own attention; others write in place or have no backward pass.

    ``HostDenoiser`` asks for it through the host's own option as well, which overrules what users have patched in, but not
    every network hands that option on.
    """
    replaced = {"optimized_attention": attention_pytorch, "optimized_attention_masked": attention_pytorch}
    modules = list(sys.modules.items())
    networks = [vars(module) for path, module in modules if path.startswith("comfy.ldm.") and module is not None]
    exchanged = [(table, name) for table in networks for name in replaced if name in table]
    exchanged.append((vars(comfy.clip_model), "optimized_attention_for_device"))
    replaced["optimized_attention_for_device"] = _always_pytorch
    before = [table[name] for table, name in exchanged]
    try:
        for table, name in exchanged:
            table[name] = replaced[name]
        yield
    finally:
        for (table, name), attention in zip(exchanged, before, strict=True):
            table[name] = attention


@contextmanager
def differentiable_kernels() -> Generator[None, None, None]:
    """Let the host's networks rotate and normalize by PyTorch's operations.

    The kernels that newer hosts have for it, of ``comfy_kitchen``, have no backward pass. Its own eager forms do.
    """
    package = sys.modules.get("comfy_kitchen")
    eager = sys.modules.get("comfy_kitchen.backends.eager")
    names = [name for name in dir(eager) if name.startswith(KITCHEN_KERNELS) and hasattr(package, name)]
    before = {name: getattr(package, name) for name in names}
    try:
        for name in names:
            setattr(package, name, getattr(eager, name))
        yield
    finally:
        for name, kernel in before.items():
            setattr(package, name, kernel)


KITCHEN_KERNELS = ("apply_rope", "rms_rope", "adaln", "rms_adaln")
"""How the names of kernels begin that networks compute with; others convert weights."""


def _always_pytorch(*_: Any, **__: Any) -> Callable[..., Tensor]:
    return attention_pytorch


def _pytorch_attention(_attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


def _batches(rows: Sequence[dict[str, Any]], personalized: Sequence[bool], *, mixed: bool) -> list[list[int]]:
    """Row numbers, grouped by what can go through the network together, personalized ones first in each group.

    Args:
        rows: the network's inputs; those of one size go together.
        personalized: whether the LoRA is on, for each row.
        mixed: whether rows with and without it may go together.
    """
    groups: list[list[int]] = []
    for number in sorted(range(len(rows)), key=lambda row: not personalized[row]):
        for group in groups:
            alike = mixed or personalized[group[0]] == personalized[number]
            if alike and comfy.samplers.cond_equal_size(rows[group[0]], rows[number]):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _on_device(cond: Any, device: torch.device) -> Any:
    """One of the host's conds with its tensors on that device: some leave a number on the CPU, for each call to bring over."""
    moved = pytree.tree_map_only(Tensor, lambda tensor: to_device(tensor, device), cond.cond)
    return cond._copy_with(moved)


def _places(order: Sequence[int]) -> list[int]:
    """Where each number stands in an order of them."""
    return sorted(range(len(order)), key=lambda place: order[place])
