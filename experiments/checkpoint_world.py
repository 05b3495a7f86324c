"""A user's own checkpoint, pictures and prompts as a world. CLIP measures, where it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.contenders import Models
from demo.settings import Sampling
from experiments.judging import lpips_network, mean_pairwise_distance, mean_pairwise_lpips
from experiments.store import file_fingerprint, fingerprint, read_pictures
from experiments.training import part
from experiments.world import DIVERSITY, IMAGE, TEXT, Ask, Case, Taught

PLACEHOLDER = "[V]"
METRICS = 1
"""Raise it when what is measured changes."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user names on the command line."""

    checkpoint: Path
    images: Path
    class_word: str
    prompts: Path
    """One prompt a line with [V]; behind bars, if wanted, its elements: a sketch of [V] in Paris | a sketch | in Paris."""
    clip_vision: Path | None = None
    clip_text: Path | None = None
    train: Mapping[str, object] = field(default_factory=dict)
    loss: Mapping[str, object] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=lambda: Sampling(resolution=512, guidance=7.5))


class CheckpointWorld:
    """One subject of the user's on a model of the user's."""

    truth = None
    """Nobody can draw the user's subject."""

    def __init__(self, given: Given) -> None:
        """Load nothing yet."""
        self._given = given
        self.train, self.loss, self.sampling = given.train, given.loss, given.sampling
        self.title = f"{given.checkpoint.name}, {given.images.name} ({given.class_word})"

    @property
    @cache  # noqa: B019 - there is one world, and it lives as long as the study
    def models(self) -> Models:
        """Loaded by the host's checkpoint loader."""
        import comfy.sd

        with torch.inference_mode():
            model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(self._given.checkpoint), output_vae=True, output_clip=True)
        return Models(model=model, clip=clip, vae=vae)

    @cached_property
    def _vision(self) -> Any:
        import comfy.clip_vision

        return comfy.clip_vision.load(str(self._given.clip_vision)) if self._given.clip_vision else None

    @cached_property
    def _text(self) -> Any:
        return _text_with_projection(self._given.clip_text) if self._given.clip_text and self._given.clip_vision else None

    @cached_property
    def _lpips(self) -> Any:
        return lpips_network()

    @property
    @cache  # noqa: B019 - there is one world, and it lives as long as the study
    def identity(self) -> str:
        """Of the checkpoint and the pictures."""
        return file_fingerprint(self._given.checkpoint, *_picture_files(self._given.images))

    @property
    @cache  # noqa: B019 - there is one world, and it lives as long as the study
    def ruler(self) -> str:
        """Of the CLIP files and of what diversity is measured with."""
        clips = [file for file in (self._given.clip_vision, self._given.clip_text) if file]
        return fingerprint([METRICS, file_fingerprint(*clips), self._lpips is not None])

    @property
    def notes(self) -> Sequence[str]:
        """What each metric is here, and what is missing for those that are not."""
        vision, text = self._given.clip_vision, self._given.clip_text
        clip = f"mean cosine similarity of CLIP embeddings ({vision.name if vision else ''})"
        told = f"CLIP-T, {clip} of pictures and clean prompt" if vision and text else "needs --clip-vision and --clip-text"
        similar = f"CLIP-I, {clip} of pictures and training pictures" if vision else "needs --clip-vision"
        otherwise = f"1 - {clip}" if vision else "mean cosine distance of pixels at 32 x 32, which is crude: give --clip-vision"
        different = "mean LPIPS (AlexNet)" if self._lpips else otherwise
        return (
            f"Text alignment: {told}.",
            f"Subject similarity: {similar}. There is no other instance that would give it a scale.",
            f"Diversity: {different}; over all pairs of pictures of one prompt.",
        )

    def cases(self, kind: str) -> Sequence[Case]:
        """The one subject."""
        images = tuple(read_pictures(file, 1)[0] for file in _picture_files(self._given.images))
        taught = Taught(placeholder=PLACEHOLDER, class_word=self._given.class_word, personalization_prompt=f"a photo of {PLACEHOLDER}", images=images)
        return [Case(name=self._given.images.name, category=self._given.class_word, taught=(taught,))] if kind == "single" else []

    def asks(self, kind: str, case: Case) -> Sequence[Ask]:
        """The prompts of the file, all in order."""
        lines = self._given.prompts.read_text(encoding="utf-8").splitlines()
        return [_ask(line, self._given.class_word) for line in lines if line.strip()]

    @torch.inference_mode()
    def measure(self, case: Case, ask: Ask, pictures: Tensor) -> Mapping[str, float]:
        """CLIP-T of the prompt and of each element, CLIP-I, diversity: what can be told with what was given."""
        seen = self._seen(pictures) if self._vision else None
        measures = {
            DIVERSITY: mean_pairwise_lpips(self._lpips, pictures) if self._lpips else mean_pairwise_distance(_small(pictures) if seen is None else seen)
        }
        if seen is not None:
            measures[IMAGE] = mean_similarity(seen, self._subject)
        if seen is not None and self._text:
            texts = {TEXT: ask.clean, **{name: text for name, (text, *_) in ask.elements.items()}}
            measures |= {name: mean_similarity(seen, self._told(text)) for name, text in texts.items()}
        return measures

    @cached_property
    def _subject(self) -> Tensor:
        return torch.cat([self._seen(image[None]) for image in self.cases("single")[0].taught[0].images])

    def _seen(self, pictures: Tensor) -> Tensor:
        return self._vision.encode_image(pictures).image_embeds.float().cpu()

    def _told(self, text: str) -> Tensor:
        return self._text.encode_from_tokens(self._text.tokenize(text), return_pooled=True)[1].float().cpu()


def _small(pictures: Tensor) -> Tensor:
    """Pixels around 0, few of them, shape (N, 3072)."""
    return functional.interpolate(pictures.movedim(-1, 1) - 0.5, size=(32, 32), mode="area").flatten(1)


def mean_similarity(first: Tensor, second: Tensor) -> float:
    """Cosine similarity, the mean over all pairs of a row of one (N, F) and a row of the other (M, F)."""
    return float((functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T).mean())


def _text_with_projection(file: Path) -> Any:
    """A CLIP text encoder whose embeddings compare with CLIP's of images.

    Raises:
        SystemExit: the file has no projection, as those inside of SD checkpoints.
    """
    import comfy.sd
    import safetensors

    with safetensors.safe_open(file, framework="pt") as opened:
        if not any(name.endswith("text_projection.weight") for name in opened.keys()):
            raise SystemExit(f"--clip-text: {file.name} has no text projection. Give a whole CLIP text model, for example ComfyUI's clip_l.safetensors.")
    return comfy.sd.load_clip([str(file)])


def _ask(line: str, class_word: str) -> Ask:
    """The prompt of a line.

    Raises:
        SystemExit: it lacks the placeholder.
    """
    prompt, *elements = (each.strip() for each in line.split("|"))
    if PLACEHOLDER not in prompt:
        raise SystemExit(f'--prompts: "{prompt}" lacks {PLACEHOLDER}, which stands for the subject.')
    clean = part("palp_train.prompts").replace_placeholders(prompt, {PLACEHOLDER: class_word})
    return Ask(
        name=prompt.replace(PLACEHOLDER, "V")[:60], target=prompt, clean=clean, elements={f"element {n}": (each,) for n, each in enumerate(elements, start=1)}
    )


def _picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder.

    Raises:
        SystemExit: it has none.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if not files:
        raise SystemExit(f"--images: there is no picture in {folder}.")
    return files
