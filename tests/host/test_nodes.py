"""The nodes, called as the host calls them, on the host's own classes."""

import asyncio
from importlib import import_module
from pathlib import Path

import pytest
import torch
from devices import fill_normal
from host_calls import TARGET, denoised, encoded, subject, train


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def models(request, pack):
    import tiny_models

    return getattr(tiny_models, request.param)()


def test_the_contract_of_ids_inputs_and_outputs(pack, nodes):
    listed = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    schemas = {node.define_schema().node_id: node.define_schema() for node in listed}
    names = {id: ([i.id for i in s.inputs], [o.display_name for o in s.outputs]) for id, s in schemas.items()}
    assert names["PalpSubject"] == (["images", "class_word", "placeholder", "personalization_prompt", "masks", "previous"], ["subject"])
    assert names["PalpLossConfig"][0] == [
        *("method", "alignment_scale", "personalization_scale", "alignment_weight", "noise"),
        *("rescale", "start_percent", "end_percent", "every"),
    ]
    assert names["PalpTrainLora"] == (
        [
            *("model", "clip", "vae", "subject", "target_prompt", "name", "steps", "learning_rate", "rank", "batch_size", "seed"),
            *("loss", "clean_prompt", "negative_prompt", "teacher_model", "teacher_clip", "word_vectors", "word_learning_rate"),
            *("gradient_accumulation", "resolution", "layers", "precision", "gradient_checkpointing"),
        ],
        ["palp_lora", "lora", "loss_map", "report"],
    )
    assert names["ApplyPalpLora"] == (["model", "clip", "palp_lora", "strength"], ["model", "clip", "target_prompt"])
    assert names["LoadPalpLora"] == (["palp_lora"], ["palp_lora"])
    assert names["ExportPalpLora"] == (["palp_lora", "format", "name"], ["path"])
    assert names["PalpDemoModel"] == ([], ["model", "clip", "vae"])
    assert names["PalpDemoSubject"] == (["name", "pictures"], ["images", "class_word"])
    assert all(s.category == "PALP" and s.description and all(i.tooltip for i in s.inputs) for s in schemas.values())


def test_every_node_has_a_help_page_that_names_its_inputs(nodes):
    root = Path(nodes.__file__).parent.parent
    for node in asyncio.run(nodes.PalpExtension().get_node_list()):
        schema = node.define_schema()
        page = (root / "js" / "docs" / f"{schema.node_id}.md").read_text()
        assert [i.id for i in schema.inputs if f"`{i.id}`" not in page] == []


def test_training_writes_a_file_that_the_stock_list_shows_at_once(nodes, models, output):
    import folder_paths

    palp_lora, lora, loss_map, report = train(nodes, models).args
    assert palp_lora.file == str(Path("palp") / "test_00001.safetensors")
    assert palp_lora.file in folder_paths.get_filename_list("loras")
    assert palp_lora.file in nodes.LoadPalpLora.define_schema().inputs[0].options
    assert len(loss_map["loss"]) == 3
    assert palp_lora.file in report and TARGET in report
    assert not [name for name in lora if name.startswith("bundle_emb")]
    assert train(nodes, models, seed=1)[0].file == str(Path("palp") / "test_00002.safetensors")


