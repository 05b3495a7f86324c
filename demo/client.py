"""A client of ComfyUI's HTTP and websocket interface.

with Client(server.url) as client:
    outputs = client.run(graph)
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import websocket
from tqdm import tqdm

from demo.errors import ComfyError, GraphRejected, Interrupted, NodeFailed, ServerFailed
from demo.server import OPENER

Graph = Mapping[str, Mapping[str, Any]]
Message = dict[str, Any]
Outputs = dict[str, dict[str, Any]]


class Client:
    """One client of one server; the server reports to it on what it has queued."""

    def __init__(self, url: str) -> None:
        """Connect to the server at ``url``, for example ``http://127.0.0.1:8188``."""
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        self._socket = websocket.create_connection(address, timeout=2, http_no_proxy=["*"])

    def __enter__(self) -> Client:
        """The client, already connected."""
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        self.close()

    def close(self) -> None:
        """Disconnect; what is queued goes on."""
        self._socket.close()

    def run(self, graph: Graph, *, show: bool = False) -> Outputs:
        """Queue ``graph``, wait, and give what its output nodes put out. Raises as queue() and follow() do."""
        return self.follow(self.queue(graph), show=show)

    def queue(self, graph: Graph) -> str:
        """The prompt id under which ``graph``, in API format, now waits.

        Raises:
            GraphRejected: a node or an input is not as the server wants it. Where that spoils only some of the output nodes, the server
                runs the others all the same.
        """
        answer = self._json("/prompt", {"prompt": graph, "client_id": self.client_id})
        if answer.get("node_errors"):
            raise GraphRejected({"error": "The server left out some output nodes.", **answer})
        return answer["prompt_id"]

    def follow(self, prompt_id: str, *, show: bool = False) -> Outputs:
        """What the prompt's output nodes put out, by node id; waits until it has ended.

        Args:
            prompt_id: from queue().
            show: draw a progress bar on the terminal for each node that reports progress.

        Raises:
            NodeFailed: a node raised an exception.
            Interrupted: the run was interrupted.
            ServerFailed: the server ended.
        """
        bars: dict[str, tqdm] = {}
        for message in self.events(prompt_id):
            if show and message["type"] == "progress":
                _draw(bars, message["data"])
        for bar in bars.values():
            bar.close()
        return outputs_of(self.history(prompt_id))

    def events(self, prompt_id: str) -> Iterator[Message]:
        """The server's messages on this prompt, until it has ended, however it ended.

        A binary message (a preview picture) comes as ``{"type": "preview", "data": bytes}``.

        Raises:
            ServerFailed: the server ended.
        """
        while True:
            message = self._receive()
            if message and _concerns(message, prompt_id):
                yield message
                if _is_last(message):
                    return
            # Silence may mean that its last message went by before we listened.
            if not message and self.history(prompt_id):
                return

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The server's record of a prompt that has ended; empty before that."""
        return self._json(f"/history/{prompt_id}").get(prompt_id, {})

    def interrupt(self) -> None:
        """Ask the server to stop what it runs now."""
        self._request("/interrupt", {})

    def object_info(self, node_type: str) -> dict[str, Any]:
        """Inputs and outputs of a node class; empty if the server does not know it."""
        return self._json(f"/object_info/{node_type}").get(node_type, {})

    def choices(self, node_type: str, name: str) -> list[str]:
        """What the combo input ``name`` of a node class offers at this moment."""
        groups = self.object_info(node_type)["input"]
        kind, *options = {**groups.get("required", {}), **groups.get("optional", {})}[name]
        return list(kind) if isinstance(kind, list) else list(options[0]["options"])

    def system_stats(self) -> dict[str, Any]:
        """Versions and devices, in the server's words."""
        return self._json("/system_stats")

    def view(self, picture: Mapping[str, str]) -> bytes:
        """The file of a picture that an output node names by ``filename``, ``subfolder`` and ``type``."""
        return self._request("/view?" + urllib.parse.urlencode(picture))

    def _receive(self) -> Message | None:
        """The next message, or None after a while of silence."""
        try:
            message = self._socket.recv()
        except websocket.WebSocketTimeoutException:
            return None
        except (websocket.WebSocketException, OSError) as error:
            raise ServerFailed(f"The connection to {self.url} broke: {error}. The server's log may say why.") from error
        return {"type": "preview", "data": message} if isinstance(message, bytes) else json.loads(message)

    def _json(self, path: str, body: Any = None) -> Any:
        return json.loads(self._request(path, body) or "null")

    def _request(self, path: str, body: Any = None) -> bytes:
        """The answer to a GET request, or to a POST request where there is a body."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, content, {"Content-Type": "application/json"})
        try:
            with OPENER.open(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise _refusal(error) from error
        except OSError as error:
            raise ServerFailed(f"No answer from {self.url}: {error}. The server's log may say why.") from error


def outputs_of(record: Mapping[str, Any]) -> Outputs:
    """What the output nodes put out, from a prompt's history record.

    Raises:
        NodeFailed: the record tells of a node that raised an exception.
        Interrupted: the record tells of an interruption.
    """
    for kind, details in record["status"]["messages"]:
        if kind == "execution_error":
            raise NodeFailed(details)
        if kind == "execution_interrupted":
            raise Interrupted(f"Interrupted in {details['node_type']} (node {details['node_id']}).")
    return record["outputs"]


def _concerns(message: Message, prompt_id: str) -> bool:
    """Whether the message is on this prompt, or on none in particular."""
    data = message["data"]
    return not isinstance(data, dict) or data.get("prompt_id", prompt_id) == prompt_id


def _is_last(message: Message) -> bool:
    """Whether this is the server's last message on a prompt, sent when its history is complete."""
    return message["type"] == "executing" and message["data"]["node"] is None


def _draw(bars: dict[str, tqdm], progress: Mapping[str, Any]) -> None:
    """Bring the node's bar up to date: begin it, move it, end it when it is full."""
    node, value, total = str(progress["node"]), progress["value"], progress["max"]
    if node not in bars:
        bars[node] = tqdm(total=total, desc=node)
    bars[node].update(value - bars[node].n)
    if value >= total:
        bars.pop(node).close()


def _refusal(error: urllib.error.HTTPError) -> ComfyError:
    """The exception that tells what the server's answer tells."""
    text = error.read().decode("utf-8", errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        return ComfyError(f"{error.code} {error.reason}: {text}")
    return GraphRejected(answer) if "error" in answer else ComfyError(text)
