"""What users do, over HTTP on the real server, with stock nodes before and after ours."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import CHECKPOINT, PICTURE
from demo.errors import Interrupted, NodeFailed

SIDE = 64
TARGET = "a sketch of [V] in Paris"


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def loaders():
    return {"checkpoint": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT), "photo": node("LoadImage", image=PICTURE)}


def training(name="cat", class_word="cat", placeholder="[V]", **changes):
    """Nodes that teach one subject; ids begin with ``name``."""
    settings = dict(target_prompt=TARGET.replace("[V]", placeholder), name=name, steps=2, learning_rate=1e-2, rank=4, batch_size=1, seed=0)
    settings |= dict(word_learning_rate=1e-2, resolution=SIDE) | changes
    prompt = f"a photo of {placeholder}"
    return {
        f"{name} subject": node("PalpSubject", images=["photo", 0], class_word=class_word, placeholder=placeholder, personalization_prompt=prompt),
        f"{name} train": node(
            "PalpTrainLora", model=["checkpoint", 0], clip=["checkpoint", 1], vae=["checkpoint", 2], subject=[f"{name} subject", 0], **settings
        ),
    }


def sampling(model, clip, text, name="picture"):
    """Stock nodes from a prompt to a saved picture, whose node has the id ``name``."""
    settings = dict(seed=7, steps=2, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)
    return {
        f"{name} prompt": node("CLIPTextEncode", clip=clip, text=text),
        f"{name} empty": node("CLIPTextEncode", clip=clip, text=""),
        f"{name} noise": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
        f"{name} sampler": node(
            "KSampler", model=model, positive=[f"{name} prompt", 0], negative=[f"{name} empty", 0], latent_image=[f"{name} noise", 0], **settings
        ),
        f"{name} decoder": node("VAEDecode", samples=[f"{name} sampler", 0], vae=["checkpoint", 2]),
        name: node("SaveImage", images=[f"{name} decoder", 0], filename_prefix=name.replace(" ", "_")),
    }


def applied(lora, name="apply"):
    return {name: node("ApplyPalpLora", model=["checkpoint", 0], clip=["checkpoint", 1], palp_lora=lora, strength=1.0)}


def whole_graph(**changes):
    """Graph 3 of the pack's promise: train, apply and sample in one run."""
    trained = training(**changes)
    return {**loaders(), **trained, **applied(["cat train", 0]), **sampling(["apply", 0], ["apply", 1], TARGET)}


def picture(client, outputs, name="picture"):
    return np.asarray(Image.open(io.BytesIO(client.view(outputs[name]["images"][0])))).astype(int)


def saved_loras(base):
    return sorted(path.name for path in (base / "output" / "loras").rglob("*.safetensors"))


