"""CLIP's kind of vocabulary for a small world: each of its words one token, everything else in pieces."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
from transformers import CLIPTokenizer

from demo.make.grammar import prompt, random_scene
from demo.make.paths import WEIGHTS

FOLDER = WEIGHTS / "tokenizer"
COMMON = (
    "a an the of in on at with and by from is to for my your his her its this that one two three some very small big little old new young "
    "photo picture image painting drawing oil pencil portrait art style of sketch cartoon pixel silhouette watercolor flat "
    "white black brown dark bright colorful turquoise lime light blue golden silver morning evening dawn dusk sunny "
    "animal toy thing creature pet vehicle object outer space moon sea sand tree trees street house mountain standing sitting inspired"
)


def write() -> None:
    """Write the tokenizer's files, as transformers reads them."""
    words = world_words()
    merges = merges_of(words)
    letters = [*_byte_letters(), *(letter + "</w>" for letter in _byte_letters())]
    tokens = [*letters, *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8")
    (FOLDER / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges), encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (FOLDER / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 32, **special}, indent=1))
    _check(words)


def world_words() -> list[str]:
    """All words that prompts are made of, in a fixed order."""
    rng = np.random.default_rng(0)
    told = " ".join(prompt(random_scene(rng), rng) for _ in range(20000))
    return sorted(set(re.findall(r"[a-z]+", f"{told} {COMMON}".lower())))


def merges_of(words: list[str]) -> list[tuple[str, str]]:
    """Merges in the order of their rank, after which each of the words is one token.

    Byte-pair encoding, trained on every word once: the commonest pair of neighbours is merged until all words are whole.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(parts) > 1 for parts in spelled):
        counts: dict[tuple[str, str], int] = {}
        for parts in spelled:
            for pair in itertools.pairwise(parts):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        spelled = [_merged(parts, best) for parts in spelled]
    return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def _byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes, in CLIP's order: printable ones stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


def _check(words: list[str]) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(str(FOLDER))
    broken = [word for word in words if len(tokenizer(word)["input_ids"]) != 3]
    if broken:
        raise ValueError(f"These words are more than one token: {broken[:10]}")
