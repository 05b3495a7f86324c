"""Our socket types, and what travels on each."""

from comfy_api.latest import io

PalpSubjectType = io.Custom("PALP_SUBJECT")
"""``tuple[host.pictures.SubjectPictures, ...]``: what to teach."""

PalpLossType = io.Custom("PALP_LOSS")
"""``palp_train.config.LossConfig``: how to align."""

PalpLoraType = io.Custom("PALP_LORA")
"""``palp_train.checkpoint.PalpLora``: what was learned."""

LoraModelType = io.Custom("LORA_MODEL")
"""The host's own: a LoRA's tensors by name."""

LossMapType = io.Custom("LOSS_MAP")
"""The host's own: ``{"loss": [float, ...]}``."""
