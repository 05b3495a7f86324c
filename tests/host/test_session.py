"""What a session makes of the user's MODEL and CLIP, and that they are afterwards what they were."""

import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from devices import assert_same, assert_same_losses, assert_same_training, random_states
from host_calls import everything, family, sampled, short_job


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def models(request, pack):
    import tiny_models

    made = getattr(tiny_models, request.param)()
    sampled(made)  # the host's own loading leaves its marks; they are not ours to remove
    return made


def test_a_run_gives_everything_back_and_samples_the_same_picture(training, models):
    module, job = training
    picture, before = sampled(models), everything(models)
    with torch.inference_mode():
        outcome = module.run(job)
    assert everything(models) == before
    assert torch.equal(sampled(models), picture)
    assert len(outcome.steps) == 3


def test_training_leaves_the_global_random_state_and_the_modes_alone(training):
    module, job = training
    states = random_states()
    with torch.inference_mode():
        module.run(job)
        assert torch.is_inference_mode_enabled()
    assert random_states() == states
    assert torch.is_grad_enabled()


def test_a_teacher_that_is_still_to_be_loaded_takes_room_from_a_t5_that_would_learn(pack):
    text, models = import_module(f"{pack.__name__}.nodes.host.text_encoder"), family("flux")

    class Large:
        def model_size(self):
            return 2**60

        def loaded_size(self):
            return 0

    assert text.learned_encoders(models.clip, models.model) == {"clip_l", "t5xxl"}
    assert text.learned_encoders(models.clip, models.model, Large()) == {"clip_l"}


if "def scaled_fp8_ops" in (Path(os.environ["COMFYUI_PATH"]) / "comfy" / "ops.py").read_text():

    def test_gradients_pass_through_layers_that_compute_in_8_bits(pack):
        import comfy.ops

        session = import_module(f"{pack.__name__}.nodes.host.session")
        layer = comfy.ops.scaled_fp8_ops(fp8_matrix_mult=True).Linear(4, 3, bias=False, dtype=torch.float8_e4m3fn)
        layer.reset_parameters()
        layer.weight.data = torch.randn(3, 4).to(torch.float8_e4m3fn)
        layer.weight.requires_grad_(False)
        layer.scale_weight.data.fill_(2.0)
        layer.to(comfy.model_management.get_torch_device())  # on newer GPUs, it is there that it computes in 8 bits
        x, fast = torch.randn(1, 2, 4, device=layer.weight.device, requires_grad=True), comfy.ops.fp8_linear
        with session.trainable_networks():
            layer(x).sum().backward()
        torch.testing.assert_close(x.grad, 2 * layer.weight.float().sum(dim=0).expand(1, 2, 4))
        assert comfy.ops.fp8_linear is fast


def test_the_same_seed_gives_the_same_draws_losses_and_weights_and_another_does_not(training, pack):
    """Bit by bit on a CPU; on CUDA to rounding, since the backward pass of attention adds in no fixed order there."""
    module, job = training
    first, second, other = module.run(job), module.run(job), module.run(replace_seed(job))
    sigmas = [[step.sigma for step in outcome.steps] for outcome in (first, second, other)]
    losses = [[step.personalization for step in outcome.steps] for outcome in (first, second)]
    assert sigmas[1] == sigmas[0] != sigmas[2]
    assert_same_losses(losses[1], losses[0])
    assert_same_training(second.lora, first.lora, other.lora)
    assert_same_training(second.words[0].vectors, first.words[0].vectors, other.words[0].vectors)


def replace_seed(job):
    return replace(job, train=replace(job.train, seed=1))


def test_a_model_with_a_lora_of_the_users_is_trained_as_it_stands_and_given_back(pack, models):
    """The pre-trained model is then the user's patched one; its patches are applied in place by the host."""
    module = import_module(f"{pack.__name__}.nodes.host.training")
    import comfy.sd

    job = short_job(pack, models)
    with torch.inference_mode():
        first = module.run(job)
        patched, _ = comfy.sd.load_lora_for_models(models.model, None, first.lora, 5.0, 0)
        own = replace(models, model=patched)
        picture = sampled(own)
        second = module.run(replace(job, model=patched))
        assert torch.equal(sampled(own), picture)
    assert first.steps[0].personalization != second.steps[0].personalization


