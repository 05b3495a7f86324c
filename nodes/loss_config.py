"""PALP Loss Config: how the target prompt is enforced."""

from typing import Any

from comfy_api.latest import io

from ..palp_train.config import LossConfig
from .sockets import PalpLossType
from .widgets import widgets


class PalpLossConfig(io.ComfyNode):
    """How to align."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the node's help page."""
        return io.Schema(
            node_id="PalpLossConfig",
            display_name="PALP Loss Config",
            category="PALP",
            description="How training keeps to the target prompt. Without this node the paper's settings are used, which are its defaults.",
            inputs=widgets(LossConfig),
            outputs=[PalpLossType.Output(display_name="loss")],
        )

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        """Check and bundle."""
        return io.NodeOutput(LossConfig(**settings))
