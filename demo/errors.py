"""What can go wrong at the server, as exceptions whose text is the server's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ComfyError(RuntimeError):
    """Something went wrong at the server; the base of all below."""


class ServerFailed(ComfyError):
    """The server did not start, or ended."""


class Interrupted(ComfyError):
    """The run was interrupted, by us or someone else."""


class GraphRejected(ComfyError):
    """The server refused a graph before running it."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        """Take the server's answer to the request."""
        super().__init__(_rejection_text(answer))


class NodeFailed(ComfyError):
    """A node raised an exception; where, is in the server's log."""

    def __init__(self, details: Mapping[str, Any]) -> None:
        """Take the details from the server's history."""
        super().__init__(f"{details['node_type']} (node {details['node_id']}): {details['exception_message'].strip()}")


def _rejection_text(answer: Mapping[str, Any]) -> str:
    """The server's message and, below it, one line for each input it complains of."""
    error = answer["error"]
    lines = [error if isinstance(error, str) else f"{error['message']} {error.get('details', '')}".strip()]
    for node_id, node in (answer.get("node_errors") or {}).items():
        lines += [f"{node['class_type']} (node {node_id}): {e['message']}: {e['details']}" for e in node["errors"]]
    return "\n".join(lines)
