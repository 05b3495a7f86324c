"""What was foreseen is remembered from one start to the next; whatever is wrong with the file, nobody is bothered."""

import json
import logging
import os
import re
from contextlib import contextmanager

import pytest
import torch

KEY = "a" * 64


@pytest.fixture
def foreseen(part, tmp_path):
    """The module, as at the host's start, with an empty user folder."""
    import folder_paths

    module, before = part("nodes.host.foreseen"), folder_paths.get_user_directory()
    known = dict(module._found)
    folder_paths.set_user_directory(str(tmp_path / "user"))
    module._found.clear()
    yield module
    folder_paths.set_user_directory(before)
    module._found.clear()
    module._found.update(known)


def restarted(foreseen):
    """The module as after another start of the host."""
    foreseen._found.clear()
    return foreseen


@contextmanager
def nothing_said(caplog):
    """Within: nothing is logged that a user would see."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        yield
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_a_result_is_known_after_the_next_start(foreseen):
    found = foreseen.Pass(kept=3, peak=5)
    foreseen.remember(KEY, found)
    assert restarted(foreseen).recalled(KEY) == found
    assert foreseen.recalled("b" * 64) is None


def test_the_file_holds_digests_and_numbers_and_nothing_else(foreseen):
    key = foreseen.digest("a photo of my secret cat", "/home/me/secret")
    foreseen.remember(key, foreseen.Pass(kept=3, peak=5))
    entry = r'"[0-9a-f]{64}": \[\d+, \d+, "[0-9a-f]{64}"\]'
    assert re.fullmatch(rf'{{"format": \d+, "passes": {{{entry}}}}}', foreseen._path().read_text())
    assert [path.name for path in foreseen._path().parent.iterdir()] == [foreseen.FILE_NAME]


def test_only_the_newest_results_are_kept(foreseen):
    passes = {f"{number:064x}": foreseen.Pass(kept=number, peak=number) for number in range(foreseen.MOST_ENTRIES)}
    foreseen._path().parent.mkdir()
    foreseen._write(passes)
    foreseen.remember(KEY, foreseen.Pass(kept=1, peak=2))
    first, second = list(passes)[:2]
    assert len(foreseen._read()) == foreseen.MOST_ENTRIES
    assert restarted(foreseen).recalled(first) is None
    assert foreseen.recalled(second) == passes[second]
    assert foreseen._path().stat().st_size < foreseen.LARGEST_FILE


def whole_file(foreseen):
    foreseen.remember(KEY, foreseen.Pass(kept=3, peak=5))
    return foreseen._path().read_bytes()


def edited(change):
    """Makes a file whose one entry was changed by hand."""

    def make(foreseen):
        content = json.loads(whole_file(foreseen))
        change(content["passes"][KEY])
        return json.dumps(content).encode()

    return make


WRONG = {
    "empty": lambda _: b"",
    "truncated": lambda foreseen: whole_file(foreseen)[:-20],
    "binary": lambda _: bytes(range(256)),
    "a list": lambda _: b"[1, 2]",
    "another program's": lambda _: b'{"version": 2, "passes": []}',
    "of another format": lambda foreseen: whole_file(foreseen).replace(b'"format": 1', b'"format": 2'),
    "passes of another kind": lambda _: b'{"format": 1, "passes": [3]}',
    "nested without end": lambda _: b"[" * 100_000,
    "a number without end": lambda _: b'{"format": ' + b"1" * 100_000,
    "too large": lambda foreseen: b" " * foreseen.LARGEST_FILE + whole_file(foreseen),
    "another peak": edited(lambda entry: entry.__setitem__(1, 10**15)),
    "a negative peak": edited(lambda entry: entry.__setitem__(1, -5)),
    "text for a number": edited(lambda entry: entry.__setitem__(0, "3")),
    "true for a number": edited(lambda entry: entry.__setitem__(0, True)),
    "no checksum": edited(lambda entry: entry.pop()),
    "an entry of another's": lambda foreseen: whole_file(foreseen).replace(b'"' + KEY.encode(), b'"' + b"b" * 64),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_or_foreign_file_is_ignored_and_replaced(foreseen, caplog, kind):
    content = WRONG[kind](foreseen)
    foreseen._path().parent.mkdir(exist_ok=True)
    foreseen._path().write_bytes(content)
    with nothing_said(caplog):
        assert restarted(foreseen).recalled(KEY) is None
        assert foreseen.recalled("b" * 64) is None
        foreseen.remember(KEY, foreseen.Pass(kept=7, peak=9))
    assert restarted(foreseen).recalled(KEY) == foreseen.Pass(kept=7, peak=9)


def test_entries_that_are_whole_outlive_one_that_is_not(foreseen):
    foreseen.remember("c" * 64, foreseen.Pass(kept=1, peak=2))
    foreseen._path().write_bytes(edited(lambda entry: entry.pop())(foreseen))
    assert restarted(foreseen).recalled("c" * 64) == foreseen.Pass(kept=1, peak=2)


def folder_that_is_a_file(user):
    user.write_bytes(b"")


def folder_in_the_files_place(user):
    (user / "palp_foreseen.json").mkdir(parents=True)


def folder_without_rights(user):
    user.mkdir(mode=0o500)


UNWRITABLE = [folder_that_is_a_file, folder_in_the_files_place]
if getattr(os, "geteuid", lambda: 0)() != 0:  # root, and Windows, write everywhere
    UNWRITABLE.append(folder_without_rights)


@pytest.mark.parametrize("make", UNWRITABLE)
def test_where_nothing_can_be_written_results_last_until_the_host_stops(foreseen, caplog, make):
    user = foreseen._path().parent
    make(user)
    with nothing_said(caplog):
        foreseen.remember(KEY, foreseen.Pass(kept=3, peak=5))
        assert foreseen.recalled(KEY) == foreseen.Pass(kept=3, peak=5)
        assert restarted(foreseen).recalled(KEY) is None
    assert user.is_file() or not [path for path in user.iterdir() if path.is_file()]


def patched_forward(layer):
    layer.forward = lambda *args: type(layer).forward(layer, *args)


def hooked(layer):
    layer.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("patch", [patched_forward, hooked])
def test_a_layer_that_somebody_has_patched_makes_another_network(foreseen, patch):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    before = foreseen.surroundings([network])
    assert foreseen.surroundings([network]) == before
    patch(network[0])
    assert foreseen.surroundings([network]) != before


def test_a_switch_of_the_hosts_makes_other_surroundings_and_its_paths_do_not(foreseen):
    import comfy.cli_args

    network, args = torch.nn.Linear(2, 2), comfy.cli_args.args
    before, cpu_vae, folder = foreseen.surroundings([network]), args.cpu_vae, args.output_directory
    try:
        args.output_directory = "/home/me/pictures"
        assert foreseen.surroundings([network]) == before
        args.cpu_vae = not cpu_vae
        assert foreseen.surroundings([network]) != before
    finally:
        args.cpu_vae, args.output_directory = cpu_vae, folder


def test_code_that_has_changed_has_another_stamp(foreseen, tmp_path):
    file = tmp_path / "layers.py"
    file.write_text("one = 1")
    (tmp_path / "nowhere.py").symlink_to(tmp_path / "missing")
    before = foreseen._stamps([tmp_path])
    assert [stamp[1] for stamp in before] == ["layers.py"]
    os.utime(file, ns=(0, 0))
    assert foreseen._stamps([tmp_path]) != before


def test_the_code_of_the_network_of_its_layers_and_of_this_pack_is_looked_at(foreseen, models):
    folders = foreseen._code_folders([models.model.model])
    names = {name for _, name, _, _ in foreseen._stamps(folders)}
    assert {"openaimodel.py", "ops.py", "model_base.py", "linear.py", "tracing.py", "foreseen.py"} <= names
