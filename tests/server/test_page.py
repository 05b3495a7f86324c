"""What users see: the example graphs and our extension in ComfyUI's own page, in a real Chromium."""

import json
import shutil
import urllib.request

import pytest

from bench import CHECKPOINT, PICTURE
from demo.graph import demo_graph

pytestmark = pytest.mark.browser

SIDE = 64
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
SMALL = {
    "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
    "LoadImage": {"image": PICTURE},
    "PalpTrainLora": {"steps": 2, "rank": 4, "resolution": SIDE},
    "EmptyLatentImage": {"width": SIDE, "height": SIDE, "batch_size": 1},
    "KSampler": {"steps": 2},
}
"""Widget values with which the example graphs run in seconds on the tests' checkpoint."""


@pytest.fixture(scope="module")
def page(server):
    """ComfyUI's page, ready, past its greeting."""
    from playwright.sync_api import sync_playwright

    from demo.server import OPENER

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "Chromium is not on the path; install it, or leave these tests out with -m 'not browser'."
    OPENER.open(urllib.request.Request(f"{server.url}/settings/Comfy.TutorialCompleted", b"true", {"Content-Type": "application/json"})).close()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        opened = browser.new_page(viewport={"width": 1600, "height": 1000})
        opened.goto(server.url)
        opened.wait_for_function("Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.PalpTrainLora)", timeout=60_000)
        yield opened
        browser.close()


def example(client, name):
    """An example graph as the template browser gets it."""
    return json.loads(client._request(f"/api/workflow_templates/ComfyUI-PALP/{name}.json"))


def open_small_example(page, client, name):
    """Open an example graph in the page and set the widgets with which it runs in seconds."""
    page.evaluate("graph => app.loadGraphData(graph)", example(client, name))
    page.evaluate(
        """small => { for (const node of app.graph.nodes) for (const widget of node.widgets ?? [])
             if (widget.name in (small[node.type] ?? {})) widget.value = small[node.type][widget.name]; }""",
        SMALL,
    )


def test_all_our_nodes_are_in_the_page(page):
    known = page.evaluate("Object.keys(LiteGraph.registered_node_types)")
    assert {"PalpSubject", "PalpLossConfig", "PalpTrainLora", "ApplyPalpLora", "LoadPalpLora", "ExportPalpLora"} <= set(known)


def test_the_page_gives_our_nodes_of_the_example_graphs_back_as_they_were_saved(page, client):
    for name in ("palp_demo", "palp_train_and_sample", "palp_load_and_sample", "palp_inspired_by_art"):
        saved = example(client, name)
        page.evaluate("graph => app.loadGraphData(graph)", saved)
        shown = {node["id"]: node for node in json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))["nodes"]}
        for node in (node for node in saved["nodes"] if "Palp" in node["type"]):
            again = shown[node["id"]]
            assert again["widgets_values"] == node["widgets_values"], node["type"]
            assert [i["name"] for i in again["inputs"]] == [i["name"] for i in node["inputs"]], node["type"]
            assert [o["name"] for o in again["outputs"]] == [o["name"] for o in node["outputs"]], node["type"]


def makes_the_same(shown, name, wanted, other):
    """Whether a node of one graph, with all before it, does at least what a node of another one is set to do."""
    links, other_links = (
        {key: value for key, value in graph[node]["inputs"].items() if isinstance(value, list)} for graph, node in ((shown, name), (wanted, other))
    )
    return (
        shown[name]["class_type"] == wanted[other]["class_type"]
        and literals(wanted[other]) <= literals(shown[name])
        and links.keys() == other_links.keys()
        and all(links[key][1] == slot and makes_the_same(shown, links[key][0], wanted, node) for key, (node, slot) in other_links.items())
    )


def literals(node):
    """What a node of a graph in the API's format is set to, links left out."""
    return {(name, value) for name, value in node["inputs"].items() if not isinstance(value, list)}


def test_the_demo_in_the_template_browser_is_the_demo_of_the_command_line(page, client):
    page.evaluate("graph => app.loadGraphData(graph)", example(client, "palp_demo"))
    shown, wanted = json.loads(page.evaluate("app.graphToPrompt().then(made => JSON.stringify(made.output))")), demo_graph()
    for name in wanted:
        assert any(makes_the_same(shown, each, wanted, name) for each in shown), name


@pytest.mark.parametrize("name", ["palp_demo", "palp_train_and_sample", "palp_inspired_by_art"])
def test_the_example_graph_runs_from_the_page_and_the_open_page_then_lists_the_new_lora(page, client, name):
    open_small_example(page, client, name)
    page.evaluate("app.graph.add(Object.assign(LiteGraph.createNode('LoraLoader'), { title: 'the list' }))")
    page.evaluate("name => { app.graph.nodes.find(node => node.type === 'PalpTrainLora').widgets.find(w => w.name === 'name').value = name; }", name)
    listed = f"app.graph.nodes.find(node => node.title === 'the list').widgets[0].options.values.some(file => file.includes('{name}'))"
    assert not page.evaluate(listed)
    page.evaluate("app.queuePrompt(0)")
    page.wait_for_function(listed, timeout=120_000)