@pytest.mark.parametrize("name", ["model", "clip"])
def test_a_partly_loaded_model_is_refused_with_what_is_missing_and_what_frees_most(training, models, name):
    """As the host leaves it when memory is short: some weights stay behind and are cast at every use."""
    module, _ = training
    session = import_module(f"{module.__name__.rpartition('.')[0]}.session")
    errors = import_module(f"{module.__name__.split('.')[0]}.palp_train.errors")
    patchers = {"model": models.model, "clip": models.clip.patcher}
    patcher = patchers[name]
    patcher.model.model_lowvram = True
    try:
        with pytest.raises(errors.InputError, match=rf"^{name}: .* GiB did not fit onto .*word_vectors to 0.* frees .* GiB"):
            session._refuse_partly_loaded(patchers)
        with pytest.raises(errors.InputError, match=rf"^{name}: .*weight_dtype fp8" if name == "model" else r"^clip: "):
            session._refuse_partly_loaded({name: patcher} if name == "model" else patchers)
    finally:
        patcher.model.model_lowvram = False


def test_text_encoders_that_learn_compute_in_float32_and_take_no_second_copy_of_their_matrices(pack, output):
    """Their weights are kept in half precision; they encode as weights cast at every use do."""
    import tiny_models

    session, text = (import_module(f"{pack.__name__}.nodes.host.{name}") for name in ("session", "text_encoder"))
    models = tiny_models.sd15()
    with torch.inference_mode():
        models.clip.cond_stage_model.half()
        expected = models.clip.encode_from_tokens(models.clip.tokenize("a cat"))
        before = everything(models)  # the host's own loading has left its marks
        stored = {p.untyped_storage().data_ptr() for p in models.clip.cond_stage_model.parameters()}
    with session.training_session(models.model, models.clip, learned={"clip_l"}) as held:
        matrices = [p for p in held.clip.cond_stage_model.clip_l.transformer.parameters() if p.ndim > 1]
        assert matrices and {p.untyped_storage().data_ptr() for p in matrices} <= stored
        kept, hooks = [], torch.autograd.graph.saved_tensors_hooks
        embeds = torch.zeros(1, 77, 32, requires_grad=True)
        with hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
            out = held.clip.cond_stage_model.clip_l.transformer(None, embeds=embeds + 0, num_tokens=[3], dtype=torch.float32)
        wide = [one for one in kept if tuple(one.shape) in {(32, 32), (64, 32), (32, 64)} and one.dtype == torch.float32]
        assert kept and not wide
        del out
        with torch.no_grad():
            found = text.HostTextEncoder(held.clip, [])("a cat")["cross_attn"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, check_device=False)
    assert everything(models)[1] == before[1]
    assert {p.dtype for p in models.clip.cond_stage_model.parameters()} == {torch.float16}


def test_the_gradient_of_a_half_precision_text_encoder_is_that_of_its_weights_in_float32(pack, output):
    import tiny_models
    from trainable import differentiable_loss

    found = []
    for half in (True, False):
        models = tiny_models.sd15()
        with torch.inference_mode():
            models.clip.cond_stage_model.half()
            if not half:
                models.clip.cond_stage_model.float()
        with differentiable_loss(pack, models) as (loss, _, word):
            loss().backward()
            found.append([vectors.grad for vectors in word.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_text_encoders_that_do_not_learn_encode_each_prompt_once(pack, output):
    session, text = (import_module(f"{pack.__name__}.nodes.host.{name}") for name in ("session", "text_encoder"))
    models, runs = family("flux"), []
    with torch.inference_mode():
        expected = models.clip.encode_from_tokens(models.clip.tokenize("a cat"))
        before = everything(models)
    handle = models.clip.cond_stage_model.t5xxl.transformer.register_forward_hook(lambda *_: runs.append(1))
    with session.training_session(models.model, models.clip, learned={"clip_l"}) as held, torch.no_grad():
        encode = text.HostTextEncoder(held.clip, [])
        found = [encode(prompt)["cross_attn"] for prompt in ("a cat", "a dog", "a cat", "a dog")]
    handle.remove()
    assert len(runs) == 2
    assert_same(found[0], expected)
    assert_same(found[2], expected)
    assert not torch.equal(found[1].cpu(), expected.cpu())
    assert everything(models)[1] == before[1]


def test_networks_that_hand_no_options_on_attend_by_pytorch_too_and_only_for_the_time_being(pack, models):
    """The host's own choice on a CPU writes in place; PixArt and HunyuanDiT do not ask the option that would replace it."""
    import comfy.ldm.hydit.attn_layers
    import comfy.ldm.pixart.blocks
    from comfy.ldm.modules.attention import attention_pytorch

    session = import_module(f"{pack.__name__}.nodes.host.session")
    networks = (comfy.ldm.hydit.attn_layers, comfy.ldm.pixart.blocks)
    before = [network.optimized_attention for network in networks]
    with session.training_session(models.model):
        assert all(network.optimized_attention is attention_pytorch for network in networks)
    assert [network.optimized_attention for network in networks] == before
