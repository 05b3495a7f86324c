"""The new word: where its vectors start, and which of them train."""

import pytest
import torch

from palp_train.embedding import WordEmbedding, initial_vectors, trainable_word
from palp_train.prompts import Subject

SUBJECT = Subject(placeholder="<cat>", class_word="tabby cat", personalization_prompt="a photo of <cat>")
TOKENS = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]])


def test_one_vector_starts_at_the_mean_of_the_class_words_tokens():
    assert initial_vectors(TOKENS, 1).tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_several_vectors_go_through_the_class_words_tokens_in_turn(count):
    assert initial_vectors(TOKENS, count).tolist() == [TOKENS[n % 3].tolist() for n in range(count)]


@pytest.mark.parametrize("count", [1, 3])
def test_vectors_are_float32_whatever_the_encoder_holds(count):
    assert initial_vectors(TOKENS.half(), count).dtype == torch.float32


def test_the_mean_of_half_precision_tokens_is_taken_in_float32():
    assert initial_vectors(torch.full((2, 1), 60000.0).half(), 1).isfinite().all()


def test_a_new_word_has_trainable_vectors_for_each_encoder():
    word = trainable_word(SUBJECT, {"clip_l": TOKENS, "clip_g": torch.ones(1, 5)}, 2)
    assert {(name, tuple(v.shape), v.requires_grad) for name, v in word.vectors.items()} == {("clip_l", (2, 2), True), ("clip_g", (2, 5), True)}


def test_a_new_word_carries_its_subjects_placeholder_and_class():
    word = trainable_word(SUBJECT, {"clip_l": TOKENS}, 1)
    assert (word.placeholder, word.class_word) == ("<cat>", "tabby cat")


@pytest.mark.parametrize(("tokens", "count"), [(TOKENS, 1), (TOKENS, 3), (TOKENS[:1], 1)])
def test_training_a_new_word_leaves_the_encoders_own_tokens_alone(tokens, count):
    tokens = tokens.clone()
    before = tokens.clone()
    (vectors,) = trainable_word(SUBJECT, {"clip_l": tokens}, count).parameters()
    with torch.no_grad():
        vectors.add_(1)
    assert torch.equal(tokens, before)


def test_a_new_word_made_where_autograd_is_off_trains_all_the_same():
    with torch.no_grad():
        word = trainable_word(SUBJECT, {"clip_l": TOKENS}, 1)
    assert [v.requires_grad for v in word.parameters()] == [True]


def test_the_parameters_of_a_new_word_are_its_vectors_themselves():
    word = trainable_word(SUBJECT, {"clip_l": TOKENS, "clip_g": TOKENS}, 1)
    assert [id(p) for p in word.parameters()] == [id(v) for v in word.vectors.values()]


def test_a_loaded_word_has_nothing_to_train():
    assert list(WordEmbedding(placeholder="[V]", class_word="cat", vectors={"clip_l": TOKENS}).parameters()) == []
