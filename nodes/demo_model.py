"""PALP Demo Model: a small model to try everything with."""

from comfy_api.latest import io

from .host.demo_model import load_demo_model


class PalpDemoModel(io.ComfyNode):
    """Load the model that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the node's help page."""
        return io.Schema(
            node_id="PalpDemoModel",
            display_name="PALP Demo Model",
            category="PALP",
            description="Loads the small text-to-image model that comes with this pack: pictures of 64 x 64 pixels, trained in a minute on any CPU.",
            inputs=[],
            outputs=[io.Model.Output(display_name="model"), io.Clip.Output(display_name="clip"), io.Vae.Output(display_name="vae")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Load."""
        loaded = load_demo_model()
        return io.NodeOutput(loaded.model, loaded.clip, loaded.vae)
