"""What only newer hosts have: weights that are brought in as they are used, and kernels without a backward pass."""

import gc
import os
import weakref
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import pytest
import torch
from host_calls import family, portrait, sampled, short_job
from trainable import differentiable_loss

HOST = Path(os.environ["COMFYUI_PATH"]) / "comfy"


def says(file: str, text: str) -> bool:
    """Whether this host's code has something."""
    return text in (HOST / file).read_text(encoding="utf-8")


if says("model_patcher.py", "class ModelPatcherDynamic"):
    TYPES = pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    FAMILIES = pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])

    @pytest.fixture
    def dynamic(pack, tmp_path):
        """Makes of a family's name: a tiny model loaded whole, and the same, loaded as newer hosts do on a GPU."""
        import dynamic_models

        with ExitStack() as stack:

            def made(name, stored, wanted=torch.float32):
                whole = family(name)
                rounded(whole.model.model.diffusion_model, stored)
                stack.enter_context(dynamic_models.dynamic_vram())
                lazy = dynamic_models.from_file(whole, tmp_path, stored, wanted)
                sampled(lazy)
                dynamic_models.let_large_layers_be_lent(lazy.model.model.diffusion_model)
                return whole, lazy

            yield made

    def rounded(network, dtype):
        """Give a float32 network the values that a file of this type holds."""
        with torch.inference_mode():
            for parameter in network.parameters():
                parameter.copy_(parameter.to(dtype))

    @pytest.fixture(autouse=True)
    def without_dynamic_models_left():
        import comfy.model_management

        yield
        comfy.model_management.current_loaded_models.clear()  # the host cannot unload dynamic ones from a CPU

    @FAMILIES
    @TYPES
    def test_weights_that_come_in_as_they_are_used_give_the_same_lora(pack, dynamic, name, stored):
        import dynamic_models

        training = import_module(f"{pack.__name__}.nodes.host.training")
        whole, lazy = dynamic(name, stored)
        network = lazy.model.model.diffusion_model
        assert {parameter.dtype for parameter in network.parameters()} >= {stored}
        assert len(dynamic_models.lent(network)) > 10
        with torch.inference_mode():
            expected = training.run(short_job(pack, whole, steps=2)).lora
            found = training.run(short_job(pack, lazy, steps=2)).lora
        for layer, tensor in expected.items():
            torch.testing.assert_close(found[layer], tensor, rtol=1e-3, atol=1e-5)

    def test_the_weight_type_that_a_loader_was_told_to_use_does_not_stop_training(pack, dynamic):
        training = import_module(f"{pack.__name__}.nodes.host.training")
        _, lazy = dynamic("sd15", torch.float16, wanted=torch.float8_e4m3fn)
        assert lazy.model.model.get_dtype() == torch.float8_e4m3fn
        with torch.inference_mode():
            outcome = training.run(short_job(pack, lazy))
        assert outcome.dtype == "float32"
        assert all(tensor.isfinite().all() for tensor in outcome.lora.values())

    def test_a_model_from_a_loader_that_cannot_load_it_again_is_trained_and_given_back(pack, dynamic):
        import comfy.ops

        training = import_module(f"{pack.__name__}.nodes.host.training")
        _, lazy = dynamic("sdxl", torch.float16)
        lazy.model.cached_patcher_init = None
        network, cast, picture = lazy.model.model, comfy.ops.cast_bias_weight, sampled(lazy)
        before = portrait(network)["bits"]
        with torch.inference_mode():
            outcome = training.run(short_job(pack, lazy))
        assert outcome.expected_memory  # it can be foreseen
        assert portrait(network)["bits"] == before
        assert not [path for path, layer in network.named_modules() if "forward" in vars(layer)]
        assert network.current_patcher is None and comfy.ops.cast_bias_weight is cast
        assert torch.equal(sampled(lazy), picture)

    @FAMILIES
    def test_autograd_keeps_no_weight_that_was_lent_to_a_layer(pack, dynamic, name, monkeypatch):
        import comfy.ops

        _, lazy = dynamic(name, torch.float32)
        lent, cast = [], comfy.ops.cast_bias_weight

        def noting(layer, *args, **kwargs):
            weight, bias, *stream = cast(layer, *args, **kwargs)
            if weight.data_ptr() != layer.weight.data_ptr():
                lent.append(weakref.ref(weight.untyped_storage()))
            return (weight, bias, *stream)

        monkeypatch.setattr(comfy.ops, "cast_bias_weight", noting)
        with differentiable_loss(pack, lazy) as (loss, _, _):
            value = loss()
            gc.collect()
            alive = [storage for storage in lent if storage() is not None]
            forward = len(lent)
            value.backward()
        assert forward > 20 and len(lent) > forward  # fetched again in the backward pass
        assert not alive

    def test_networks_do_not_fetch_weights_ahead_in_training(pack, dynamic):
        session = import_module(f"{pack.__name__}.nodes.host.session")
        _, lazy = dynamic("flux", torch.float32)
        with session.training_session(lazy.model) as held:
            assert session.is_dynamic(held.model)
            assert held.model.model is lazy.model.model and held.model.model.current_patcher is None

    @TYPES
    def test_text_encoders_whose_weights_come_in_as_they_are_used_learn_a_word(pack, dynamic, tmp_path, stored):
        import dynamic_models

        training = import_module(f"{pack.__name__}.nodes.host.training")
        whole, lazy = dynamic("sdxl", torch.float32)
        lazy = dynamic_models.clip_from_file(lazy, tmp_path, stored)
        rounded(whole.clip.cond_stage_model, stored)
        sampled(lazy)
        dynamic_models.let_large_layers_be_lent(lazy.clip.cond_stage_model)
        with torch.inference_mode():
            expected = training.run(short_job(pack, whole, steps=2)).words[0].vectors
            found = training.run(short_job(pack, lazy, steps=2)).words[0].vectors
        assert set(found) == {"clip_l", "clip_g"}
        for encoder, vectors in expected.items():
            torch.testing.assert_close(found[encoder], vectors, rtol=1e-3, atol=1e-5)


