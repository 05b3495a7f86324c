"""The host's diffusion model as the method's ``Denoiser``."""

import copy
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ...palp_train.denoiser import Conditioning, EpsilonPrediction, Parametrization, Query, RectifiedFlow, SamplePrediction, VelocityPrediction, add_noise
from ...palp_train.errors import InputError
from ...palp_train.lora import Lora
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
        self._keeping = keeping or nullcontext
        self._mixes_rows = family_of(patcher.model).mixes_rows
        self._options = patcher.model_options.get("transformer_options", {})
        self.parametrization = parametrization_of(self._model.model_sampling)
        self.sigmas: Tensor = self._model.model_sampling.sigmas.detach().clone().to(patcher.load_device)
        self.dtype: torch.dtype = self._model.manual_cast_dtype or self._model.get_dtype()

    def __call__(self, noised: Tensor, sigma: Tensor, queries: Sequence[Query]) -> Tensor:
        """See ``palp_train.denoiser.Denoiser``."""
        inputs: dict[int, dict[str, Any]] = {}
        for query in queries:
            if id(query.conditioning) not in inputs:
                inputs[id(query.conditioning)] = self.model_inputs(query.conditioning, noised[:1])
        rows = [inputs[id(query.conditioning)] for query in queries]
        alike = [None if self._mixes_rows else query.personalized for query in queries]
        estimates: list[Tensor | None] = [None] * len(rows)
        for group in _batches(rows, alike):
            with self._lora.rows([queries[row].personalized for row in group]):
                batch = self._apply(noised[group], sigma[group], [rows[row] for row in group])
            for row, estimate in zip(group, batch, strict=True):
                estimates[row] = estimate
        return torch.stack([estimate for estimate in estimates if estimate is not None])

    def _apply(self, noised: Tensor, sigma: Tensor, rows: list[dict[str, Any]]) -> Tensor:
        options = {**self._options, "optimized_attention_override": _pytorch_attention, "cond_or_uncond": [0] * len(rows), "sigmas": sigma}
        with self._keeping() if torch.is_grad_enabled() else nullcontext():
            return self._model.apply_model(noised, sigma, transformer_options=options, **comfy.samplers.cond_cat(rows))

    def to_trace(self, inputs: Mapping[int, dict[str, Any]], sigmas: Tensor) -> "HostDenoiser":
        """The same denoiser for tensors without data: it reads these inputs, by the conditioning's id, and these noise levels.

        It is without the user's patches, which may keep what they are given.
        """
        clone = copy.copy(self)
        clone.sigmas, clone._options = sigmas, {}
        clone.model_inputs = lambda conditioning, latent: inputs[id(conditioning)]
        return clone

    def model_inputs(self, conditioning: Conditioning, latent: Tensor) -> dict[str, Any]:
        """What the host's model makes of a conditioning (cross attention, pooled output with sizes ...), for one row of such latents, (1, C, H, W)."""
        conds = [{**conditioning, "model_conds": {}}]
        (encoded,) = comfy.samplers.encode_model_conds(self._model.extra_conds, conds, latent, latent.device, "positive", latent_image=latent)
        return {name: cond.process_cond(batch_size=1, area=None, device=latent.device) for name, cond in encoded["model_conds"].items()}


@contextmanager
def differentiable_attention() -> Generator[None, None, None]:
    """Within: the host's networks attend by PyTorch's own attention; others write in place or have no backward pass.

    ``HostDenoiser`` asks for it through the host's own option as well, which overrules what users have patched in, but not every
    network hands that option on.
    """
    names = ("optimized_attention", "optimized_attention_masked")
    networks = [vars(module) for path, module in list(sys.modules.items()) if path.startswith("comfy.ldm.") and module is not None]
    before = [(table, name, table[name]) for table in networks for name in names if name in table]
    try:
        for table, name, _ in before:
            table[name] = attention_pytorch
        yield
    finally:
        for table, name, attention in before:
            table[name] = attention


def _pytorch_attention(_attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


def _batches(rows: Sequence[dict[str, Any]], alike: Sequence[bool | None]) -> list[list[int]]:
    """Row numbers, grouped by what can go through the network together: inputs of one size, and the same value in ``alike``."""
    groups: list[list[int]] = []
    for number, row in enumerate(rows):
        for group in groups:
            if alike[group[0]] == alike[number] and comfy.samplers.cond_equal_size(rows[group[0]], row):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups
