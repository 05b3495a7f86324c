"""Exported files in the programs that they are for: diffusers' own loader, and the rules of A1111's bundles."""

from pathlib import Path

import pytest
import torch
from host_calls import denoised, encoded, family, subject, train
from safetensors.torch import load_file
from trainable import FAMILIES


@pytest.fixture
def export(nodes, output, monkeypatch):
    """Exports what was learned and gives the files' tensors, the LoRA's first."""
    import folder_paths

    embeddings = output / "embeddings"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(embeddings)], {".safetensors"}))

    def run(palp_lora, format, name="mine"):
        path = Path(nodes.ExportPalpLora.execute(palp_lora, format, name)[0])
        return [load_file(path), *(load_file(file) for file in sorted(embeddings.glob("*.safetensors")))]

    return run


def learned(nodes, models, **changes):
    resolution = 320 if type(models.model.model).__name__ == "PixArt" else 64
    return train(nodes, models, **{"resolution": resolution, **changes})[0]


UNETS = {
    "sd15": dict(cross_attention_dim=32, attention_head_dim=8, block_out_channels=(32, 64), transformer_layers_per_block=1),
    "sdxl": dict(
        **dict(cross_attention_dim=80, attention_head_dim=(1, 2), block_out_channels=(64, 128), transformer_layers_per_block=1, use_linear_projection=True),
        **dict(addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=48 + 6 * 256),
    ),
}


def diffusers_unet(models, name):
    """Diffusers' own network of the same shape, with the host's weights."""
    import comfy.utils
    from diffusers import UNet2DConditionModel

    blocks = dict(down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2, layers_per_block=1)
    unet = UNet2DConditionModel(sample_size=8, norm_num_groups=32, **blocks, **UNETS[name]).eval()
    weights = models.model.model.diffusion_model.state_dict()
    names = comfy.utils.unet_to_diffusers(models.model.model.model_config.unet_config)
    unet.load_state_dict({key: weights[names[key]].clone() for key in unet.state_dict()})
    return unet


@pytest.mark.parametrize("name", UNETS)
def test_diffusers_own_loader_gives_the_network_that_apply_gives(nodes, export, name):
    models = family(name)
    unet, untouched = diffusers_unet(models, name), diffusers_unet(models, name)
    palp_lora = learned(nodes, models)
    tensors = export(palp_lora, "diffusers")[0]
    unet.load_lora_adapter(tensors, prefix="unet")
    assert sum("lora_A" in key for key, _ in unet.named_modules() if key.endswith("default_0") or key.endswith("default")) == len(tensors) // 2

    model, clip, _ = nodes.ApplyPalpLora.execute(models.model, models.clip, palp_lora, 1.0).args
    import comfy.model_management

    device, conditioning = model.load_device, encoded(clip, "a sketch of [V]")[0]
    context = conditioning[0].to(device)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    time = torch.tensor([321.0], device=device)
    for theirs in (unet, untouched):
        theirs.to(device)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        network, more = model.model.diffusion_model, {}
        if name == "sdxl":
            pooled = conditioning[1]["pooled_output"]
            y = model.model.encode_adm(pooled_output=pooled, width=64, height=64, device=device).to(device)
            sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]], device=device)
            more = {"added_cond_kwargs": {"text_embeds": y[:, :48], "time_ids": sizes}}
        expected = network(latent, time, context=context, **({"y": y} if name == "sdxl" else {}))
        found = unet(latent, time, context, **more).sample
        without = untouched(latent, time, context, **more).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (without - expected).abs().max() > 1e-3


