"""Placeholders: found as whole words, replaced where found, refused where they cannot stand."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from palp_train.errors import InputError
from palp_train.prompts import PromptSet, Subject, has_placeholder, prompt_set, replace_placeholders

FORBIDDEN = ["(", ")", "{", "}", ":", "\\", " ", "\t", "\n", "\u00a0", "\x00", "\u200b"]

placeholders = st.one_of(
    st.sampled_from(["[V]", "[V1]", "[V2]", "sks", "<cat>", "v.1", "*", "\u015d", "a-b", "$^", "+?"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=0x24F), min_size=1, max_size=4),
).filter(lambda word: word.isprintable() and not set(word) & set(FORBIDDEN))


@st.composite
def prompts_with_pieces_of(draw, word):
    pieces = st.sampled_from([word, word.upper(), word[:1], word[1:], " ", ", ", "'s", "_", "a", "é", "7", "-", "."])
    return "".join(draw(st.lists(pieces, max_size=8)))


@st.composite
def words_and_prompts(draw):
    word = draw(placeholders)
    return word, draw(prompts_with_pieces_of(word))


def stands_whole(prompt, word):
    """The same question answered character by character."""

    def in_a_word(position):
        return 0 <= position < len(prompt) and (prompt[position].isalnum() or prompt[position] == "_")

    starts = [n for n in range(len(prompt)) if prompt.startswith(word, n)]
    return any(not in_a_word(start - 1) and not in_a_word(start + len(word)) for start in starts)


# Finding and replacing


@given(words_and_prompts())
def test_a_placeholder_is_found_just_where_it_stands_as_a_whole_word(case):
    word, prompt = case
    assert has_placeholder(prompt, word) == stands_whole(prompt, word)


@pytest.mark.parametrize(
    ("prompt", "placeholder", "found"),
    [
        ("a photo of [V]", "[V]", True),
        ("[V]", "[V]", True),
        ("[V]'s hat, in Paris", "[V]", True),
        ("([V]:1.2)", "[V]", True),
        ("a photo of [v]", "[V]", False),
        ("a photo of SKS", "sks", False),
        ("a photo of sksy", "sks", False),
        ("a photo of my_sks", "sks", False),
        ("a photo of sks2", "sks", False),
        ("a photo of [V1]", "[V]", False),
        ("a photo of éric", "ric", False),
        ("a photo of vX1", "v.1", False),
        ("", "[V]", False),
    ],
)
def test_matching_is_case_sensitive_and_of_whole_words(prompt, placeholder, found):
    assert has_placeholder(prompt, placeholder) is found


@given(words_and_prompts(), st.sampled_from(["cat", "wooden toy", "\\1 \\g<0>", ""]))
def test_replacing_changes_a_prompt_just_where_the_placeholder_is_found(case, text):
    word, prompt = case
    assume(text != word)
    assert (replace_placeholders(prompt, {word: text}) != prompt) == has_placeholder(prompt, word)


@given(words_and_prompts())
def test_no_placeholder_is_left_once_its_class_stands_in_its_place(case):
    word, prompt = case
    assume(not has_placeholder("cat", word))
    assert not has_placeholder(replace_placeholders(prompt, {word: "cat"}), word)


@given(words_and_prompts())
def test_replacing_a_placeholder_by_itself_changes_nothing(case):
    word, prompt = case
    assert replace_placeholders(prompt, {word: word}) == prompt


def test_every_placeholder_is_replaced_and_the_rest_kept():
    assert replace_placeholders("[V] and [V]'s [V1], [v]", {"[V]": r"a \1 cat"}) == r"a \1 cat and a \1 cat's [V1], [v]"


def test_placeholders_are_replaced_at_once_so_that_one_text_may_hold_another_placeholder():
    assert replace_placeholders("a toy beside [V] and [V]2", {"[V]": "toy", "toy": "bear"}) == "a bear beside toy and [V]2"


def test_of_two_placeholders_that_begin_alike_the_longer_is_found():
    assert replace_placeholders("<v> and <v>-<w>", {"<v>": "cat", "<v>-<w>": "dog"}) == "cat and dog"


# Subjects


@given(placeholders)
def test_every_allowed_placeholder_makes_a_subject(word):
    assume(not has_placeholder("cat", word))
    assert Subject(placeholder=word, class_word="cat", personalization_prompt=f"a photo of {word}").placeholder == word


@pytest.mark.parametrize("character", FORBIDDEN, ids=repr)
@pytest.mark.parametrize("where", ["{}V", "V{}", "V{}V"])
def test_a_placeholder_with_a_character_that_prompts_use_is_refused(character, where):
    word = where.format(character)
    with pytest.raises(InputError, match=r"^placeholder: ") as error:
        Subject(placeholder=word, personalization_prompt=f"a photo of {word}")
    assert ("space" if character.isspace() else repr(character)) in str(error.value) and error.value.name == "placeholder"


@pytest.mark.parametrize("name", ["placeholder", "class_word", "personalization_prompt"])
@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_text_of_a_subject_is_refused_by_name(name, text):
    with pytest.raises(InputError, match=f"^{name}: "):
        Subject(**{name: text})


def test_a_class_word_that_is_the_placeholder_is_refused():
    with pytest.raises(InputError, match=r"^class_word: "):
        Subject(placeholder="sks", class_word="sks dog", personalization_prompt="a photo of sks")


def test_a_class_word_that_only_contains_the_letters_of_the_placeholder_is_allowed():
    assert Subject(placeholder="at", class_word="cat", personalization_prompt="a photo of at").class_word == "cat"


def test_a_personalization_prompt_without_the_placeholder_is_refused_and_says_what_to_write():
    with pytest.raises(InputError, match=r"^personalization_prompt: .*a photo of a cat.*Write \[V\]"):
        Subject(personalization_prompt="a photo of a cat")


# Prompts of a run


CAT = Subject(placeholder="[V1]", class_word=" cat ", personalization_prompt="a photo of [V1]")
TOY = Subject(placeholder="[V2]", class_word="wooden toy", personalization_prompt="a photo of [V2]")


def test_an_empty_clean_prompt_is_the_target_with_every_placeholder_replaced_by_its_class():
    made = prompt_set([CAT, TOY], "a portrait of [V1] and [V2], [V1]'s hat", "  ", "blurry")
    expected = "a portrait of cat and wooden toy, cat's hat"
    assert made == PromptSet(target="a portrait of [V1] and [V2], [V1]'s hat", clean=expected, negative="blurry")


def test_a_given_clean_prompt_is_kept():
    assert prompt_set([CAT], "a sketch of [V1]", " a pencil sketch of a cat ").clean == "a pencil sketch of a cat"


def test_the_negative_prompt_is_empty_unless_given():
    assert prompt_set([CAT], "a sketch of [V1]").negative == ""


@pytest.mark.parametrize("target", ["a sketch of [V1]", "a sketch of [V2]", "a sketch of a cat"])
def test_a_target_that_lacks_one_subject_is_refused(target):
    with pytest.raises(InputError, match=r"^target_prompt: .*does not contain the placeholder"):
        prompt_set([CAT, TOY], target)


@pytest.mark.parametrize("placeholder", ["[V1]", "[V2]"])
@pytest.mark.parametrize("name", ["clean_prompt", "negative_prompt"])
def test_a_prompt_for_the_pretrained_model_with_a_placeholder_is_refused_and_names_the_class(name, placeholder):
    with pytest.raises(InputError, match=f"^{name}: ") as error:
        prompt_set([CAT, TOY], "a sketch of [V1] and [V2]", **{name: f"a photo of {placeholder}"})
    assert {"[V1]": "cat", "[V2]": "wooden toy"}[placeholder] in str(error.value)


@pytest.mark.parametrize("order", [1, -1])
def test_a_class_word_that_is_another_subjects_placeholder_is_refused(order):
    subjects = [Subject(placeholder="[V]", class_word="toy"), Subject(placeholder="toy", class_word="bear", personalization_prompt="a toy")]
    with pytest.raises(InputError):
        prompt_set(subjects[::order], "a toy beside [V]")
