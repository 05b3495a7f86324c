"""Whether a step's forward passes wait for the device: they run on "meta", which has no data to give and lets nobody wait for it."""

from collections import Counter
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch
from host_calls import family
from torch.utils._python_dispatch import TorchDispatchMode
from trainable import FAMILIES

META = torch.device("meta")
WORDS = [name for name in FAMILIES if name not in ("hunyuan_image", "lumina2", "z_image", "qwen_image")]
"""Families whose text is encoded in every step; the others' is encoded before training."""
ROUTES_BY_DATA = ("hidream",)
"""Its mixture of experts asks in every block which rows go to which expert: the host's own network waits there."""


def without_data(tensor):
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
    return torch.nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else empty


class HandedOver(TorchDispatchMode):
    """Counts copies from the CPU to the device that were not asked for by ``to_device``, which pins memory first."""

    def __init__(self):
        super().__init__()
        self.copies = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        from_cpu = [a for a in args if isinstance(a, torch.Tensor) and a.device.type == "cpu" and a.ndim > 0]
        waits = not (kwargs or {}).get("non_blocking")
        if from_cpu and waits and isinstance(result, torch.Tensor) and result.device == META:
            self.copies[str(func)] += 1
        return result


@contextmanager
def on_meta(pack, models):
    """Yields (denoiser, text encoder, latent shape) of a model whose weights, words and output device are on "meta"."""
    import comfy.model_management
    import tiny_families

    part = lambda name: import_module(f"{pack.__name__}.{name}")  # noqa: E731
    session, text, weights = (part(f"nodes.host.{name}") for name in ("session", "text_encoder", "weights"))
    families, training, embedding = part("nodes.host.families"), part("nodes.host.training"), part("palp_train.embedding")
    learned = text.learned_encoders(models.clip, models.model)
    with session.training_session(models.model, models.clip, learned=learned) as held:
        network = held.model.model.diffusion_model
        with torch.no_grad():
            tokens = text.class_tokens(held.clip, "cat", learned)
        word = embedding.trainable_word(part("palp_train.prompts").Subject(), {k: without_data(v) for k, v in tokens.items()}, 1)
        targets = families.adapted_layers(network, "attention")
        with part("palp_train.lora").injected_lora(network, targets, 2, torch.Generator(), weights.HostWeights()) as lora:
            encode = text.HostTextEncoder(held.clip, [word])
            encode._device = META
            estimate, _ = training.trainable_denoisers(held.model, lora)
            with (
                weights.exchanged_tensors(held.model.model, without_data),
                weights.exchanged_tensors(held.clip.cond_stage_model, without_data),
                text.output_stays(META),
            ):
                yield estimate, encode, (1, *tiny_families.latent_shape(models.model))
    assert comfy.model_management.intermediate_device() == torch.device("cpu")


@pytest.fixture(scope="module", params=WORDS)
def models(request, pack):
    return family(request.param)


def test_encoding_a_prompt_with_a_word_and_differentiating_it_needs_nothing_from_the_device(pack, models):
    with on_meta(pack, models) as (estimate, encode, shape), HandedOver() as handed:
        conditioning = encode("a photo of [V]")
        inputs = estimate._inputs([_query(pack, conditioning)], torch.empty(shape, device=META))
        tensors = [cond.cond for cond in inputs[0].values() if isinstance(cond.cond, torch.Tensor)]
        assert tensors and all(tensor.device == META for tensor in tensors)
        outputs = [tensor for tensor in tensors if tensor.requires_grad]
        torch.autograd.backward([output.sum() for output in outputs])
    assert not handed.copies


@pytest.mark.parametrize("models", [name for name in WORDS if name not in ROUTES_BY_DATA], indirect=True)
def test_a_networks_forward_and_backward_pass_need_nothing_from_the_device_and_bring_nothing_over(pack, models):
    with on_meta(pack, models) as (estimate, encode, shape):
        conditioning = encode("a photo of [V]")
        with HandedOver() as handed:
            noised, sigma = torch.empty(shape, device=META), torch.empty(1, device=META)
            estimate(noised, sigma, [_query(pack, conditioning)]).square().mean().backward()
    assert not handed.copies


def test_constant_conditionings_are_put_into_the_networks_form_once(pack, models):
    method = import_module(f"{pack.__name__}.palp_train.denoiser")
    with on_meta(pack, models) as (estimate, encode, shape):
        with torch.no_grad():
            constant = method.ConstantConditioning(encode("a photo of a cat"))
        latent = torch.empty(shape, device=META)
        first, second = (estimate._inputs([_query(pack, constant)], latent)[0] for _ in range(2))
        assert first is second
        assert method.detached(constant) is constant


def _query(pack, conditioning):
    return import_module(f"{pack.__name__}.palp_train.denoiser").Query(conditioning=conditioning, personalized=True)


if torch.cuda.is_available():

    @pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
    @pytest.mark.parametrize("settings", [{}, {"batch_size": 2}, {"gradient_accumulation": 2}], ids=str)
    def test_steps_after_the_first_make_no_call_that_waits_for_the_gpu(pack, name, settings):
        """By PyTorch's own watch. A step's numbers are waited for by an event, when the next step is on its way."""
        from dataclasses import replace

        from host_calls import short_job

        module, job = import_module(f"{pack.__name__}.nodes.host.training"), short_job(pack, family(name), steps=6)
        with module.prepared(replace(job, train=replace(job.train, **settings))) as training:
            steps = training.steps()
            next(steps)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(4):
                    next(steps)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            steps.close()
