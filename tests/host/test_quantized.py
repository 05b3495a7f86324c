"""Weights that are stored otherwise than they are computed with: narrow, scaled, quantized."""

import pytest
import torch
from devices import TRAINING_IS_EXACT, assert_same, fill_normal
from host_calls import family, short_job

NARROW = pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.bfloat16], ids=str)


def kept_bytes(part, models, precision):
    """(bytes that autograd keeps of one prediction, gradients of the LoRA) where a model computes in float32."""
    session, denoiser, text = (part(f"nodes.host.{name}") for name in ("session", "denoiser", "text_encoder"))
    families, weights, method = part("nodes.host.families"), part("nodes.host.weights"), part("palp_train.denoiser")
    prompt = text.FixedTextEncoder(models.clip, ["a cat"])("a cat")
    generator = torch.Generator().manual_seed(0)
    noised = torch.randn(1, 4, 8, 8, generator=generator).to(models.model.load_device)
    with session.training_session(models.model, precision=precision) as held:
        network = held.model.model.diffusion_model
        paths = families.adapted_layers(network, "attention")
        with part("palp_train.lora").injected_lora(network, paths, 4, generator, weights.HostWeights()) as lora:
            for layer in lora.layers.values():
                fill_normal(layer.up.data, 0.1, generator)
            estimate = denoiser.HostDenoiser(held.model, lora)
            query = method.Query(conditioning=prompt, personalized=True)
            estimate(noised, estimate.sigmas[500:501], [query])  # what is kept for the run is made now
            with part("palp_train.tracing").LiveMemory() as live:
                loss = estimate(noised, estimate.sigmas[500:501], [query]).square().mean()
                kept = live.now
            loss.backward()
            return kept, [parameter.grad for parameter in lora.parameters()]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@NARROW
