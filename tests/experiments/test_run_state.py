"""Stages of the demo model's maker, cut off and resumed."""

import pytest
import torch
from torch import nn

from demo.make import art
from demo.make.run_state import Stage, warm_cosine

STEPS = 12


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains a small stage up to a step, with its state in a folder of that name; returns its weights and their average."""

    def train(folder, until=None):
        monkeypatch.setattr("demo.make.run_state.WORK", tmp_path / folder)
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.manual_seed(0)
        network, average = nn.Linear(4, 1), nn.Linear(4, 1)
        stage = Stage(name="line", modules=network, optimizer=torch.optim.AdamW(network.parameters()), steps=STEPS, until=until, average=average)
        stage.train(lambda step: (network(torch.randn(8, 4)) - step).square().mean(), warm_cosine(0.1))
        return nn.utils.parameters_to_vector([*network.parameters(), *average.parameters()])

    return train


def test_a_stage_that_was_cut_off_goes_on_as_if_it_had_not_been(trained):
    trained("cut", until=5)
    assert torch.equal(trained("cut"), trained("whole"))


def test_a_stage_stops_where_it_is_told_to(trained):
    early, later = trained("early", until=5), trained("later", until=6)
    assert not torch.equal(early, later) and torch.equal(early, trained("early", until=5))


def test_without_npm_the_maker_says_what_it_is_for(tmp_path, monkeypatch):
    monkeypatch.setattr(art, "WORK", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="npm is not on the path"):
        art.draw_all()
