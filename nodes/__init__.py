"""The nodes, in menu order."""

from comfy_api.latest import ComfyExtension, io

from .apply_lora import ApplyPalpLora
from .demo_model import PalpDemoModel, PalpDemoSubject
from .export_lora import ExportPalpLora
from .load_lora import LoadPalpLora
from .loss_config import PalpLossConfig
from .subject import PalpSubject
from .train_lora import PalpTrainLora


class PalpExtension(ComfyExtension):
    """What the host loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack."""
        return [PalpSubject, PalpLossConfig, PalpTrainLora, ApplyPalpLora, LoadPalpLora, ExportPalpLora, PalpDemoModel, PalpDemoSubject]
