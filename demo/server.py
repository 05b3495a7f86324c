"""A ComfyUI server as a subprocess.

with Server(comfyui, base, log) as server:
    ...  # it answers at server.url
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from demo.errors import ServerFailed
from dev_tools.host import server_command

# The server is on this machine; a proxy in the environment is not for it.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    """A running ComfyUI; as a context manager it is stopped at the end of the block.

    Attributes:
        url: where it answers.
        log: the file with all it printed.
        process: the process itself.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        log: Path,
        *,
        extra: Sequence[str] = (),
        port: int | None = None,
        python: str = sys.executable,
        timeout_seconds: float = 300.0,
    ) -> None:
        """Start ``comfyui`` on the base directory ``base`` and wait until it answers.

        Args:
            comfyui: the folder with ComfyUI's main.py.
            base: a base directory, see ``dev_tools.host.ensure_base``.
            log: file for what the server prints; replaced.
            extra: more arguments for main.py.
            port: None means one that is free.
            python: the interpreter to run it with.
            timeout_seconds: how long to wait for the first answer.

        Raises:
            ServerFailed: it ended or did not answer in time; the text has the end of its log.
        """
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        # Beside the log: a second server on the same base would find the usual database locked.
        database = ("--database-url", f"sqlite:///{log.with_suffix('.db').resolve()}")
        command = server_command(comfyui, base, port, python=python, extra=[*database, *extra])
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            self._wait_until_ready(timeout_seconds)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Server:
        """The server, already running."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.stop()

    def stop(self) -> None:
        """End the process: asked first, forced after ten seconds. Stopping twice is fine."""
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_text(self) -> str:
        """All that the server has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _wait_until_ready(self, timeout_seconds: float) -> None:
        end = time.monotonic() + timeout_seconds
        while not _answers(self.url):
            if self.process.poll() is not None:
                raise ServerFailed(f"ComfyUI ended while starting. {self._log_end()}")
            if time.monotonic() > end:
                raise ServerFailed(f"ComfyUI did not answer within {timeout_seconds:.0f} s. {self._log_end()}")
            time.sleep(0.2)

    def _log_end(self) -> str:
        return f"The end of {self.log}:\n" + "\n".join(self.log_text().splitlines()[-30:])


def free_port() -> int:
    """A port of this machine that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(url: str) -> bool:
    try:
        with OPENER.open(url + "/system_stats", timeout=5):
            return True
    except OSError:
        return False
