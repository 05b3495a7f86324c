"""A tiny model of any family made trainable as the training node makes it, for the tests that differentiate it themselves."""

from contextlib import contextmanager
from importlib import import_module

import torch
from devices import fill_normal

FAMILIES = (
    *("sd15", "sd15-v", "sd2", "sd2-v", "sdxl", "sd3", "sd35", "flux", "chroma", "auraflow", "pixart"),
    *("hunyuan_dit", "hunyuan_image", "lumina2", "z_image", "qwen_image", "hidream"),
)


@contextmanager
def differentiable_loss(pack, models, vectors=2, checkpointing="off"):
    """Yields (loss, lora, word): ``loss()`` is the personalization loss of a fixed batch as the trainer computes it; word may be None."""
    import tiny_families

    part = lambda name: import_module(f"{pack.__name__}.{name}")  # noqa: E731
    families, text, session, training = (part(f"nodes.host.{name}") for name in ("families", "text_encoder", "session", "training"))
    method, losses = part("palp_train.denoiser"), part("palp_train.losses")
    subject = part("palp_train.prompts").Subject()
    generator = torch.Generator().manual_seed(3)
    learned = text.learned_encoders(models.clip, models.model)
    with session.training_session(models.model, models.clip, learned=learned) as held:
        network = held.model.model.diffusion_model
        targets, reader = families.adapted_layers(network, "attention"), part("nodes.host.weights").HostWeights()
        with part("palp_train.lora").injected_lora(network, targets, 4, generator, reader) as lora:
            for _, up in lora_pairs(lora):
                fill_normal(up.data, 0.1, generator)  # zero ups would make the downs' gradients zero
            word = None
            if learned:
                with torch.no_grad():
                    word = part("palp_train.embedding").trainable_word(subject, text.class_tokens(held.clip, "striped cat", learned), vectors)
            encode = text.HostTextEncoder(held.clip, [word] if word else [])
            estimate = training.trainable_denoisers(held.model, lora)[checkpointing == "on"]
            shape = (2, *tiny_families.latent_shape(models.model))
            latent, noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(held.device)
            sigma = estimate.sigmas[[len(estimate.sigmas) * 3 // 10, len(estimate.sigmas) * 7 // 10]].double()

            def loss():
                noised = method.add_noise(latent, noise, sigma, estimate.parametrization)
                queries = [method.Query(conditioning=encode(f"a {kind} of [V]"), personalized=True) for kind in ("photo", "sketch")]
                return losses.personalization_loss(estimate(noised, sigma, queries), latent, sigma, estimate.parametrization)

            yield loss, lora, word


def lora_pairs(lora):
    parameters = list(lora.parameters())
    return list(zip(parameters[::2], parameters[1::2], strict=True))
