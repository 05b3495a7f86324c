"""A study from the command line: python dev.py experiment NAME."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

from demo.settings import Sampling
from experiments.studies import STUDIES
from palp_train.config import LossConfig, TrainConfig
from palp_train.errors import InputError

ALIASES = {"sweep": "scales"}
"""Other names of studies."""
OWN = ("checkpoint", "images", "class_word", "prompts")
"""What belongs together for a model of the user's."""
LEAST = {"jobs": 1, "seeds": 1, "samples": 2, "prompt_count": 0}
"""Of one picture there is no diversity."""
CHOSEN_BY = {"steps": "--steps", "seed": "--seeds", "resolution": "--resolution", "method": "--conditions", "noise": "--conditions", "rescale": "--conditions"}
"""Settings that a study compares or sets itself, and the options that choose among them."""


def parse() -> argparse.Namespace:
    """See ``python dev.py experiment -- --help``."""
    listed = "\n".join(f"  {study.name:<11} {study.question}" for study in STUDIES.values())
    parser = argparse.ArgumentParser(prog="dev.py experiment", description=f"{__doc__}\n\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--comfyui", "--base", "--out"):
        parser.add_argument(name, type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("name", choices=STUDIES, type=lambda name: ALIASES.get(name, name))
    parser.add_argument("--seeds", type=int, metavar="N", help="trainings of each kind, each with noise of its own")
    parser.add_argument("--subjects", type=_names, default=(), metavar="A,B", help="only these")
    parser.add_argument("--conditions", type=_names, default=(), metavar="A,B", help="only these ways of training, for example base,none,palp")
    parser.add_argument("--steps", type=_numbers, metavar="N,M", help="look after these numbers of steps; the last is where training ends")
    parser.add_argument("--samples", type=int, metavar="N", help="pictures of each prompt")
    parser.add_argument("--pictures", type=int, metavar="N", help="of each of the demo model's subjects to learn from, of five; usually 1")
    parser.add_argument("--prompt-count", type=int, metavar="N", help="prompts of each subject; 0: all, as usual for a model of your own")
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours: shows that all works and little else")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="share the subjects out among N processes, for processors; on a GPU, leave it at 1")
    parser.add_argument("--helper", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--report-only", action="store_true", help="train and sample nothing: write the report from what is there")
    parser.add_argument("--publish", action="store_true", help="also put the report and its figures into docs/results")
    parser.add_argument(
        "--train", type=_settings(TrainConfig, CHOSEN_BY), default={}, metavar="JSON", help="other training settings, for example '{\"learning_rate\": 1e-4}'"
    )
    parser.add_argument(
        "--loss",
        type=_settings(LossConfig, CHOSEN_BY),
        default={},
        metavar="JSON",
        help="other settings of the alignment, for example '{\"alignment_weight\": 2}'",
    )
    parser.add_argument(
        "--sampling",
        type=_settings(Sampling, {"resolution": "--resolution"}),
        default={},
        metavar="JSON",
        help='how pictures are made, for example \'{"steps": 30, "guidance": 7.5}\'',
    )
    _add_own(parser.add_argument_group("a model of your own instead of the demo model; the first four belong together"))
    return _checked(parser, parser.parse_args())


def _add_own(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help="any checkpoint that ComfyUI loads with its text encoder and VAE")
    group.add_argument("--images", type=Path, nargs="+", metavar="FOLDER", help="pictures of your subject; a folder for each, of several")
    group.add_argument("--class-word", nargs="+", metavar="WORD", help="what it is, for example cat; a word for each folder")
    told = (
        "one a line, with [V], or [V1] and [V2] of subjects together; its elements behind bars: a sketch of [V] in Paris | sketch | Paris; "
        "its clean prompt, where class words in place of [V] do not make a good one, behind an arrow: a cat, [V] => a cat, an oil painting | cat"
    )
    phrase = "what is trained on its pictures, for example 'a painting in the style of [V]'; one for each folder, [V] in each; usually 'a photo of [V]'"
    group.add_argument("--personalization-prompt", nargs="+", metavar="PROMPT", help=phrase)
    group.add_argument("--prompts", type=Path, metavar="FILE", help=told)
    group.add_argument("--clip-vision", type=Path, metavar="FILE", help="measures the subject and diversity; of the same CLIP as --clip-text")
    group.add_argument("--clip-text", type=Path, metavar="FILE", help="measures the prompt; with its text projection")
    group.add_argument("--resolution", type=_resolution, metavar="PIXELS", help="of a picture's side; usually 512, for SDXL and newer models 1024 suits better")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(number) for number in text.split(",")}))


