"""Published models that ``bench --full`` knows, as data: text encoders, autoencoder, precision of users' files.

The networks' sizes are in ``full_size.py``. Lumina 2 and HunyuanDiT are missing: their tokenizers are in users' files.
"""

from dataclasses import dataclass
from typing import Any

LEARNING = {"clip_l", "clip_g", "clip_h", "t5xxl", "pile_t5xl"}
"""Text encoders that can learn a new word."""
WITH_DIFFUSERS = ("sd15", "sdxl")
"""Models that are trained with diffusers + peft too, and for which we have said what ratios we want."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What goes with a network."""

    size: str
    """The network's name in ``full_size.FULL_SIZES``."""
    encoders: tuple[str, ...]
    """Names in ``full_models.ENCODERS``, in the order in which the host's loaders ask for them."""
    clip_type: str
    """What the user chooses in the host's loader."""
    vae: str = "kl, 16 channels"
    """A name in ``full_models.AUTOENCODERS``."""
    dtype: str = "bfloat16"
    """Of the files that users have."""
    limit: int = 300
    """Seconds that one contender may take."""

    @property
    def learns_word(self) -> bool:
        """Whether a text encoder learns a new word."""
        return bool(LEARNING & set(self.encoders))


_CLIPS, _QWEN = ("clip_l", "clip_g"), ("qwen25_7b",)
_HALF: dict[str, Any] = {"vae": "kl, 4 channels", "dtype": "float16", "limit": 120}
_SD3: dict[str, Any] = {"encoders": (*_CLIPS, "t5xxl"), "clip_type": "SD3"}
PUBLISHED = {
    "sd15": Published(size="SD 1.5, 512", encoders=("clip_l",), clip_type="STABLE_DIFFUSION", **_HALF),
    "sd2": Published(size="SD 2.1, 768", encoders=("clip_h",), clip_type="STABLE_DIFFUSION", **_HALF),
    "sdxl": Published(size="SDXL, 1024", encoders=_CLIPS, clip_type="STABLE_DIFFUSION", **_HALF),
    "sd3": Published(size="SD 3 medium, 1024", **_SD3),
    "sd35-medium": Published(size="SD 3.5 medium, 1024", **_SD3),
    "sd35-large": Published(size="SD 3.5 large, 1024", **_SD3),
    "flux": Published(size="Flux dev, 1024", encoders=("clip_l", "t5xxl"), clip_type="FLUX"),
    "chroma": Published(size="Chroma, 1024", encoders=("t5xxl",), clip_type="CHROMA"),
    "auraflow": Published(
        size="AuraFlow, 1024",
        encoders=("pile_t5xl",),
        clip_type="STABLE_DIFFUSION",
        vae="kl, 4 channels",
    ),
    "pixart": Published(size="PixArt alpha, 1024", encoders=("t5xxl",), clip_type="PIXART", vae="kl, 4 channels"),
    "hunyuan-image": Published(
        size="HunyuanImage 2.1, 2048",
        encoders=(*_QWEN, "byt5"),
        clip_type="HUNYUAN_IMAGE",
        vae="hunyuan, 64 channels",
    ),
    "z-image": Published(size="Z-Image, 1024", encoders=("qwen3_4b",), clip_type="LUMINA2"),
    "qwen-image": Published(size="Qwen-Image, 1024", encoders=_QWEN, clip_type="QWEN_IMAGE", vae="wan, 16 channels"),
    "hidream": Published(size="HiDream I1, 1024", encoders=(*_CLIPS, "t5xxl", "llama3_8b"), clip_type="HIDREAM"),
}
