"""ComfyUI-PALP: prompt-aligned personalization (arXiv:2401.06105) as ComfyUI nodes. The host imports this file."""

from .nodes import PalpExtension

WEB_DIRECTORY = "./js"


async def comfy_entrypoint() -> PalpExtension:
    """Called by the host."""
    return PalpExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