def _resolution(text: str) -> int:
    """What the training node takes."""
    try:
        return TrainConfig(resolution=int(text)).resolution
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _settings(kind: type, chosen_by: Mapping[str, str]) -> Callable[[str], dict[str, object]]:
    """Reads JSON that gives fields of a dataclass, but for those that options choose."""

    def read(text: str) -> dict[str, object]:
        given, known = json.loads(text), [field.name for field in fields(kind) if field.name not in chosen_by]
        unknown = [name for name in given if name not in known] if isinstance(given, dict) else [text]
        if theirs := [f"{name} is the study's own; choose it with {chosen_by[name]}" for name in unknown if name in chosen_by]:
            raise argparse.ArgumentTypeError("; ".join(theirs))
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not a setting; there are {', '.join(known)}")
        try:
            kind(**given)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return given

    return read


def _checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    if options.publish and options.quick:
        parser.error("--publish: a quick run measures too little to be published")
    if options.publish and options.checkpoint:
        parser.error("--publish: docs/results is about the demo model; your report stays where it is written")
    _check_numbers(parser, options)
    _check_own(parser, options)
    return options


def _check_numbers(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for name, least in LEAST.items():
        if (value := getattr(options, name)) is not None and value < least:
            parser.error(f"--{name.replace('_', '-')}: {value} is out of range: at least {least}")
    if options.steps and min(options.steps) < 1:
        parser.error(f"--steps: {min(options.steps)} is out of range: at least 1")
    if options.pictures is not None and not 1 <= options.pictures <= 5:
        parser.error(f"--pictures: {options.pictures} is out of range: each of the demo model's subjects has 5")


def _check_own(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    given = [name for name in OWN if getattr(options, name)]
    if given and len(given) < len(OWN):
        parser.error("these belong together: " + " ".join(f"--{name.replace('_', '-')}" for name in OWN))
    if given and options.pictures:
        parser.error("--pictures: is for the demo model's subjects; of your own, all in --images are used")
    for name in ("clip_vision", "clip_text", "resolution", "personalization_prompt"):
        if getattr(options, name) and not given:
            parser.error(f"--{name.replace('_', '-')}: is for a model of your own; give it with --checkpoint")
    if options.clip_text and not options.clip_vision:
        parser.error("--clip-text: compares with what a vision model sees; give that of the same CLIP to --clip-vision, too")
    if given:
        _check_files(parser, options)


def _check_files(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for name in ("checkpoint", "prompts", "clip_vision", "clip_text"):
        if (path := getattr(options, name)) and not path.is_file():
            parser.error(f"--{name.replace('_', '-')}: there is no file {path}")
    for folder in options.images:
        if not folder.is_dir():
            parser.error(f"--images: there is no folder {folder}")
    for prompt in [prompt for prompt in options.personalization_prompt or () if "[V]" not in prompt]:
        parser.error(f'--personalization-prompt: "{prompt}" lacks [V]')
    for name in ("class_word", "personalization_prompt"):
        if (words := getattr(options, name)) and len(words) != len(options.images):
            parser.error(f"--{name.replace('_', '-')}: {len(words)} for {len(options.images)} folders of --images; each needs one")
