"""PALP Train LoRA: the training itself."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from ..palp_train.checkpoint import PalpLora
from ..palp_train.config import LossConfig, TrainConfig
from ..palp_train.prompts import prompt_set
from .host.files import check_name, listed_name, refuse_unwritable, write_lora
from .host.metadata import describe
from .host.pictures import SubjectPictures
from .host.training import Job, Outcome, run
from .report import report_text
from .sockets import LoraModelType, LossMapType, PalpLoraType, PalpLossType, PalpSubjectType
from .widgets import widgets

OPTIONAL = ("word_vectors", "word_learning_rate", "gradient_accumulation", "resolution", "layers", "precision", "gradient_checkpointing")


class PalpTrainLora(io.ComfyNode):
    """Learn."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the node's help page."""
        return io.Schema(
            node_id="PalpTrainLora",
            display_name="PALP Train LoRA",
            category="PALP",
            description="Trains a LoRA and a new word for your subject that keep to ONE target prompt (arXiv:2401.06105), and saves them.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to personalize; its help page lists the families. It is not changed."),
                io.Clip.Input("clip", tooltip="The CLIP that belongs to the model. It is not changed."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                PalpSubjectType.Input("subject", tooltip="From PALP Subject."),
                io.String.Input(
                    "target_prompt", default="a sketch of [V] in Paris", multiline=True, tooltip="The prompt that you want pictures of, with the placeholder."
                ),
                io.String.Input("name", default="my_subject", tooltip="File name of the LoRA, in the loras folder under palp; a number is added."),
                *widgets(TrainConfig, "steps", "learning_rate", "rank", "batch_size", "seed"),
                PalpLossType.Input("loss", optional=True, tooltip="From PALP Loss Config; without it, the paper's settings."),
                io.String.Input(
                    "clean_prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The target prompt for the pre-trained model. Empty: the target with the placeholder replaced by the class word.",
                ),
                io.String.Input(
                    "negative_prompt", default="", multiline=True, optional=True, tooltip="The unconditional prompt of guidance. Empty, as in the paper."
                ),
                io.Model.Input(
                    "teacher_model",
                    optional=True,
                    tooltip="Another model over the same latents, larger or finetuned, that says where the target prompt leads in the model's place.",
                ),
                io.Clip.Input("teacher_clip", optional=True, tooltip="The teacher's CLIP; absent: the model's own."),
                *widgets(TrainConfig, *OPTIONAL, optional=True),
            ],
            outputs=[
                PalpLoraType.Output(display_name="palp_lora", tooltip="For Apply PALP LoRA."),
                LoraModelType.Output(display_name="lora", tooltip="The LoRA alone, for the host's Load LoRA Model."),
                LossMapType.Output(display_name="loss_map", tooltip="The reconstruction loss of every step, for the host's Plot Loss Graph."),
                io.String.Output(display_name="report", tooltip="What was trained, how it went, and what it cost."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        subject: tuple[SubjectPictures, ...],
        target_prompt: str,
        name: str,
        loss: LossConfig | None = None,
        clean_prompt: str = "",
        negative_prompt: str = "",
        teacher_model: Any = None,
        teacher_clip: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        """Check, train, save."""
        job = Job(
            model=model,
            clip=clip,
            vae=vae,
            subjects=subject,
            prompts=prompt_set([taught.subject for taught in subject], target_prompt, clean_prompt, negative_prompt),
            train=TrainConfig(**settings),
            loss=loss or LossConfig(),
            teacher_model=teacher_model,
            teacher_clip=teacher_clip,
        )
        check_name(name)
        refuse_unwritable()
        outcome = run(job)
        saved = save(job, outcome, name)
        report = report_text(job, outcome, saved)
        losses = {"loss": [step.personalization for step in outcome.steps]}
        return io.NodeOutput(saved, outcome.lora, losses, report, ui=ui.PreviewText(report))


def save(job: Job, outcome: Outcome, name: str) -> PalpLora:
    """The result, on disk as a new file that the host's LoRA loaders list."""
    made = PalpLora(lora=outcome.lora, words=outcome.words, metadata=describe(job, outcome, name), file="")
    path = write_lora(name, made.tensors(), made.metadata)
    return replace(made, file=listed_name(path))
