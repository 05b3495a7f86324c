"""What ``dev.py`` and others share: files that are whole or not there, and ports that are taken."""

import socket

import pytest

from dev_tools.files import write_text, write_whole
from dev_tools.host import answers


def test_a_file_that_was_not_finished_is_not_there(tmp_path):
    def interrupted(partial):
        partial.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_file_stays_until_the_new_one_is_whole(tmp_path):
    file, seen = tmp_path / "file", list[str]()

    def write(partial):
        partial.write_text("new")
        seen.append(file.read_text())

    write_text(file, "old")
    write_whole(file, write)
    assert (seen, file.read_text()) == (["old"], "new")


def test_a_taken_port_is_known():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert answers(port)
    assert not answers(port)
