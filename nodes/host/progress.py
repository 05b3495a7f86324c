"""Progress on the node, and the user's cancel."""

from typing import Any

import comfy.model_management
import comfy.utils


class Progress:
    """The host's progress bar on the node that runs."""

    def __init__(self, total: int) -> None:
        """Start at 0 of ``total`` steps."""
        self._bar: Any = comfy.utils.ProgressBar(total)
        self._total = total
        stop_if_cancelled()

    def show(self, step: int) -> None:
        """Show that ``step`` steps are done; raise the host's own exception if the user has cancelled."""
        stop_if_cancelled()
        self._bar.update_absolute(step, self._total)


def stop_if_cancelled() -> None:
    """Raise the host's own exception if the user has cancelled: its bar alone is too slow to notice."""
    comfy.model_management.throw_exception_if_processing_interrupted()
