"""Gradients through the host's real classes, made in inference mode, against central finite differences: every family, both ways to keep memory."""

from importlib import import_module

import pytest
import torch
from host_calls import family
from trainable import FAMILIES, differentiable_loss, lora_pairs

DEAD = ("transformer_blocks.1.attn.to_add_out", "transformer_blocks.1.attn.add_q_proj")
"""Layers whose output the host computes and drops: the text stream of Qwen-Image's last block."""
CHECKPOINTING = pytest.mark.parametrize("checkpointing", ["off", "on"])


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


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, pack):
    return family(request.param, dtype=torch.float64)


@CHECKPOINTING
def test_lora_gradients_are_the_finite_differences(pack, models, checkpointing):
    with differentiable_loss(pack, models, checkpointing=checkpointing) as (loss, lora, _):
        loss().backward()
        pairs = lora_pairs(lora)
        for down, up in [pairs[0], pairs[len(pairs) // 2], next(pair for pair in reversed(pairs) if pair[1].grad is not None)]:
            assert_gradient_is_the_finite_difference(loss, down, step=1e-2, tolerance=2e-3)
            assert_gradient_is_the_finite_difference(loss, up, step=1e-2, tolerance=2e-3)


@CHECKPOINTING
def test_word_gradients_are_the_finite_differences_in_every_text_encoder(pack, models, checkpointing):
    with differentiable_loss(pack, models, checkpointing=checkpointing) as (loss, _, word):
        loss().backward()
        for vectors in word.parameters() if word else ():
            assert vectors.shape[0] == 2
            assert_gradient_is_the_finite_difference(loss, vectors, step=2e-3, tolerance=5e-3)


def test_the_word_is_learned_by_every_clip_and_t5_encoder_and_by_no_language_model(pack, models):
    with differentiable_loss(pack, models) as (_, _, word):
        learned = set(word.vectors) if word else set()
    name = type(models.model.model).__name__
    both, t5 = {"clip_l", "clip_g"}, {"t5xxl"}
    second = "SD20" in type(models.model.model.model_config).__name__
    expected = {
        "BaseModel": {"clip_h"} if second else {"clip_l"},
        "SDXL": both,
        "SD3": both | t5,
        "Flux": {"clip_l", "t5xxl"},
        "Chroma": t5,
        "PixArt": t5,
        "HiDream": both | t5,
    }
    expected |= {"AuraFlow": {"pile_t5xl"}, "HunyuanDiT": {"mt5xl"}, "HunyuanImage21": set(), "Lumina2": set(), "QwenImage": set()}
    assert learned == expected[name]


@CHECKPOINTING
def test_every_adapted_layer_gets_a_gradient_and_no_base_weight_does(pack, models, checkpointing):
    with differentiable_loss(pack, models, checkpointing=checkpointing) as (loss, lora, word):
        loss().backward()
        trained = {id(p) for p in [*lora.parameters(), *(word.parameters() if word else ())]}
        live = [p for path, layer in lora.layers.items() if not path.endswith(DEAD) for p in layer.parameters() if id(p) in trained]
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in [*live, *(word.parameters() if word else ())])
        base = [p for root in (models.model.model, models.clip.cond_stage_model) for p in root.parameters() if id(p) not in trained]
        assert base
        assert all(p.grad is None and not p.requires_grad for p in base)


@pytest.mark.parametrize("checkpointing", ["on"])
def test_with_checkpointing_every_block_runs_twice(pack, models, checkpointing):
    families = import_module(f"{pack.__name__}.nodes.host.families")
    with differentiable_loss(pack, models, checkpointing=checkpointing) as (loss, _, _):
        blocks, runs = families.trainable_blocks(models.model.model.diffusion_model), {}
        inner = {path: next(m for m in block.modules() if not list(m.children())) for path, block in blocks.items()}
        handles = [m.register_forward_hook(lambda *_, path=path: runs.update({path: runs.get(path, 0) + 1})) for path, m in inner.items()]
        value = loss()
        once = dict(runs)
        value.backward()
        for handle in handles:
            handle.remove()
    assert once and {path: runs[path] / count for path, count in once.items()} == dict.fromkeys(once, 2.0)


ADAPTED = {
    "BaseModel": {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"},
    "SD3": {f"{stream}.{part}" for stream in ("context_block", "x_block") for part in ("attn.qkv", "attn.proj", "attn2.qkv", "attn2.proj")},
    "Flux": {"img_attn.qkv", "img_attn.proj", "txt_attn.qkv", "txt_attn.proj", "linear1", "linear2"},
    "AuraFlow": {f"attn.w{stream}{part}" for stream in "12" for part in "qkvo"},
    "PixArt": {"attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"},
    "HunyuanDiT": {"attn1.Wqkv", "attn1.out_proj", "attn2.q_proj", "attn2.kv_proj", "attn2.out_proj"},
    "Lumina2": {"attention.qkv", "attention.out"},
    "QwenImage": {f"attn.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")},
    "HiDream": {f"attn1.{part}{stream}" for stream in ("", "_t") for part in ("to_q", "to_k", "to_v", "to_out")},
}
ADAPTED |= {"SDXL": ADAPTED["BaseModel"], "Chroma": ADAPTED["Flux"], "HunyuanImage21": ADAPTED["Flux"]}


def test_the_lora_adapts_just_the_attention_projections(pack, models):
    with differentiable_loss(pack, models) as (_, lora, _):
        wanted = ADAPTED[type(models.model.model).__name__]
        found = {path: next((ending for ending in wanted if path.endswith(f".{ending}")), None) for path in lora.layers}
    assert None not in found.values(), [path for path, ending in found.items() if ending is None]
    assert set(found.values()) == wanted - (
        {"context_block.attn2.qkv", "context_block.attn2.proj", "x_block.attn2.qkv", "x_block.attn2.proj"} - set(found.values())
    )


def test_a_mixed_batch_gives_each_row_its_own_model_and_prompt(pack, models):
    import tiny_families

    method = import_module(f"{pack.__name__}.palp_train.denoiser")
    denoiser = import_module(f"{pack.__name__}.nodes.host.denoiser")
    text = import_module(f"{pack.__name__}.nodes.host.text_encoder")
    with differentiable_loss(pack, models) as (_, lora, word), torch.no_grad():
        estimate = denoiser.HostDenoiser(models.model, lora)
        encode = text.HostTextEncoder(models.clip, [word] if word else [])
        long = encode(" ".join(["a very long sketch"] * 30))  # more sections of tokens than the others: another shape
        asked = [(encode("[V]"), True), (encode("a cat"), False), (long, True), (encode("a cat"), True), (long, False)]
        queries = [method.Query(conditioning=conditioning, personalized=on) for conditioning, on in asked]
        latent = torch.randn(1, *tiny_families.latent_shape(models.model), generator=torch.Generator().manual_seed(0)).to(estimate.sigmas.device)
        noised, sigma = latent.repeat(5, *[1] * (latent.ndim - 1)), estimate.sigmas[[len(estimate.sigmas) * part // 10 for part in (1, 3, 5, 7, 9)]]
        together = estimate(noised, sigma, queries)
        for row, query in enumerate(queries):
            alone = estimate(noised[row : row + 1], sigma[row : row + 1], [query])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)
        assert (together[1] - together[3]).abs().max() > 1e-3
