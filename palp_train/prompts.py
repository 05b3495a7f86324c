"""Prompts and the placeholder that stands for the subject in them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import InputError

FORBIDDEN_IN_PLACEHOLDER = "(){}:\\"
"""Weights, escapes, dynamic prompts and embedding names are written with these, so a prompt would not keep them whole."""


def find_placeholder(placeholder: str) -> re.Pattern[str]:
    """Matches the placeholder as a whole word, case-sensitive: "[V]'s hat" holds "[V]", "sksy" does not hold "sks"."""
    return re.compile(rf"(?<!\w){re.escape(placeholder)}(?!\w)")


def has_placeholder(prompt: str, placeholder: str) -> bool:
    """Whether the prompt names the subject."""
    return find_placeholder(placeholder).search(prompt) is not None


def replace_placeholders(prompt: str, texts: Mapping[str, str]) -> str:
    """The prompt with each placeholder's text wherever it stood, all at once: what a text brings in is not looked at again."""
    longest_first = sorted(texts, key=len, reverse=True)
    any_of_them = "|".join(find_placeholder(placeholder).pattern for placeholder in longest_first)
    return re.sub(any_of_them, lambda match: texts[match[0]], prompt) if texts else prompt


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is taught: a word, the class it belongs to, and the prompt of its pictures.

    Raises:
        InputError: a text is empty, the placeholder cannot stand in a prompt, or the personalization prompt lacks it.
    """

    placeholder: str = "[V]"
    class_word: str = "cat"
    personalization_prompt: str = "a photo of [V]"

    def __post_init__(self) -> None:
        """Refuse what could not be trained."""
        _check_placeholder(self.placeholder)
        if not self.class_word.strip():
            raise InputError("class_word", 'is empty. Name what the subject is in one or two words, for example "cat".')
        if has_placeholder(self.class_word, self.placeholder):
            raise InputError("class_word", f'"{self.class_word}" contains the placeholder {self.placeholder}. Give a plain word such as "cat".')
        _require_placeholder("personalization_prompt", self.personalization_prompt, self.placeholder)


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The prompts of one run: y, y_c and the unconditional one."""

    target: str
    clean: str
    negative: str


def prompt_set(subjects: Sequence[Subject], target_prompt: str, clean_prompt: str = "", negative_prompt: str = "") -> PromptSet:
    """Checked prompts; an empty clean prompt becomes the target with every placeholder replaced by its class word.

    Raises:
        InputError: two subjects share a placeholder, the target lacks one, or a prompt for the pre-trained model, which does not know the new word, has one.
    """
    words = [subject.placeholder for subject in subjects]
    if twice := {word for word in words if words.count(word) > 1}:
        raise InputError("placeholder", f"{' '.join(sorted(twice))} stands for more than one subject. Give each PALP Subject a placeholder of its own.")
    for subject in subjects:
        _require_placeholder("target_prompt", target_prompt, subject.placeholder)
    classes = {subject.placeholder: subject.class_word.strip() for subject in subjects}
    clean = clean_prompt.strip() or replace_placeholders(target_prompt, classes)
    for subject in subjects:
        _refuse_placeholder("clean_prompt", clean, subject)
        _refuse_placeholder("negative_prompt", negative_prompt, subject)
    return PromptSet(target=target_prompt, clean=clean, negative=negative_prompt)


def _check_placeholder(placeholder: str) -> None:
    if not placeholder.strip():
        raise InputError("placeholder", 'is empty. Use a word that your prompts do not use otherwise, for example "[V]".')
    bad = sorted({c for c in placeholder if c in FORBIDDEN_IN_PLACEHOLDER or c.isspace() or not c.isprintable()})
    if bad:
        listed = " ".join("space" if c.isspace() else repr(c) for c in bad)
        raise InputError("placeholder", f'"{placeholder}" contains {listed}, which prompts give another meaning. Use one word such as "[V]" or "sks".')


def _require_placeholder(name: str, prompt: str, placeholder: str) -> None:
    if not has_placeholder(prompt, placeholder):
        raise InputError(name, f'"{prompt}" does not contain the placeholder {placeholder}. Write {placeholder} where the subject belongs.')


def _refuse_placeholder(name: str, prompt: str, subject: Subject) -> None:
    if has_placeholder(prompt, subject.placeholder):
        raise InputError(
            name,
            f'"{prompt}" contains the placeholder {subject.placeholder}, which the pre-trained model does not know. '
            f'Write its class there instead ("{subject.class_word}").',
        )
