"""Layers that something in the user's graph keeps from learning are named after the first step."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from host_calls import everything, family, short_job


class Detached:
    """What an attention node without a backward pass gives, in the host's own place for such nodes."""

    def __call__(self, q, k, v, extra_options):
        return q.detach() * 1.0


@pytest.mark.parametrize("models", ["sd15"], indirect=True)
def test_a_node_whose_attention_has_no_backward_pass_is_named_after_one_step(training, errors, models):
    module, job = training
    patched = models.model.clone()
    patched.set_model_attn1_replace(Detached(), "middle", 0)
    before = everything(models)
    expected = r"^model: No gradient reaches layer middle_block.*attn1\.to_\w+ \(and .* more\).*patches the model \(attn1\)"
    with torch.inference_mode(), pytest.raises(errors.InputError, match=expected):
        module.run(replace(job, model=patched))
    assert everything(models) == before


def test_layers_whose_output_the_host_drops_are_the_only_ones_that_need_not_learn(pack):
    families = import_module(f"{pack.__name__}.nodes.host.families")
    models = family("qwen_image")
    unused = families.unused_layers(models.model.model)
    assert {"transformer_blocks.1.attn.to_add_out", "transformer_blocks.1.attn.add_q_proj"} < unused
    assert all(path.startswith("transformer_blocks.1.") for path in unused)
    assert families.unused_layers(family("sd15").model.model) == frozenset()


@pytest.mark.parametrize("layers", ["attention", "all linear"])
@pytest.mark.parametrize("name", ["qwen_image", "sd3", "flux", "hidream"])
def test_every_layer_of_a_family_that_is_to_learn_does(pack, name, layers):
    module, models = import_module(f"{pack.__name__}.nodes.host.training"), family(name)
    job = short_job(pack, models, steps=1)
    with torch.inference_mode():
        assert len(module.run(replace(job, train=replace(job.train, layers=layers))).steps) == 1
