"""Export PALP LoRA: files for programs and nodes that do not know this pack."""

from pathlib import Path

from comfy_api.latest import io, ui

from ..palp_train.checkpoint import PalpLora, write_checkpoint
from ..palp_train.config import check_value
from .host.exports import bundle_tensors, diffusers_tensors, kohya_tensors, word_names
from .host.files import check_name, embedding_folder, write_lora
from .sockets import PalpLoraType

FORMATS = ("kohya + embedding", "a1111 bundle", "diffusers")


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
                    "format",
                    options=list(FORMATS),
                    default=FORMATS[0],
                    tooltip="kohya + embedding: files that ComfyUI, A1111 and others read. a1111 bundle: both in one. diffusers: for its load_lora_weights.",
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
        path, said = export(palp_lora, format, name)
        return io.NodeOutput(str(path), ui=ui.PreviewText("\n".join(said)))


def export(palp_lora: PalpLora, format: str, name: str) -> tuple[Path, list[str]]:
    """Write the files; the LoRA's path, and what to tell the user of each."""
    metadata, names = {k: v for k, v in palp_lora.metadata.items() if not k.startswith("palp.")}, word_names(list(palp_lora.words), name)
    if format == "a1111 bundle":
        path = write_lora(name, bundle_tensors(palp_lora, names), metadata)
        return path, [f"LoRA and words: {path}", *(f"{placeholder}: write {word} for it in a prompt of A1111's" for placeholder, word in names.items())]
    tensors = diffusers_tensors(palp_lora) if format == "diffusers" else kohya_tensors(palp_lora.lora)
    path = write_lora(name, tensors, metadata)
    said = [f"LoRA: {path}"]
    for word in palp_lora.words:
        vectors = {encoder: v.contiguous() for encoder, v in word.vectors.items()}
        file = write_checkpoint(embedding_folder(), names[word.placeholder], vectors, {"modelspec.trigger_phrase": word.placeholder})
        said.append(f"{word.placeholder}: {file}; write embedding:{file.stem} for it in a prompt of ComfyUI's")
    return path, said
