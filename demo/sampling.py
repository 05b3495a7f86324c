"""How the demo model's pictures are made, wherever they are made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the host's sampler; the defaults suit the demo model."""

    steps: int = 25
    guidance: float = 3.0
    """Higher finds a little more of the prompt, and draws creatures that face both ways at once."""
    sampler: str = "dpmpp_2m"
    scheduler: str = "normal"
    resolution: int = 64
    """Pixels of a side."""
