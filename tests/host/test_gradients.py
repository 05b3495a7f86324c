"""Gradients through the host's real classes, made in inference mode, against central finite differences."""

from contextlib import contextmanager
from importlib import import_module

import pytest
import torch


@contextmanager
def differentiable_loss(pack, models, vectors=2):
    """Yields (loss, lora, word): ``loss()`` is the personalization loss of a fixed batch as the trainer computes it."""
    part = lambda name: import_module(f"{pack.__name__}.{name}")  # noqa: E731
    denoiser, text, session = (part(f"nodes.host.{name}") for name in ("denoiser", "text_encoder", "session"))
    method, losses = part("palp_train.denoiser"), part("palp_train.losses")
    subject = part("palp_train.prompts").Subject()
    generator = torch.Generator().manual_seed(3)
    with session.training_session(models.model, models.clip) as held:
        network = held.model.model.diffusion_model
        with part("palp_train.lora").injected_lora(network, denoiser.attention_projections(network), 4, generator) as lora:
            for _, up in lora_pairs(lora):
                up.data.normal_(0, 0.1, generator=generator)  # zero ups would make the downs' gradients zero
            with torch.no_grad():
                word = part("palp_train.embedding").trainable_word(subject, text.class_tokens(held.clip, "striped cat"), vectors)
            estimate, encode = denoiser.HostDenoiser(held.model, lora), text.HostTextEncoder(held.clip, [word])
            latent = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64).to(held.device)
            noise = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64).to(held.device)
            sigma = estimate.sigmas[[300, 700]].double()

            def loss():
                noised = method.add_noise(latent, noise, sigma, estimate.parametrization)
                queries = [method.Query(conditioning=encode(f"a {kind} of [V]"), personalized=True) for kind in ("photo", "sketch")]
                return losses.personalization_loss(estimate(noised, sigma, queries), latent, sigma, estimate.parametrization)

            yield loss, lora, word


def lora_pairs(lora):
    parameters = list(lora.parameters())
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def assert_gradient_is_the_finite_difference(loss, parameter, step, tolerance):
    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).to(parameter)
    direction = parameter.grad / parameter.grad.norm() + noise / noise.norm()  # large along the gradient, and everywhere else too
    expected = (parameter.grad * direction).sum().item()
    with torch.no_grad():
        parameter.add_(step * direction)
        above = loss().item()
        parameter.sub_(2 * step * direction)
        below = loss().item()
        parameter.add_(step * direction)
    assert (above - below) / (2 * step) == pytest.approx(expected, rel=tolerance)


@pytest.fixture(scope="module", params=["sd15", "sd15-v", "sdxl"])
def models(request, pack):
    import comfy.model_base
    import tiny_models

    if request.param == "sdxl":
        return tiny_models.sdxl(torch.float64)
    kind = comfy.model_base.ModelType
    return tiny_models.sd15(torch.float64, kind.V_PREDICTION if request.param == "sd15-v" else kind.EPS)


def test_lora_gradients_are_the_finite_differences(pack, models):
    with differentiable_loss(pack, models) as (loss, lora, _):
        loss().backward()
        pairs = lora_pairs(lora)
        for down, up in [pairs[0], pairs[len(pairs) // 2], pairs[-1]]:
            assert_gradient_is_the_finite_difference(loss, down, step=1e-2, tolerance=2e-3)
            assert_gradient_is_the_finite_difference(loss, up, step=1e-2, tolerance=2e-3)


def test_word_gradients_are_the_finite_differences_in_every_text_encoder(pack, models):
    with differentiable_loss(pack, models) as (loss, _, word):
        loss().backward()
        assert set(word.vectors) == ({"clip_l", "clip_g"} if "SDXL" in type(models.model.model).__name__ else {"clip_l"})
        for vectors in word.parameters():
            assert vectors.shape[0] == 2
            assert_gradient_is_the_finite_difference(loss, vectors, step=1e-2, tolerance=5e-3)


def test_every_adapted_layer_gets_a_gradient_and_no_base_weight_does(pack, models):
    with differentiable_loss(pack, models) as (loss, lora, word):
        loss().backward()
        trained = {id(p) for p in [*lora.parameters(), *word.parameters()]}
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in [*lora.parameters(), *word.parameters()])
        base = [p for root in (models.model.model, models.clip.cond_stage_model) for p in root.parameters() if id(p) not in trained]
        assert base
        assert all(p.grad is None and not p.requires_grad for p in base)


def test_the_lora_adapts_just_the_attention_projections(pack, models):
    with differentiable_loss(pack, models) as (_, lora, _):
        endings = {path.rpartition("transformer_blocks.0.")[2] for path in lora.layers}
        assert endings == {f"{attention}.{name}" for attention in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")}


def test_a_mixed_batch_gives_each_row_its_own_model_and_prompt(pack, models):
    method = import_module(f"{pack.__name__}.palp_train.denoiser")
    denoiser = import_module(f"{pack.__name__}.nodes.host.denoiser")
    text = import_module(f"{pack.__name__}.nodes.host.text_encoder")
    with differentiable_loss(pack, models) as (_, lora, word), torch.no_grad():
        estimate = denoiser.HostDenoiser(models.model, lora)
        encode = text.HostTextEncoder(models.clip, [word])
        long = encode(" ".join(["a very long sketch"] * 30))  # more sections of tokens than the others: another shape
        asked = [(encode("[V]"), True), (encode("a cat"), False), (long, True), (encode("a cat"), True), (long, False)]
        queries = [method.Query(conditioning=conditioning, personalized=on) for conditioning, on in asked]
        noised = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(estimate.sigmas.device).repeat(5, 1, 1, 1)
        sigma = estimate.sigmas[[100, 300, 500, 700, 900]]
        together = estimate(noised, sigma, queries)
        for row, query in enumerate(queries):
            alone = estimate(noised[row : row + 1], sigma[row : row + 1], [query])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)
        assert (together[1] - together[3]).abs().max() > 1e-3
