"""PALP Subject: pictures and the word for what they show."""

from typing import Any

from comfy_api.latest import io

from ..palp_train.prompts import Subject
from .host.pictures import SubjectPictures, checked_masks, checked_pictures
from .sockets import PalpSubjectType


class PalpSubject(io.ComfyNode):
    """What to teach."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the node's help page."""
        return io.Schema(
            node_id="PalpSubject",
            display_name="PALP Subject",
            category="PALP",
            description="The subject to teach: one or a few pictures of it, and the word that will mean it.",
            is_input_list=True,  # pictures of different sizes arrive as a list
            inputs=[
                io.Image.Input("images", tooltip="One picture or several, as a batch or a list; sizes may differ."),
                io.String.Input("class_word", default=Subject.class_word, tooltip='What the subject is, in a word or two: "cat", "toy car".'),
                io.String.Input("placeholder", default=Subject.placeholder, tooltip="The new word for this very subject in your prompts."),
                io.String.Input(
                    "personalization_prompt",
                    default=Subject.personalization_prompt,
                    tooltip="What the training pictures show, with the placeholder in it.",
                ),
                io.Mask.Input("masks", optional=True, tooltip="Where the subject is (white), one mask for each picture: only that is learned."),
                PalpSubjectType.Input("previous", optional=True, tooltip="Another PALP Subject: teach that one too, with a placeholder of its own."),
            ],
            outputs=[PalpSubjectType.Output(display_name="subject")],
        )

    @classmethod
    def execute(
        cls,
        images: list[Any],
        class_word: list[str],
        placeholder: list[str],
        personalization_prompt: list[str],
        masks: list[Any] | None = None,
        previous: list[tuple[SubjectPictures, ...]] | None = None,
    ) -> io.NodeOutput:
        """Check and bundle."""
        subject = Subject(class_word=class_word[0], placeholder=placeholder[0], personalization_prompt=personalization_prompt[0])
        pictures = checked_pictures(images)
        taught = SubjectPictures(subject=subject, images=pictures, masks=checked_masks(masks, pictures) if masks else None)
        return io.NodeOutput((*(previous[0] if previous else ()), taught))
