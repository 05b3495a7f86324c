"""Every family that we train as a tiny model, by name.

Import this only after the ``host`` fixture: it needs the host's modules.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_base
import tiny_llm_models
import tiny_models
import tiny_t5_models
from tiny_models import Models

FAMILIES: dict[str, Callable[..., Models]] = {
    "sd15": tiny_models.sd15,
    "sd15-v": partial(tiny_models.sd15, model_type=comfy.model_base.ModelType.V_PREDICTION),
    "sd2": tiny_models.sd2,
    "sd2-v": partial(tiny_models.sd2, model_type=comfy.model_base.ModelType.V_PREDICTION),
    "sdxl": tiny_models.sdxl,
    **{name: getattr(tiny_t5_models, name) for name in ("sd3", "sd35", "flux", "chroma", "auraflow", "pixart")},
    **{name: getattr(tiny_llm_models, name) for name in ("hunyuan_dit", "hunyuan_image", "lumina2", "z_image", "qwen_image", "hidream")},
}


def latent_shape(patcher: Any) -> tuple[int, ...]:
    """Of one latent, (C, H, W) or (C, 1, H, W); PixArt's host code divides by zero below 34 x 34."""
    latent_format = patcher.model.latent_format
    side = 34 if type(patcher.model).__name__ == "PixArt" else 8
    return (latent_format.latent_channels, *[1] * (latent_format.latent_dimensions - 2), side, side)
