"""The host's diffusion model as the method's ``Denoiser``."""

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ...palp_train.denoiser import EpsilonPrediction, Parametrization, Query, VelocityPrediction
from ...palp_train.errors import InputError
from ...palp_train.lora import Lora

ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def attention_projections(network: nn.Module) -> list[str]:
    """Paths of the projection matrices of self- and cross-attention, which the paper trains (Appendix C)."""
    return [path for path, layer in network.named_modules() if isinstance(layer, nn.Linear) and path.endswith(tuple(f".{n}" for n in ATTENTION_PROJECTIONS))]


def parametrization_of(model_sampling: Any) -> Parametrization:
    """What the network predicts, from the host's ModelSampling object.

    Raises:
        InputError: it predicts something that we cannot train yet.
    """
    found = next((parametrization for kind, parametrization in _PARAMETRIZATIONS if isinstance(model_sampling, kind)), None)
    if found is None:
        kinds = ", ".join(base.__name__ for base in type(model_sampling).__bases__)
        raise InputError("model", f"its sampling ({kinds}) cannot be trained yet. Epsilon and v prediction can: SD 1.x, SD 2.x and SDXL.")
    return found


_PARAMETRIZATIONS: Sequence[tuple[type, Parametrization | None]] = (  # a kind before those that it derives from
    (comfy.model_sampling.EDM, None),
    (comfy.model_sampling.V_PREDICTION, VelocityPrediction()),
    (comfy.model_sampling.X0, None),
    (comfy.model_sampling.EPS, EpsilonPrediction()),
)


class HostDenoiser:
    """x0 from the host's own ``apply_model``, each row with or without the LoRA."""

    def __init__(self, patcher: Any, lora: Lora) -> None:
        """Take over a patcher that is loaded and whose network carries ``lora``.

        Raises:
            InputError: the model predicts something that we cannot train yet.
        """
        self._model = patcher.model
        self._lora = lora
        self._options = patcher.model_options.get("transformer_options", {})
        self.parametrization = parametrization_of(self._model.model_sampling)
        self.sigmas: Tensor = self._model.model_sampling.sigmas.detach().clone().to(patcher.load_device)
        self.dtype: torch.dtype = self._model.manual_cast_dtype or self._model.get_dtype()

    def __call__(self, noised: Tensor, sigma: Tensor, queries: Sequence[Query]) -> Tensor:
        """See ``palp_train.denoiser.Denoiser``."""
        inputs: dict[int, dict[str, Any]] = {}
        for query in queries:
            if id(query.conditioning) not in inputs:
                inputs[id(query.conditioning)] = self._model_inputs(query.conditioning, noised[:1])
        rows = [inputs[id(query.conditioning)] for query in queries]
        estimates: list[Tensor | None] = [None] * len(rows)
        for group in _batches(rows):
            with self._lora.rows([queries[row].personalized for row in group]):
                batch = self._apply(noised[group], sigma[group], [rows[row] for row in group])
            for row, estimate in zip(group, batch, strict=True):
                estimates[row] = estimate
        return torch.stack([estimate for estimate in estimates if estimate is not None])

    def _apply(self, noised: Tensor, sigma: Tensor, rows: list[dict[str, Any]]) -> Tensor:
        options = {
            **self._options,
            "optimized_attention_override": lambda _attention, *args, **kwargs: attention_pytorch(*args, **kwargs),  # others lack a backward
            "cond_or_uncond": [0] * len(rows),
            "sigmas": sigma,
        }
        return self._model.apply_model(noised, sigma, transformer_options=options, **comfy.samplers.cond_cat(rows))

    def _model_inputs(self, conditioning: Mapping[str, Any], latent: Tensor) -> dict[str, Any]:
        """What the host's model makes of a conditioning (cross attention, pooled output with sizes ...), for one row."""
        conds = [{**conditioning, "model_conds": {}}]
        (encoded,) = comfy.samplers.encode_model_conds(self._model.extra_conds, conds, latent, latent.device, "positive", latent_image=latent)
        return {name: cond.process_cond(batch_size=1, area=None, device=latent.device) for name, cond in encoded["model_conds"].items()}


def _batches(rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Row numbers, grouped by what can go through the network together."""
    groups: list[list[int]] = []
    for number, row in enumerate(rows):
        for group in groups:
            if comfy.samplers.cond_equal_size(rows[group[0]], row):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups
