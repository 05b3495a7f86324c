"""A user's own checkpoint, pictures and prompts as a world. CLIP measures, where it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import chain, count
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from bench.contenders import Models
from demo.settings import Sampling
from experiments.embedder import SIMILARITY, Embedder, embedder_of, mean_similarity
from experiments.judging import LPIPS_NEEDS, lpips_network, mean_pairwise_distance, mean_pairwise_lpips
from experiments.store import UNREADABLE, file_fingerprint, fingerprint, slug
from experiments.training import part
from experiments.world import DIVERSITY, IMAGE, TEXT, Ask, Case, Taught

ALONE = "[V]"
"""What stands for a subject that is taught by itself."""
PLACEHOLDER = re.compile(r"\[(V\d*)\]")
METRICS = 3
"""Raise it when what is measured changes."""
SAMPLING = Sampling(resolution=512, guidance=7.5)
"""What suits SD 1.x."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user names on the command line."""

    checkpoint: Path
    images: Sequence[Path]
    """A folder of pictures for each subject."""
    class_word: Sequence[str]
    """One for each folder."""
    prompts: Path
    """One prompt a line with [V], or with [V1], [V2] where subjects are taught together; behind an arrow, if wanted, its clean prompt, and behind bars its
    elements: a cat in Paris, [V] => a cat in Paris, an oil painting | a cat | in Paris."""
    personalization_prompt: Sequence[str] | None = None
    """One with [V] for each folder, or of all "a photo of [V]"."""
    clip_vision: Path | None = None
    clip_text: Path | None = None
    train: Mapping[str, object] = field(default_factory=dict)
    loss: Mapping[str, object] = field(default_factory=dict)
    sampling: Sampling = SAMPLING


class CheckpointWorld:
    """Subjects of the user's on a model of the user's."""

    truth = None
    """Nobody can draw the user's subjects."""

    def __init__(self, given: Given) -> None:
        """Load what measures, so that a wrong file is refused before any work; the checkpoint is loaded when it is first asked for."""
        self._given = given
        self._embedder = embedder_of(given.clip_vision, given.clip_text) if given.clip_vision else None
        self.train, self.loss, self.sampling = given.train, given.loss, given.sampling
        self.title = f"{given.checkpoint.name}, {', '.join(f'{folder.name} ({word})' for folder, word in zip(given.images, given.class_word, strict=True))}"

    @property
    @cache  # noqa: B019 - there is one world, and it lives as long as the study
    def models(self) -> Models:
        """Loaded by the host's checkpoint loader.

        Raises:
            SystemExit: it cannot be loaded, or something is not in it.
        """
        import comfy.sd

        with torch.inference_mode():
            try:
                model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(self._given.checkpoint), output_vae=True, output_clip=True)
            except UNREADABLE as error:
                raise SystemExit(f"--checkpoint: ComfyUI cannot load {self._given.checkpoint.name}: {error}") from error
        found = {"diffusion model": model, "text encoder": clip, "VAE": vae and vae.first_stage_model}
        if missing := [name for name, there in found.items() if there is None]:
            raise SystemExit(f"--checkpoint: {self._given.checkpoint.name} holds no {' and no '.join(missing)}. Give a checkpoint with all three in one file.")
        return Models(model=model, clip=clip, vae=vae)

    @cached_property
    def _lpips(self) -> Any:
        return lpips_network()

    @property
    @cache  # noqa: B019 - there is one world, and it lives as long as the study
    def identity(self) -> str:
        """Of the checkpoint."""
        return file_fingerprint(self._given.checkpoint)

    @property
    @cache  # noqa: B019 - there is one world, and it lives as long as the study
    def ruler(self) -> str:
        """Of the CLIP files, of the pictures that others are compared with and of what diversity is measured with."""
        clips = [file for file in (self._given.clip_vision, self._given.clip_text) if file]
        pictures = {case.name: [taught.fingerprints for taught in case.taught] for case in self._single}
        return fingerprint([METRICS, file_fingerprint(*clips), pictures, self._lpips is not None])

    @property
    def notes(self) -> Sequence[str]:
        """What each metric is here, and what is missing for those that are not."""
        embedder = self._embedder
        cosine = f"mean cosine similarity of {embedder.family} embeddings ({embedder.name})" if embedder else ""
        told = f"CLIP-T, {cosine} of pictures and clean prompt" if embedder and embedder.text else "needs --clip-text and a CLIP as --clip-vision"
        similar = f"{SIMILARITY[embedder.family]}, {cosine} of pictures and training pictures" if embedder else "needs --clip-vision"
        otherwise = f"1 - {cosine}" if embedder else "mean cosine distance of pixels at 32 x 32, which is crude: give --clip-vision"
        different = "mean LPIPS (AlexNet)" if self._lpips else f"{otherwise}; LPIPS needs {LPIPS_NEEDS}"
        return (
            f"Text alignment: {told}.",
            f"Subject similarity: {similar}; of several subjects the mean. There is no other instance that would give it a scale.",
            f"Diversity: {different}; over all pairs of pictures of one prompt.",
        )

    def cases(self, kind: str) -> Sequence[Case]:
        """The subjects, each as [V]; or all together, as [V1], [V2] and so on.

        Raises:
            SystemExit: there is but one to be taught together.
        """
        if kind == "single":
            return self._single
        if len(self._single) < 2:
            raise SystemExit("--images: this study teaches subjects together; give it a folder for each, and as many words to --class-word.")
        return [self._together]

    @cached_property
    def _single(self) -> list[Case]:
        given, cases = self._given, list[Case]()
        prompts = given.personalization_prompt or [f"a photo of {ALONE}"] * len(given.images)
        for name, folder, word, prompt in zip(_distinct([folder.name for folder in given.images]), given.images, given.class_word, prompts, strict=True):
            taught = Taught(placeholder=ALONE, class_word=word, personalization_prompt=prompt, images=_pictures(folder))
            cases.append(Case(name=name, category=word, taught=(taught,)))
        return cases

    @cached_property
    def _together(self) -> Case:
        subjects = [case.taught[0] for case in self._single]
        taught = tuple(_renamed(each, f"[V{number}]") for number, each in enumerate(subjects, start=1))
        return Case(name="+".join(case.name for case in self._single), category=f"{len(subjects)} subjects", taught=taught)

    def asks(self, kind: str, case: Case) -> Sequence[Ask]:
        """The prompts of the file, all in order.

        Raises:
            SystemExit: there is none, one lacks a subject, or prompts that are to be compared by their numbers of elements have the same.
        """
        try:
            lines = self._given.prompts.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise SystemExit(f"--prompts: {self._given.prompts} is no text in UTF-8.") from error
        asks = [_ask(line, case) for line in lines if line.strip()]
        if not asks:
            raise SystemExit(f"--prompts: there is no prompt in {self._given.prompts}.")
        if kind == "complexity" and len({len(ask.elements) for ask in asks}) < 2:
            raise SystemExit("--prompts: complexity compares prompts of more and fewer elements; write them behind bars: a sketch of [V] | a sketch.")
        return [replace(ask, name=name) for ask, name in zip(asks, _distinct([ask.name for ask in asks]), strict=True)]

    @torch.inference_mode()
    def measure(self, case: Case, ask: Ask, pictures: Tensor) -> Mapping[str, float]:
        """Similarity to the prompt, to each of its elements and to the subject, diversity: what can be told with what was given."""
        embedder, measures = self._embedder, dict[str, float]()
        seen = embedder.seen(pictures) if embedder else _small(pictures)
        measures[DIVERSITY] = mean_pairwise_lpips(self._lpips, pictures) if self._lpips else mean_pairwise_distance(seen)
        if embedder:
            measures[IMAGE] = mean(mean_similarity(seen, self._subject(embedder, taught)) for taught in case.taught)
        if embedder and embedder.text:
            texts = {TEXT: ask.clean, **{name: text for name, (text, *_) in ask.elements.items()}}
            measures |= {name: mean_similarity(seen, embedder.told(text)) for name, text in texts.items()}
        return measures

    @cache  # noqa: B019 - there is one world, and it lives as long as the study
    def _subject(self, embedder: Embedder, taught: Taught) -> Tensor:
        return torch.cat([embedder.seen(image[None]) for image in taught.images])


