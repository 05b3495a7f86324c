"""Whether what the user has wired together belongs together; each check names the input to change."""

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch

from ...palp_train.batch import Picture
from ...palp_train.denoiser import Denoiser, Query, TextEncoder
from ...palp_train.errors import InputError, is_out_of_memory
from .denoiser import parametrization_of
from .families import family_of

NOT_THE_CLIPS = ("CUDA", "CUBLAS", "HIP", "kernel", "dtype", "scalar type")
"""Words of errors that a text encoder of another family does not cause."""


def require(name: str, value: Any, advice: str) -> None:
    """Return quietly if the host gave something for the input ``name``.

    Raises:
        InputError: it gave None, as its loaders do where a checkpoint lacks a part.
    """
    if value is None:
        raise InputError(name, f"there is none: the checkpoint may lack it. {advice}")


@torch.no_grad()
def refuse_foreign_clip(denoiser: Denoiser, text_encoder: TextEncoder, prompt: str, picture: Picture, name: str = "clip") -> None:
    """Return quietly if the model can read what the CLIP writes.

    Raises:
        InputError: it cannot: the CLIP belongs to another family, of which the host only says something about shapes.
    """
    conditioning = text_encoder(prompt)
    try:
        denoiser(picture.latent[None], denoiser.sigmas[-1:], [Query(conditioning=conditioning, personalized=False)])
    except (RuntimeError, TypeError, AttributeError) as error:
        if ran_out_of_memory(error) or any(word in str(error) for word in NOT_THE_CLIPS):
            raise
        raise InputError(name, f"the model cannot read what it writes ({_first_line(error)}). Use the CLIP that belongs to this model.") from error


def refuse_small_pictures(model: Any, pictures: Sequence[Picture], resolution: int) -> None:
    """Return quietly if the model's code can work on latents of the pictures' sizes.

    Raises:
        InputError: one is too small.
    """
    family, side = family_of(model), min(min(picture.latent.shape[-2:]) for picture in pictures)
    if side < family.smallest_side:
        raise InputError("resolution", f"{resolution} makes latents {side} wide or high, and {family.title} needs at least {family.smallest_side}. Raise it.")


def refuse_foreign_teacher(student: Any, teacher: Any) -> None:
    """Return quietly if there is no teacher, or one over the student's latent space.

    Raises:
        InputError: their latents differ, or the way in which noise enters them.
    """
    if teacher is None:
        return
    if teacher.model is student.model:
        raise InputError("teacher_model", "it is the model itself, perhaps with patches, and they share their weights. Disconnect it, or load another model.")
    if teacher.load_device != student.load_device:
        raise InputError(
            "teacher_model",
            f"it runs on {teacher.load_device}, and the model on {student.load_device}. Load both onto one device.",
        )
    family_of(teacher.model, "teacher_model")
    ours, theirs = student.model.latent_format, teacher.model.latent_format
    if type(ours) is not type(theirs) or ours.scale_factor != theirs.scale_factor:
        raise InputError(
            "teacher_model",
            f"its latents ({type(theirs).__name__}) are not the model's ({type(ours).__name__}), so that they cannot look at one picture. "
            "Use a teacher of the same family, for example a larger or finetuned SDXL for SDXL.",
        )
    sigma = torch.tensor([0.1, 0.9])
    kinds = [parametrization_of(p.get_model_object("model_sampling"), name) for p, name in ((student, "model"), (teacher, "teacher_model"))]
    if not torch.equal(kinds[0].signal_scale(sigma), kinds[1].signal_scale(sigma)):
        raise InputError("teacher_model", "noise enters its pictures in another way than the model's (one is a flow, the other is not). Use a teacher alike.")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, also by the host's own word where it has one: saying so, it clears CUDA's pending error."""
    own = getattr(comfy.model_management, "is_oom", None)
    return bool(own and own(error)) or is_out_of_memory(error)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
