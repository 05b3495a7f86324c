"""Export PALP LoRA: files for programs and nodes that do not know this pack."""

from comfy_api.latest import io, ui

from ..palp_train.checkpoint import PalpLora, write_checkpoint
from ..palp_train.config import check_value
from .host.files import check_name, embedding_folder, lora_folder
from .sockets import PalpLoraType

FORMATS = ("kohya + embedding",)


class ExportPalpLora(io.ComfyNode):
    """Share what was learned."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the node's help page."""
        return io.Schema(
            node_id="ExportPalpLora",
            display_name="Export PALP LoRA",
            category="PALP",
            description="Writes the LoRA, and each new word as an embedding file, for the stock Load LoRA node and embedding:name in any prompt.",
            is_output_node=True,
            inputs=[
                PalpLoraType.Input("palp_lora", tooltip="From PALP Train LoRA or Load PALP LoRA."),
                io.Combo.Input(
                    "format", options=list(FORMATS), default=FORMATS[0], tooltip="kohya + embedding: two files that ComfyUI, A1111 and others read."
                ),
                io.String.Input("name", default="my_subject", tooltip="File name; a number is added, and nothing is overwritten."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Of the LoRA's file.")],
        )

    @classmethod
    def execute(cls, palp_lora: PalpLora, format: str, name: str) -> io.NodeOutput:
        """Write."""
        check_value("format", format, FORMATS[0], {"options": FORMATS})
        check_name(name)
        lora = write_checkpoint(lora_folder(), name, palp_lora.lora, {k: v for k, v in palp_lora.metadata.items() if not k.startswith("palp.")})
        said = [f"LoRA: {lora}"]
        for word in palp_lora.words:
            vectors = {encoder: v.contiguous() for encoder, v in word.vectors.items()}
            file = write_checkpoint(embedding_folder(), name, vectors, {"palp.placeholder": word.placeholder})
            said.append(f"{word.placeholder}: {file}; write embedding:{file.stem} for it in a prompt")
        return io.NodeOutput(str(lora), ui=ui.PreviewText("\n".join(said)))
