"""PALP: Prompt Aligned Personalization of Text-to-Image Models (Arar et al. 2024, arXiv:2401.06105).

The method alone: it knows a ``Denoiser`` and a ``TextEncoder``, and nothing of any particular model or program.

======================  ==========================================================================
The paper               Here
======================  ==========================================================================
Eq. (1)                 ``losses.personalization_loss``
Eq. (2)                 ``denoiser.Denoiser``, ``denoiser.predicted_noise``, ``denoiser.add_noise``
Eq. (4), SDS            ``losses.score_distillation``
Eq. (5), guidance       ``losses.classifier_free_guidance``, ``alignment.guided_estimates``
Eq. (6)                 ``losses.delta_denoising_score``, ``losses.prompt_alignment_loss``
Eq. (7), rescaling      ``losses.rescale_weight``
NFSD, Figure 6          ``losses.noise_free_score``
Section 4, one step     ``trainer.step_losses``, ``trainer.train``
Clean prompt y_c        ``prompts.prompt_set``
New word [V]            ``embedding.trainable_word``
Appendix C, LoRA        ``lora.injected_lora``
Appendix C, settings    ``config.LossConfig``, ``config.TrainConfig``
======================  ==========================================================================
"""

__version__ = "0.1.0"
