"""Load PALP LoRA: a LoRA of an earlier run."""

from comfy_api.latest import io

from .host.files import file_fingerprint, palp_lora_files, read_palp_lora
from .sockets import PalpLoraType


class LoadPalpLora(io.ComfyNode):
    """Find what was learned."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the node's help page."""
        return io.Schema(
            node_id="LoadPalpLora",
            display_name="Load PALP LoRA",
            category="PALP",
            description="Loads a LoRA that PALP Train LoRA saved, with its new word and its prompts.",
            inputs=[io.Combo.Input("palp_lora", options=palp_lora_files(), tooltip="The LoRAs in your loras folders that hold PALP's own metadata.")],
            outputs=[PalpLoraType.Output(display_name="palp_lora")],
        )

    @classmethod
    def fingerprint_inputs(cls, palp_lora: str) -> str:
        """Read again when the file has changed."""
        return file_fingerprint(palp_lora)

    @classmethod
    def execute(cls, palp_lora: str) -> io.NodeOutput:
        """Read."""
        return io.NodeOutput(read_palp_lora(palp_lora))
