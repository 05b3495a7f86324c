"""The file: what was written is what is read, under a name that nobody else has."""

import json
import multiprocessing
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from palp_train.checkpoint import CLASS_WORDS_KEY, FORMAT, FORMAT_KEY, TARGET_PROMPT_KEY, PalpLora, read_checkpoint, read_metadata, write_checkpoint
from palp_train.embedding import WordEmbedding
from palp_train.errors import InputError

TENSORS = {"layer.lora_down.weight": torch.arange(6.0).view(2, 3), "layer.alpha": torch.tensor(2.0)}
OURS = {FORMAT_KEY: FORMAT}


def word(placeholder, class_word, **vectors):
    return WordEmbedding(placeholder=placeholder, class_word=class_word, vectors=vectors)


def saved(folder, words, metadata=None):
    """A LoRA with these words, written and read again."""
    metadata = {**OURS, CLASS_WORDS_KEY: json.dumps({w.placeholder: w.class_word for w in words}), **(metadata or {})}
    made = PalpLora(lora=TENSORS, words=words, metadata=metadata, file="")
    return read_checkpoint(write_checkpoint(folder, "cat", made.tensors(), made.metadata), "cat.safetensors")


def contents(words):
    return [(w.placeholder, w.class_word, {name: v.tolist() for name, v in w.vectors.items()}) for w in words]


# Round trips


def test_the_lora_comes_back_bit_by_bit(tmp_path):
    read = saved(tmp_path, [word("[V]", "cat", clip_l=torch.ones(1, 4))]).lora
    assert set(read) == set(TENSORS) and all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


def test_several_words_come_back_with_their_classes_and_encoders(tmp_path):
    words = [
        word("[V1]", "cat", clip_g=torch.full((2, 3), 2.0), clip_l=torch.full((2, 4), 1.0)),
        word("[V2]", "wooden toy", clip_g=torch.full((1, 3), 4.0), clip_l=torch.full((1, 4), 3.0)),
    ]
    assert sorted(contents(saved(tmp_path, words).words), key=str) == contents(words)


@pytest.mark.parametrize("placeholder", ["v.1", ".", "a.b.clip_l", "ŝ-1", "bundle_emb."])
def test_a_placeholder_with_dots_or_odd_letters_comes_back_whole(tmp_path, placeholder):
    words = [word(placeholder, "cat", clip_l=torch.ones(1, 4))]
    assert contents(saved(tmp_path, words).words) == contents(words)


def test_a_lora_without_words_comes_back_without(tmp_path):
    assert saved(tmp_path, []).words == []


def test_a_trained_word_is_written_as_plain_vectors(tmp_path):
    trained = word("[V]", "cat", clip_l=nn.Parameter(torch.ones(1, 4)))
    (read,) = saved(tmp_path, [trained]).words
    assert list(read.parameters()) == [] and not read.vectors["clip_l"].requires_grad


def test_the_tensors_of_a_word_are_copies():
    vectors = torch.ones(1, 4)
    made = PalpLora(lora={}, words=[word("[V]", "cat", clip_l=vectors)], metadata={}, file="")
    made.tensors()["bundle_emb.[V].clip_l"].zero_()
    assert vectors.all()


def test_metadata_and_target_prompt_come_back(tmp_path):
    read = saved(tmp_path, [], {TARGET_PROMPT_KEY: 'a "sketch" of [V]\nin París', "ss_steps": "500"})
    assert (read.target_prompt, read.metadata["ss_steps"], read.file) == ('a "sketch" of [V]\nin París', "500", "cat.safetensors")


def test_a_file_without_a_target_prompt_has_an_empty_one(tmp_path):
    assert saved(tmp_path, []).target_prompt == ""


def test_a_word_whose_class_the_file_does_not_tell_has_an_empty_class(tmp_path):
    made = PalpLora(lora={}, words=[word("[V]", "cat", clip_l=torch.ones(1, 4))], metadata=OURS, file="")
    (read,) = read_checkpoint(write_checkpoint(tmp_path, "cat", made.tensors(), made.metadata), "").words
    assert read.class_word == ""


# Names


def write(folder, name="cat", value=0.0):
    return write_checkpoint(folder, name, {"value": torch.tensor(value)}, OURS)


