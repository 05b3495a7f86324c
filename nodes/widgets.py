"""Widgets from the fields of the library's settings, so that a default or a range is written down once."""

import math
from dataclasses import Field, fields
from typing import Any

from comfy_api.latest import io


def widgets(config: type, *names: str, optional: bool = False) -> list[Any]:
    """Inputs for the named fields of a settings dataclass, in that order; for all of them if none is named."""
    by_name = {item.name: item for item in fields(config)}
    return [_widget(by_name[name], optional) for name in names or by_name]


def _widget(item: Field[Any], optional: bool) -> Any:
    common: dict[str, Any] = {"default": item.default, "tooltip": item.metadata["about"], "optional": optional}
    if "options" in item.metadata:
        return io.Combo.Input(item.name, options=list(item.metadata["options"]), **common)
    if isinstance(item.default, bool):
        return io.Boolean.Input(item.name, **common)
    low, high = item.metadata["low"], item.metadata["high"]
    if isinstance(item.default, int):
        return io.Int.Input(item.name, min=low, max=high, control_after_generate=False if item.name == "seed" else None, **common)
    return io.Float.Input(item.name, min=low, max=high, step=_step(item.default), round=False, **common)


def _step(default: Any) -> float:
    """A tenth of the default's order of magnitude, at most 0.1: 0.1 for 15, 1e-6 for 5e-5; 0.01 for 0 and 1. The page rounds to it."""
    return 0.01 if default in (0, 1) else min(0.1, 10.0 ** (math.floor(math.log10(default)) - 1))