if says("ldm/flux/math.py", "comfy.quant_ops.ck"):
    FREQUENCIES = (1, 1, 5, 2, 2, 2)
    KERNELS = {
        "apply_rope": [(1, 2, 5, 4), (1, 2, 5, 4), FREQUENCIES],
        "apply_rope1": [(1, 2, 5, 4), FREQUENCIES],
        "apply_rope_split_half": [(1, 2, 5, 4), (1, 2, 5, 4), FREQUENCIES],
        "rms_rope": [(1, 2, 5, 4), (1, 2, 5, 4), FREQUENCIES, (4,), (4,)],
        "rms_rope_split_half": [(1, 2, 5, 4), (1, 2, 5, 4), FREQUENCIES, (4,), (4,)],
        "adaln": [(2, 5, 4), (2, 1, 4), (2, 1, 4)],
        "rms_adaln": [(2, 5, 4), (2, 1, 4), (2, 1, 4)],
    }

    @pytest.mark.parametrize("name", KERNELS)
    def test_kernels_without_a_backward_pass_are_exchanged_in_training(pack, name):
        """What stands in their place gives the same, and gradients that are the finite differences."""
        import comfy.quant_ops

        session, kitchen = import_module(f"{pack.__name__}.nodes.host.session"), comfy.quant_ops.ck
        generator, kernel = torch.Generator().manual_seed(0), getattr(kitchen, name)
        inputs = [torch.randn(shape, generator=generator) for shape in KERNELS[name]]
        expected = kernel(*inputs)
        assert lacks_a_gradient(kernel, [one.requires_grad_() for one in inputs])
        with session.trainable_networks():
            exchanged = getattr(kitchen, name)
            doubles = [one.detach().double().requires_grad_() for one in inputs]
            assert torch.autograd.gradcheck(exchanged, doubles)
            for found, other in zip(as_tuple(exchanged(*inputs)), as_tuple(expected), strict=True):
                torch.testing.assert_close(found, other)
        assert getattr(kitchen, name) is kernel

    def as_tuple(outputs):
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def lacks_a_gradient(kernel, inputs):
        output = as_tuple(kernel(*inputs))[0]
        if not output.requires_grad:
            return True
        try:
            output.sum().backward()
        except (RuntimeError, NotImplementedError):
            return True
        return False


def test_modulation_of_an_attention_is_not_attention(pack):
    families = import_module(f"{pack.__name__}.nodes.host.families")
    assert families._is_attention("blocks.0.self_attn.q_proj")
    assert not families._is_attention("blocks.0.adaln_modulation_self_attn.1")
