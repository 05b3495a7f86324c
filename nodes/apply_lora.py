"""Apply PALP LoRA: the LoRA into the MODEL, the new word into the CLIP."""

from typing import Any

from comfy_api.latest import io

from ..palp_train.checkpoint import PalpLora
from .host.lora import apply_lora
from .sockets import PalpLoraType


class ApplyPalpLora(io.ComfyNode):
    """Use what was learned."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the node's help page."""
        return io.Schema(
            node_id="ApplyPalpLora",
            display_name="Apply PALP LoRA",
            category="PALP",
            description="Gives a model the LoRA and its text encoder the new word: any CLIP Text Encode after it understands the placeholder.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was trained on, or one of its family."),
                io.Clip.Input("clip", tooltip="Its CLIP."),
                PalpLoraType.Input("palp_lora", tooltip="From PALP Train LoRA or Load PALP LoRA."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="How strongly the LoRA acts; the new word is not scaled."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="With the LoRA."),
                io.Clip.Output(display_name="clip", tooltip="With the new word: write the placeholder in any prompt."),
                io.String.Output(display_name="target_prompt", tooltip="The prompt that the LoRA was aligned to."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, palp_lora: PalpLora, strength: float) -> io.NodeOutput:
        """Patch clones."""
        return io.NodeOutput(*apply_lora(model, clip, palp_lora, strength), palp_lora.target_prompt)