def test_the_header_says_what_was_trained_and_names_no_path(nodes, models, output):
    from safetensors import safe_open

    palp_lora = train(nodes, models, clean_prompt="a drawing of a cat")[0]
    with safe_open(output / "loras" / palp_lora.file, framework="pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert metadata["palp.target_prompt"] == TARGET
    assert metadata["palp.clean_prompt"] == "a drawing of a cat"
    assert metadata["modelspec.trigger_phrase"] == "[V]"
    assert metadata["ss_network_dim"] == "4" and metadata["palp.steps"] == "3"
    assert all(str(output) not in value and str(Path.home()) not in value for value in metadata.values())
    assert {"bundle_emb.[V].clip_l"} <= keys
    assert all(key.startswith(("lora_unet_", "bundle_emb.")) for key in keys)


def test_the_stock_lora_loader_gives_the_same_denoised_tensor_as_apply(nodes, models, output, caplog):
    import nodes as host_nodes

    palp_lora = train(nodes, models)[0]
    model, clip, target = nodes.ApplyPalpLora.execute(models.model, models.clip, palp_lora, 1.0).args
    assert target == TARGET
    conditioning = encoded(clip, TARGET)
    ours = denoised(model, conditioning)
    caplog.clear()
    with torch.inference_mode():
        stock, _ = host_nodes.LoraLoader().load_lora(models.model, models.clip, palp_lora.file, 1.0, 1.0)
    assert [r.message for r in caplog.records if "not loaded" in r.message.lower() and "bundle_emb" not in r.message] == []
    torch.testing.assert_close(denoised(stock, conditioning), ours, rtol=1e-5, atol=1e-5)
    assert (denoised(models.model, conditioning) - ours).abs().max() > 1e-3


def test_the_saved_lora_acts_as_the_trained_one_did(pack, nodes, models):
    """Patched weights and injected layers agree: the file holds all of what was trained, at the right strength."""
    part = lambda name: import_module(f"{pack.__name__}.{name}")  # noqa: E731
    denoiser, families, method = part("nodes.host.denoiser"), part("nodes.host.families"), part("palp_train.denoiser")
    conditioning = encoded(models.clip, "a cat")
    given = {"cross_attn": conditioning[0][0], "pooled_output": conditioning[0][1]["pooled_output"]}
    noised = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(models.model.load_device)
    with part("nodes.host.session").training_session(models.model, models.clip) as held, torch.no_grad():
        network = held.model.model.diffusion_model
        generator = torch.Generator().manual_seed(0)
        with part("palp_train.lora").injected_lora(network, families.adapted_layers(network, "attention"), 4, generator) as lora:
            for parameter in lora.parameters():
                fill_normal(parameter, 0.2, generator)
            estimate = denoiser.HostDenoiser(held.model, lora)
            expected = estimate(noised, estimate.sigmas[[500]], [method.Query(conditioning=given, personalized=True)])
            tensors = part("nodes.host.lora").named_tensors(held.model.model, lora)
    import comfy.sd

    with torch.inference_mode():
        patched, _ = comfy.sd.load_lora_for_models(models.model, None, tensors, 1.0, 0)
    with part("nodes.host.session").training_session(patched, models.clip) as held, torch.no_grad():
        network = held.model.model.diffusion_model
        with part("palp_train.lora").injected_lora(network, families.adapted_layers(network, "attention")[:1], 1, generator) as idle:
            estimate = denoiser.HostDenoiser(held.model, idle)
            found = estimate(noised, estimate.sigmas[[500]], [method.Query(conditioning=given, personalized=False)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_placeholder_reads_as_the_new_word_wherever_it_stands(nodes, models, output):
    palp_lora = train(nodes, models)[0]
    clip = nodes.ApplyPalpLora.execute(models.model, models.clip, palp_lora, 1.0)[1]
    plain = encoded(models.clip, TARGET)[0][0]
    assert (encoded(clip, TARGET)[0][0] - plain).abs().max() > 1e-3
    assert torch.equal(encoded(clip, "a cat in Paris")[0][0], encoded(models.clip, "a cat in Paris")[0][0])
    vectors = palp_lora.words[0].vectors["clip_l"]
    for text in ("[V]", "a photo of [V]", "[V], in Paris", "[V]'s hat", "a hat\n[V] hat", "([V]:1.3) in Paris", "a [V][V]"):
        tokens = clip.tokenize(text)["l"][0]
        inserted = [token for token, _ in tokens if isinstance(token, torch.Tensor)]
        assert torch.equal(torch.stack(inserted[:2]), vectors), text
        assert len(inserted) == 2 * text.count("[V]"), text
    assert [w for t, w in clip.tokenize("([V]:1.3)")["l"][0] if isinstance(t, torch.Tensor)] == [1.3, 1.3]
    assert not any(isinstance(token, torch.Tensor) for token, _ in clip.tokenize("x[V] and [v]")["l"][0])


def test_a_loaded_lora_gives_the_same_tensors_as_the_trained_one(nodes, models, output):
    trained = train(nodes, models)[0]
    loaded = nodes.LoadPalpLora.execute(trained.file)[0]
    given = [nodes.ApplyPalpLora.execute(models.model, models.clip, one, 0.8).args for one in (trained, loaded)]
    results = [denoised(model, encoded(clip, target)) for model, clip, target in given]
    assert torch.equal(*results)


def test_exported_files_and_stock_nodes_give_what_apply_gives(nodes, models, output, monkeypatch):
    import folder_paths

    import nodes as host_nodes

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(output / "embeddings")], {".safetensors"}))
    palp_lora = train(nodes, models)[0]
    model, clip, _ = nodes.ApplyPalpLora.execute(models.model, models.clip, palp_lora, 1.0).args
    path = Path(nodes.ExportPalpLora.execute(palp_lora, "kohya + embedding", "mine")[0])
    assert path == output / "loras" / "palp" / "mine_00001.safetensors"
    stock_clip = models.clip.clone()
    import copy

    stock_clip.tokenizer = copy.deepcopy(models.clip.tokenizer)
    for tokenizer in vars(stock_clip.tokenizer).values():
        if hasattr(tokenizer, "embedding_directory"):
            tokenizer.embedding_directory = folder_paths.get_folder_paths("embeddings")
    with torch.inference_mode():
        stock, stock_clip = host_nodes.LoraLoader().load_lora(models.model, stock_clip, str(Path("palp") / path.name), 1.0, 1.0)
    prompt = TARGET.replace("[V]", "embedding:mine_00001")
    assert torch.equal(encoded(stock_clip, prompt)[0][0], encoded(clip, TARGET)[0][0])
    torch.testing.assert_close(denoised(stock, encoded(stock_clip, prompt)), denoised(model, encoded(clip, TARGET)), rtol=1e-5, atol=1e-5)