def test_the_first_file_is_number_one_in_a_folder_made_for_it(tmp_path):
    assert write(tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "cat_00001.safetensors"


def test_the_counter_goes_on_from_the_highest_not_from_the_first_gap(tmp_path):
    for number in ("00002", "00041"):
        (tmp_path / f"cat_{number}.safetensors").touch()
    assert write(tmp_path).name == "cat_00042.safetensors"


def test_the_counter_counts_beyond_five_digits(tmp_path):
    (tmp_path / "cat_99999.safetensors").touch()
    assert [write(tmp_path).name, write(tmp_path).name] == ["cat_100000.safetensors", "cat_100001.safetensors"]


@pytest.mark.parametrize("other", ["cat_big_00007.safetensors", "my_cat_00007.safetensors", "cat_00007.png", "cat_final.safetensors", "cXt_00007.safetensors"])
def test_files_of_other_names_do_not_move_the_counter(tmp_path, other):
    (tmp_path / other).touch()
    assert write(tmp_path, "c.t" if other.startswith("cX") else "cat").stem.endswith("_00001")


def test_nothing_is_overwritten(tmp_path):
    paths = [write(tmp_path, value=float(n)) for n in range(4)]
    assert [safetensors.torch.load_file(path)["value"].item() for path in paths] == [0.0, 1.0, 2.0, 3.0]


def test_only_the_final_file_is_left(tmp_path):
    path = write(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_another_run_is_writing_is_left_to_it(tmp_path):
    partial = tmp_path / "cat_00001.safetensors.partial"
    partial.write_text("theirs")
    assert (write(tmp_path).name, partial.read_text()) == ("cat_00002.safetensors", "theirs")


class RacingFolder(type(Path())):
    """A folder where another run finishes its file just after ours has looked at what is there."""

    def iterdir(self):
        seen = list(super().iterdir())
        (self / "cat_00001.safetensors").write_text("theirs")
        return iter(seen)


def test_a_file_that_appears_after_the_folder_was_read_is_not_overwritten(tmp_path):
    path = write(RacingFolder(tmp_path))
    assert (path.name, (tmp_path / "cat_00001.safetensors").read_text()) == ("cat_00002.safetensors", "theirs")


def test_two_processes_that_write_one_name_at_once_never_share_a_file(tmp_path):
    jobs = [(tmp_path, "cat", {"value": torch.tensor(float(n))}, OURS) for n in range(60)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paths = pool.starmap(write_checkpoint, jobs, chunksize=1)
    assert [safetensors.torch.load_file(path)["value"].item() for path in paths] == [float(n) for n in range(60)]


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (TENSORS, {"steps": 500}),
        ({"x": torch.ones(2, 3).t()}, {}),
        ({"x": "not a tensor"}, {}),
    ],
    ids=["metadata that is no string", "a tensor that is not contiguous", "no tensor"],
)
def test_a_failed_write_leaves_no_file(tmp_path, tensors, metadata):
    with pytest.raises((TypeError, ValueError)):
        write_checkpoint(tmp_path, "cat", tensors, metadata)
    assert list(tmp_path.iterdir()) == []


# Refusals


def test_a_lora_of_another_program_is_refused_in_words_that_name_it(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / "other.safetensors", metadata={"ss_network_dim": "8"})
    with pytest.raises(InputError, match=r"palp_lora: other\.safetensors is not a PALP LoRA"):
        read_checkpoint(tmp_path / "other.safetensors", "other.safetensors")


def test_a_newer_format_is_refused_with_the_advice_to_update(tmp_path):
    path = write_checkpoint(tmp_path, "cat", TENSORS, {FORMAT_KEY: "2"})
    with pytest.raises(InputError, match=r"cat has format 2; update ComfyUI-PALP"):
        read_checkpoint(path, "cat")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None], ids=["empty", "text", "missing"])
def test_a_file_that_is_no_safetensors_is_refused_as_not_ours(tmp_path, content):
    if content is not None:
        (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is not a PALP LoRA"):
        read_checkpoint(tmp_path / "x.safetensors", "x.safetensors")


def test_a_file_without_metadata_has_none(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / "x.safetensors")
    assert read_metadata(tmp_path / "x.safetensors") == {}