def _small(pictures: Tensor) -> Tensor:
    """Pixels around 0, few of them, shape (N, 3072)."""
    return functional.interpolate(pictures.movedim(-1, 1) - 0.5, size=(32, 32), mode="area").flatten(1)


def _ask(line: str, case: Case) -> Ask:
    """The prompt of a line.

    Raises:
        SystemExit: it lacks a subject.
    """
    told, *elements = (each.strip() for each in line.split("|"))
    prompt, arrow, described = (each.strip() for each in told.partition("=>"))
    classes = {taught.placeholder: taught.class_word for taught in case.taught}
    for placeholder, word in classes.items():
        if placeholder not in prompt:
            raise SystemExit(f'--prompts: "{prompt}" lacks {placeholder}, which stands for the {word}.')
    in_words = partial(part("palp_train.prompts").replace_placeholders, texts=classes)
    return Ask(
        name=PLACEHOLDER.sub(r"\1", prompt)[:60].rstrip(),
        target=prompt,
        clean=described if arrow else in_words(prompt),
        elements={f"element {n}": (in_words(each),) for n, each in enumerate(filter(None, elements), start=1)},
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where files named after them would be the same."""
    taken: dict[str, str] = {}
    for name in names:
        free = next(each for each in chain((name,), (f"{name} {number}" for number in count(2))) if slug(each) not in taken)
        taken[slug(free)] = free
    return list(taken.values())


def _renamed(taught: Taught, placeholder: str) -> Taught:
    return replace(taught, placeholder=placeholder, personalization_prompt=taught.personalization_prompt.replace(taught.placeholder, placeholder))


def _pictures(folder: Path) -> tuple[Tensor, ...]:
    """The pictures of a folder, in the order of their names.

    Raises:
        SystemExit: it has none.
    """
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*Image.OPEN, "MPO")}  # MPO is opened as JPEG
    there = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    files = [file for file in there if file.suffix.lower() in known]
    if not files:
        raise SystemExit(f"--images: there is no picture in {folder}.")
    if others := [file.name for file in there if file not in files]:
        print(f"--images: of {folder}, {', '.join(others)} is left out: Pillow opens no such file.", flush=True)
    return tuple(_picture(file) for file in files)


def _picture(file: Path) -> Tensor:
    """A picture the right way up, as the host's Load Image gives it; shape (H, W, 3), values in [0, 1].

    Raises:
        SystemExit: the file is no picture, or is cut off.
    """
    try:
        with Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        raise SystemExit(f"--images: {file} cannot be opened as a picture.") from error
    return torch.from_numpy(np.array(upright)).float() / 255