def test_no_new_word_trains_the_lora_alone(nodes, models, output):
    palp_lora = train(nodes, models, word_vectors=0)[0]
    assert palp_lora.words == []
    assert not [name for name in palp_lora.tensors() if name.startswith("bundle_emb")]


def test_pictures_of_several_sizes_train_at_their_own_aspect(nodes, models, output, pack):
    pictures = import_module(f"{pack.__name__}.nodes.host.pictures")
    taught = subject(nodes, images=[torch.rand(1, 100, 50, 3), torch.rand(2, 64, 64, 4)])
    assert [tuple(i.shape) for i in taught[0].images] == [(100, 50, 3), (64, 64, 3), (64, 64, 3)]
    latents = pictures.encode_pictures(models.vae, models.model, taught[0].images, 96)
    assert [tuple(latent.shape) for latent in latents] == [(4, 16, 8), (4, 12, 12), (4, 12, 12)]
    assert not any(latent.is_inference() for latent in latents)
    train(nodes, models, subject=taught, batch_size=2)


def test_a_picture_is_never_stretched(pack):
    pictures = import_module(f"{pack.__name__}.nodes.host.pictures")
    image = torch.zeros(1, 300, 451, 3)
    image[:, 100:200, 175:275] = 1  # a square stays a square
    small = pictures._resized(image[0].movedim(-1, 0), 128, 16)[0]
    rows, columns = (small > 0.5).any(dim=1).sum().item(), (small > 0.5).any(dim=0).sum().item()
    assert abs(rows - columns) <= 1
    assert small.shape == (112, 160)


@pytest.mark.parametrize("name", ["my cat", "猫 2", "a.b-c_d"])
def test_an_ordinary_name_is_kept(nodes, models, output, name):
    assert train(nodes, models, name=name, steps=1)[0].file == str(Path("palp") / f"{name}_00001.safetensors")


def test_weights_stored_in_half_precision_train_without_nan(nodes, errors, output):
    import tiny_models

    losses = train(nodes, tiny_models.sd15(torch.float16), steps=4)[2]["loss"]
    assert all(0 < loss < 100 for loss in losses)


def test_a_name_that_another_loras_folder_has_is_not_given_again(nodes, models, output):
    """The host looks a listed name up in all of its folders, the first that has it wins."""
    import folder_paths

    elsewhere = output / "elsewhere"
    folder_paths.folder_names_and_paths["loras"][0].insert(0, str(elsewhere))
    try:
        (elsewhere / "palp").mkdir(parents=True)
        (elsewhere / "palp" / "test_00007.safetensors").write_bytes(b"")
        assert train(nodes, models, steps=1)[0].file == str(Path("palp") / "test_00008.safetensors")
    finally:
        folder_paths.folder_names_and_paths["loras"][0].remove(str(elsewhere))


def test_what_trained_is_freed_when_the_run_ends_without_waiting_for_a_collection(pack, nodes, models, output):
    import gc
    import weakref

    lora, session = import_module(f"{pack.__name__}.palp_train.lora"), import_module(f"{pack.__name__}.nodes.host.session")
    network = models.model.model.diffusion_model
    path = next(p for p, m in network.named_modules() if p.endswith("attn1.to_q"))
    gc.disable()
    try:
        with session.training_session(models.model):
            with lora.injected_lora(network, [path], 4, torch.Generator()) as injected:
                parameter = weakref.ref(next(injected.parameters()))
            del injected
            assert parameter() is None
    finally:
        gc.enable()