def test_one_run_trains_applies_and_samples_and_later_runs_and_stock_nodes_give_the_same_picture(client, base):
    before = client.choices("LoraLoader", "lora_name")
    outputs = client.run(whole_graph())
    drawn = picture(client, outputs)
    (file,) = set(client.choices("LoraLoader", "lora_name")) - set(before)
    assert Path(file).parts == ("palp", "cat_00001.safetensors")
    assert file in client.choices("LoadPalpLora", "palp_lora")

    later = {**loaders(), "load": node("LoadPalpLora", palp_lora=file), **applied(["load", 0]), **sampling(["apply", 0], ["apply", 1], TARGET)}
    assert np.array_equal(picture(client, client.run(later)), drawn)

    export = {"load": node("LoadPalpLora", palp_lora=file), "export": node("ExportPalpLora", palp_lora=["load", 0], format="kohya + embedding", name="word")}
    client.run(export)
    stock = {**loaders(), "lora": node("LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], lora_name=file, strength_model=1.0, strength_clip=1.0)}
    stock |= sampling(["lora", 0], ["lora", 1], TARGET.replace("[V]", "embedding:word_00001"))
    assert np.abs(picture(client, client.run(stock)) - drawn).max() <= 1

    plain = {**loaders(), **sampling(["checkpoint", 0], ["checkpoint", 1], TARGET)}
    assert np.abs(picture(client, client.run(plain)) - drawn).max() > 1


def test_the_same_prompt_queued_twice_trains_once(client, base):
    graph = whole_graph(name="cat", seed=11)
    client.run(graph)
    files, began = saved_loras(base), time.monotonic()
    client.run(graph)
    assert time.monotonic() - began < 2
    assert saved_loras(base) == files


def test_a_cancel_in_mid_training_saves_nothing_and_the_next_run_is_normal(client, base):
    files = saved_loras(base)
    reference = {**loaders(), **sampling(["checkpoint", 0], ["checkpoint", 1], "a cat", "reference")}
    untouched = picture(client, client.run(reference), "reference")

    prompt = client.queue(whole_graph(steps=500, seed=12))
    with pytest.raises(Interrupted):
        for message in client.events(prompt):
            if message["type"] == "progress" and message["data"]["value"] >= 2:
                cancelled = time.monotonic()
                client.interrupt()
        client.follow(prompt)
    assert time.monotonic() - cancelled < 10
    assert saved_loras(base) == files
    assert not list(base.rglob("*.partial"))

    again = sampling(["checkpoint", 0], ["checkpoint", 1], "a cat", "again")
    assert np.array_equal(picture(client, client.run({**loaders(), **again}), "again"), untouched)
    client.run(whole_graph(seed=13))
    assert len(saved_loras(base)) == len(files) + 1


def test_two_subjects_queued_back_to_back_and_then_used_in_one_prompt(client):
    both = [client.queue({**loaders(), **training(name=name, class_word=name, placeholder=f"[{name}]")}) for name in ("dog", "toy")]
    for prompt in both:
        client.follow(prompt)
    files = [next(f for f in client.choices("LoadPalpLora", "palp_lora") if f"{name}_" in f) for name in ("dog", "toy")]
    graph = loaders() | {f"load {n}": node("LoadPalpLora", palp_lora=file) for n, file in enumerate(files)}
    graph |= applied(["load 0", 0], "first")
    graph["second"] = node("ApplyPalpLora", model=["first", 0], clip=["first", 1], palp_lora=["load 1", 0], strength=0.5)
    graph |= sampling(["second", 0], ["second", 1], "a painting of [dog] with [toy]")
    assert picture(client, client.run(graph)).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("changes, name", [(dict(target_prompt="a sketch"), "target_prompt"), (dict(name="../../evil"), "name")])
def test_bad_input_stops_the_run_with_a_sentence_that_names_it(client, base, changes, name):
    files = saved_loras(base)
    graph = whole_graph(seed=14)
    graph["cat train"]["inputs"] |= changes
    with pytest.raises(NodeFailed, match=f"{name}: "):
        client.run(graph)
    assert saved_loras(base) == files
    assert not list(base.parent.rglob("*evil*"))


def test_a_value_out_of_range_through_a_link_is_refused_too(client):
    graph = whole_graph(seed=15)
    graph["number"] = node("PrimitiveInt", value=0)
    graph["cat train"]["inputs"]["steps"] = ["number", 0]
    with pytest.raises(NodeFailed, match="steps: 0 is out of range"):
        client.run(graph)


def test_a_graph_of_which_the_server_would_run_only_a_part_is_an_error(client):
    from demo.errors import GraphRejected

    with pytest.raises(GraphRejected, match="strength"):
        client.run({**loaders(), **training(seed=19), "apply": node("ApplyPalpLora", palp_lora=["cat train", 0]), **sampling(["apply", 0], ["apply", 1], "")})


def test_a_widget_value_out_of_range_is_refused_when_it_is_queued(client):
    from demo.errors import GraphRejected

    with pytest.raises(GraphRejected, match="steps"):
        client.run(whole_graph(steps=0))


def test_progress_arrives_on_the_training_node_for_every_step(client):
    prompt = client.queue({**loaders(), **training(steps=4, seed=16)})
    seen = [m["data"] for m in client.events(prompt) if m["type"] == "progress" and m["data"]["node"] == "cat train"]
    assert seen[-1]["value"] == seen[-1]["max"] == 4
    assert len({data["value"] for data in seen}) >= 3


def test_the_loss_goes_into_the_stock_loss_graph_and_the_lora_into_the_stock_loader(client):
    graph = {**loaders(), **training(seed=17, steps=3)}
    graph["chart"] = node("LossGraphNode", loss=["cat train", 2], filename_prefix="loss")
    graph["wear"] = node("LoraModelLoader", model=["checkpoint", 0], lora=["cat train", 1], strength_model=1.0, bypass=False)  # newer hosts want it
    graph |= sampling(["wear", 0], ["checkpoint", 1], "a cat")
    outputs = client.run(graph)
    assert outputs["chart"]["images"]
    assert picture(client, outputs).shape == (SIDE, SIDE, 3)


def test_help_pages_and_example_graphs_are_served(client):
    import json

    page = client._request("/extensions/ComfyUI-PALP/docs/PalpTrainLora.md").decode()
    assert page.startswith("# PALP Train LoRA")
    templates = json.loads(client._request("/api/workflow_templates"))
    assert {"palp_demo", "palp_train_and_sample"} <= set(templates["ComfyUI-PALP"])
    graph = json.loads(client._request("/api/workflow_templates/ComfyUI-PALP/palp_train_and_sample.json"))
    assert {"PalpSubject", "PalpTrainLora", "ApplyPalpLora"} <= {n["type"] for n in graph["nodes"]}
    assert client._request("/api/workflow_templates/ComfyUI-PALP/palp_train_and_sample.jpg")[:3] == b"\xff\xd8\xff"


def test_the_server_log_has_no_complaint_about_us(client, server):
    before = server.log_text()
    client.run(whole_graph(seed=18))
    assert "import failed" not in before.lower() and "cannot import" not in before.lower()
    said = server.log_text().removeprefix(before).lower()
    assert "palptrainlora" not in said and "error" not in said and "traceback" not in said
    assert "lora key not loaded: lora_unet" not in said