def test_no_wide_copy_of_a_narrow_weight_waits_for_the_backward_pass(part, name, stored):
    narrow, wide = family(name, dtype=stored), family(name)
    with torch.inference_mode():
        wide.model.model.diffusion_model.load_state_dict(narrow.model.model.diffusion_model.state_dict())
    found, gradients = kept_bytes(part, narrow, "fp32")
    expected, same = kept_bytes(part, wide, "auto")
    vectors = [one for one in wide.model.model.diffusion_model.parameters() if one.ndim == 1]
    assert found <= expected + sum(-(-one.nbytes // 512) * 512 for one in vectors)  # of norms there may be copies
    for gradient, other in zip(gradients, same, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)


def test_8_bit_products_are_made_wide_in_training(part):
    """What a loader's weight_dtype fp8_e4m3fn_fast or --fast fp8_matrix_mult chooses."""
    import comfy.ops

    stored = torch.float8_e4m3fn
    fast, plain = family("sd15", dtype=stored, operations=comfy.ops.fp8_ops), family("sd15", dtype=stored)
    kept, gradients = kept_bytes(part, fast, "fp32")
    expected, same = kept_bytes(part, plain, "fp32")
    assert kept == expected
    for gradient, other in zip(gradients, same, strict=True):
        if TRAINING_IS_EXACT:
            assert_same(gradient, other)
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)


class SVDQW4A4Linear(torch.nn.Module):
    """Like Nunchaku's layers, which have no weight of that name."""

    def __init__(self, layer):
        super().__init__()
        self.qweight = torch.nn.Parameter(torch.zeros(layer.out_features, dtype=torch.int8), requires_grad=False)


class CublasLinear(torch.nn.Linear):
    """Of this name is the layer of cublas_ops, which has no backward pass."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features)


def test_quantized_networks_are_refused_by_name_with_what_to_load_instead(part, errors):
    refuse = part("nodes.host.session").refuse_untrainable
    cases = [
        (packed, r"it is a GGUF model .*Load Diffusion Model"),
        (SVDQW4A4Linear, r"it is quantized for Nunchaku .*Load Checkpoint"),
        (CublasLinear, r"without --fast cublas_ops"),
    ]
    if not older_host():  # through whose layers for scaled floats gradient passes
        cases.append((scaled, r"its weights are quantized \(float8_e4m3fn\) .*plain fp8"))
    for layer_of, message in cases:
        models = family("sd15")
        with torch.inference_mode():
            exchange_linears(models.model.model.diffusion_model.output_blocks, layer_of)
        with pytest.raises(errors.InputError, match=rf"^model: .*{message}"):
            refuse(models.model.model)


def quantized_t5(layer_of):
    """A tiny Flux with other linear layers in its T5, each made of the plain one."""
    models = family("flux")
    with torch.inference_mode():
        exchange_linears(models.clip.cond_stage_model.t5xxl.transformer, layer_of)
    return models


def exchange_linears(network, layer_of):
    for path, layer in list(network.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, layer_of(layer))


def older_host():
    """Whether it keeps scaled 8-bit floats as plain tensors with a number beside each."""
    import comfy.ops

    return hasattr(comfy.ops, "scaled_fp8_ops")


def scaled(layer):
    """The host's own layer for 8-bit floats with a scale, of which files named fp8_scaled are."""
    import comfy.ops

    scale = layer.weight.abs().max() / 448
    narrow = (layer.weight / scale).to(torch.float8_e4m3fn)
    sizes = (layer.in_features, layer.out_features)
    if older_host():
        made = comfy.ops.scaled_fp8_ops(override_dtype=torch.float8_e4m3fn).Linear(*sizes, bias=False)
        made.weight.data, made.scale_weight.data = narrow, scale
        return made.requires_grad_(False)
    made = comfy.ops.mixed_precision_ops({}, torch.float32, full_precision_mm=True).Linear(*sizes, bias=False)
    marks = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    made.load_state_dict({"weight": narrow, "weight_scale": scale, "comfy_quant": marks})
    return made


class PackedTensor(torch.Tensor):
    """Bytes that say they are a matrix, as the weights of the loaders for GGUF files do."""

    @property
    def shape(self):
        return self.tensor_shape


def packed(layer):
    """A layer that unpacks such a weight in its forward pass."""
    import comfy.ops

    class PackedLinear(comfy.ops.manual_cast.Linear):
        def forward(self, x):
            rows = torch.Tensor(self.weight.data.as_subclass(torch.Tensor)).view(self.out_features, -1)
            return torch.nn.functional.linear(x, rows[:, : self.in_features].to(x) / 64)

    made = PackedLinear(layer.in_features, layer.out_features, bias=False)
    weight = (layer.weight * 64).clamp(-127, 127).to(torch.int8)
    weight = torch.nn.functional.pad(weight, (0, 2)).flatten().as_subclass(PackedTensor)
    weight.tensor_type, weight.tensor_shape = 2, layer.weight.shape
    made.weight = torch.nn.Parameter(weight, requires_grad=False)
    made.weight.tensor_type, made.weight.tensor_shape = 2, layer.weight.shape
    return made


def weights_of(module):
    """The objects, and what their memory holds."""
    held = {}
    for name, tensor in module.named_parameters():
        flat = getattr(tensor, "_qdata", tensor).as_subclass(torch.Tensor)
        held[name] = (id(tensor), flat.untyped_storage().nbytes(), bytes(flat.untyped_storage()))
    return held


@pytest.mark.parametrize("layer_of", [scaled, packed])
def test_beside_a_quantized_t5_the_clip_learns_and_the_t5_reads_the_class_word(pack, part, layer_of):
    training, text = part("nodes.host.training"), part("nodes.host.text_encoder")
    models = quantized_t5(layer_of)
    t5 = models.clip.cond_stage_model.t5xxl
    with torch.inference_mode():
        expected = models.clip.encode_from_tokens(models.clip.tokenize("a photo of a cat"))
        before = weights_of(t5)
        outcome = training.run(short_job(pack, models))
        same = models.clip.encode_from_tokens(models.clip.tokenize("a photo of a cat"))
    assert set(outcome.words[0].vectors) == {"clip_l"}
    assert weights_of(t5) == before
    assert_same(same, expected)
    (note,) = text.class_word_notes(models.clip, {"clip_l"})
    assert note == "t5xxl learned no word, because its weights are quantized: it read the class word in its place."


def test_a_quantized_t5_gives_in_training_what_it_gives_to_the_host(part):
    session, text = part("nodes.host.session"), part("nodes.host.text_encoder")
    models = quantized_t5(scaled)
    with torch.inference_mode():
        expected = models.clip.encode_from_tokens(models.clip.tokenize("a cat"))
    with session.training_session(models.model, models.clip, learned={"clip_l"}) as held, torch.no_grad():
        encode = text.HostTextEncoder(held.clip, [])
        found = [encode("a cat")["cross_attn"] for _ in range(2)]
    for one in found:
        assert_same(one, expected)
    assert not any(one.is_inference() for one in found)


def test_an_alias_of_quantized_weights_has_their_values_and_their_memory(part):
    weights = part("nodes.host.weights")
    with torch.inference_mode():
        plain = torch.nn.Linear(16, 8, bias=False)
        layers = [scaled(plain), packed(plain), plain]
    for layer in layers:
        stored = layer.weight
        alias, flat = weights.frozen_alias(stored), getattr(stored, "_qdata", stored)
        same = getattr(alias, "_qdata", alias)
        assert same.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
        assert same.untyped_storage().nbytes() == flat.untyped_storage().nbytes()
        assert (weights.is_quantized(layer) or weights.is_scaled(layer)) == (layer is not plain)
        if hasattr(stored, "_qdata"):
            assert torch.equal(alias.dequantize(), stored.dequantize()) and not same.is_inference()
