"""Every family, end to end through the nodes: it learns, its file works in the stock loader, and its models are given back."""

from pathlib import Path

import pytest
import torch
from host_calls import TARGET, denoised, encoded, everything, family, sampled, subject, train
from trainable import FAMILIES, differentiable_loss


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, pack):
    made = family(request.param)
    sampled(made)  # the host's own loading leaves its marks; they are not ours to remove
    return made


def trained(nodes, models, **changes):
    """What the training node gives, at a resolution that the family's code can work on."""
    resolution = 320 if type(models.model.model).__name__ == "PixArt" else 64
    return train(nodes, models, **{"resolution": resolution, **changes})


@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_twenty_steps_lower_the_loss_of_a_fixed_batch(pack, models, checkpointing):
    with differentiable_loss(pack, models, checkpointing=checkpointing) as (loss, lora, word):
        optimizer = torch.optim.Adam([*lora.parameters(), *(word.parameters() if word else ())], lr=1e-2)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_stock_lora_loader_takes_every_key_and_gives_what_apply_gives(nodes, models, output, caplog):
    import nodes as host_nodes

    palp_lora = trained(nodes, models)[0]
    model, clip, _ = nodes.ApplyPalpLora.execute(models.model, models.clip, palp_lora, 1.0).args
    conditioning = encoded(clip, TARGET)
    ours = denoised(model, conditioning)
    caplog.clear()
    with torch.inference_mode():
        stock, _ = host_nodes.LoraLoader().load_lora(models.model, models.clip, palp_lora.file, 1.0, 1.0)
    not_loaded = [record.message for record in caplog.records if "not loaded" in record.message.lower()]
    assert [message for message in not_loaded if "bundle_emb" not in message] == []
    torch.testing.assert_close(denoised(stock, conditioning), ours, rtol=1e-5, atol=1e-5)
    assert (denoised(models.model, conditioning) - ours).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": "on", "layers": "all linear", "batch_size": 2}], ids=["defaults", "all else"])
def test_the_models_are_given_back_bit_by_bit(nodes, models, output, changes):
    picture, before = sampled(models), everything(models)
    trained(nodes, models, **changes)
    assert everything(models) == before
    assert torch.equal(sampled(models), picture)


def test_checkpointing_changes_no_loss_of_a_run(nodes, models, output):
    taught = subject(nodes)
    off, on = (trained(nodes, models, subject=taught, steps=4, gradient_checkpointing=how)[2]["loss"] for how in ("off", "on"))
    assert on == pytest.approx(off, rel=1e-4) and len(set(off)) == 4


def test_the_file_says_what_family_it_is_for(nodes, models, output):
    metadata = trained(nodes, models, steps=1)[0].metadata
    assert metadata["modelspec.architecture"].endswith("/lora") and metadata["ss_base_model_version"]
    assert Path(output / "loras" / "palp" / "test_00001.safetensors").is_file()