def diffusers_transformer(name):
    """Diffusers' own network of the tiny model's shape, with weights of its own."""
    import diffusers

    if name == "flux":
        return diffusers.FluxTransformer2DModel(
            in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16
        )
    sizes = dict(sample_size=16, in_channels=16, num_layers=2, attention_head_dim=64, num_attention_heads=1, joint_attention_dim=4096)
    return diffusers.SD3Transformer2DModel(**sizes, caption_projection_dim=64, pooled_projection_dim=32)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_diffusers_own_loader_takes_every_tensor_of_a_transformer(nodes, export, name):
    models = family(name)
    tensors = export(learned(nodes, models, layers="attention"), "diffusers")[0]
    transformer = diffusers_transformer(name)
    transformer.load_lora_adapter(tensors, prefix="transformer")
    loaded = {key: value for key, value in transformer.state_dict().items() if ".lora_" in key}
    assert len(loaded) == len(tensors)
    for key, value in tensors.items():
        path, _, end = key.removeprefix("transformer.").rpartition(".lora_")
        (found,) = [v for k, v in loaded.items() if k.startswith(f"{path}.lora_{end[0]}.")]
        assert torch.equal(found, value), key


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_written_in_every_format_or_refused_by_words(nodes, export, errors, name):
    models = family(name)
    palp_lora = learned(nodes, models)
    kohya = export(palp_lora, "kohya + embedding")[0]
    assert len(kohya) == len(palp_lora.lora) and all(key.startswith("lora_unet_") and key.count(".") <= 2 for key in kohya)
    if name in ("chroma", "hunyuan_dit", "hunyuan_image"):
        with pytest.raises(errors.InputError, match=r"^format: diffusers"):
            export(palp_lora, "diffusers")
        return
    tensors = export(palp_lora, "diffusers")[0]
    assert len(tensors) >= 2 * len(palp_lora.lora) // 3
    assert all(key.startswith(("unet.", "transformer.")) and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in tensors)


def test_the_kohya_file_gives_what_apply_gives_in_the_stock_loader_for_a_family_without_kohya_names(nodes, export, output, caplog):
    import nodes as host_nodes

    models = family("flux")
    palp_lora = learned(nodes, models)
    export(palp_lora, "kohya + embedding")
    model, clip, _ = nodes.ApplyPalpLora.execute(models.model, models.clip, palp_lora, 1.0).args
    caplog.clear()
    with torch.inference_mode():
        stock, _ = host_nodes.LoraLoader().load_lora(models.model, models.clip, str(Path("palp") / "mine_00001.safetensors"), 1.0, 1.0)
    assert not [record for record in caplog.records if "not loaded" in record.message]
    conditioning = encoded(clip, "a sketch of [V]")
    torch.testing.assert_close(denoised(stock, conditioning), denoised(model, conditioning), rtol=1e-5, atol=1e-5)


def test_a_bundle_holds_kohya_names_and_the_word_as_a1111_reads_it(nodes, export):
    palp_lora = learned(nodes, family("sdxl"))
    bundle = export(palp_lora, "a1111 bundle", "my.cat")[0]
    words = {}
    for key in bundle:  # as A1111 takes them apart: first the module, then the embedding's name, then its part
        module, _, part = key.partition(".")
        if module == "bundle_emb":
            name, _, vector = part.partition(".")
            words.setdefault(name, {})[vector] = bundle[key]
        else:
            assert module.startswith("lora_unet_") and part in ("alpha", "lora_down.weight", "lora_up.weight")
    assert set(words) == {"my_cat"} and set(words["my_cat"]) == {"clip_l", "clip_g"}
    assert torch.equal(words["my_cat"]["clip_g"], palp_lora.words[0].vectors["clip_g"])


def test_several_words_are_exported_as_a_numbered_file_each(nodes, export):
    both = nodes.PalpSubject.execute(
        images=[torch.rand(1, 64, 64, 3)], class_word=["toy"], placeholder=["[W]"], personalization_prompt=["a [W]"], previous=[subject(nodes)]
    )[0]
    palp_lora = learned(nodes, family("sd15"), subject=both, target_prompt="[V] with [W]")
    _, first, second = export(palp_lora, "kohya + embedding")
    assert torch.equal(first["clip_l"], palp_lora.words[0].vectors["clip_l"]) and torch.equal(second["clip_l"], palp_lora.words[1].vectors["clip_l"])


def test_an_unknown_format_is_refused(nodes, errors):
    with pytest.raises(errors.InputError, match=r"^format: "):
        nodes.ExportPalpLora.execute(None, "onnx", "mine")
