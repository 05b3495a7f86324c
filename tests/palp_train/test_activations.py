"""Gradients through blocks that write in place and run again, against the same network written without either, in float64."""

import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from palp_train.activations import activations_kept, blocks_recomputed


class Block(nn.Module):
    """Residuals onto two streams, as DiT blocks have them; in place, the norm's saved input is overwritten."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.norm, self.linear, self.in_place, self.runs = nn.LayerNorm(4), nn.Linear(4, 4), in_place, 0

    def forward(self, image, text=None, options=None):
        self.runs += 1
        residual = self.linear(self.norm(image).sin() + (0 if text is None else text.mean(dim=1, keepdim=True))) * options["gain"]
        if self.in_place:
            image += residual
        else:
            image = image + residual
        return image, (text, image.detach().sum())


class Network(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(in_place) for _ in range(3)]).double()
        for number, parameter in enumerate(self.parameters()):
            parameter.data.normal_(generator=torch.Generator().manual_seed(number))

    def forward(self, image, text):
        image = image + 0.0  # nobody writes to what the caller has
        for block in self.blocks:
            image, (text, _) = block(image, text=text, options={"gain": 0.5, "patches": [len]})
        return image.square().mean()


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(network, within, *, inputs=True):
    """Loss and the gradients of all parameters and, if asked for, of both inputs."""
    image, text = draw(1, 2, 3, 4).requires_grad_(inputs), draw(2, 2, 5, 4).requires_grad_(inputs)
    with within:
        loss = network(image, text)
        network.zero_grad()
        loss.backward()
    return [loss.detach(), *(p.grad for p in network.parameters()), *([image.grad, text.grad] if inputs else [])]


EXPECTED = pytest.mark.parametrize("inputs", [True, False], ids=["inputs that train", "inputs that do not"])


@EXPECTED
@pytest.mark.parametrize("in_place", [True, False])
def test_recomputed_blocks_give_the_gradients_of_ordinary_ones(in_place, inputs):
    network, plain = Network(in_place), Network(False)
    expected = gradients(plain, nullcontext(), inputs=inputs)
    found = gradients(network, blocks_recomputed(network.blocks, write_in_place=in_place), inputs=inputs)
    torch.testing.assert_close(found, expected)
    assert [block.runs for block in network.blocks] == [2, 2, 2]


def test_kept_activations_give_the_gradients_that_in_place_writes_would_spoil():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(Network(True), nullcontext())
    network = Network(True)
    torch.testing.assert_close(gradients(network, activations_kept(network)), gradients(Network(False), nullcontext()))


def test_a_block_that_writes_in_place_without_saying_so_fails_loudly():
    network = Network(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(network, blocks_recomputed(network.blocks, write_in_place=False))


def test_a_pass_without_gradient_runs_each_block_once_and_as_it_is():
    network = Network(False)
    with blocks_recomputed(network.blocks, write_in_place=False), torch.no_grad():
        network(draw(1, 2, 3, 4), draw(2, 2, 5, 4))
    assert [block.runs for block in network.blocks] == [1, 1, 1]


@pytest.mark.parametrize("error", [None, KeyError])
def test_the_blocks_are_themselves_again_afterwards_also_after_an_error(error):
    network = Network(False)
    own = network.blocks[1].forward = network.blocks[1].forward  # somebody else's change to one block stays
    before = [dict(vars(block)) for block in network.blocks]
    with nullcontext() if error is None else pytest.raises(error), blocks_recomputed(network.blocks, write_in_place=False):
        if error:
            raise error
    assert [dict(vars(block)) for block in network.blocks] == before and network.blocks[1].forward is own


def test_recomputed_blocks_keep_less():
    """Bytes that autograd saves between the passes, by its own hooks."""

    def kept(within):
        saved = []
        network = Network(False)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t), within(network):
            network(draw(1, 2, 3, 4).requires_grad_(), draw(2, 2, 5, 4))
        return sum(saved)

    assert kept(lambda network: blocks_recomputed(network.blocks, write_in_place=False)) < kept(lambda _: nullcontext())


def test_the_inputs_of_recomputed_blocks_are_freed_by_the_backward_pass():
    network, inputs = Network(False), []
    network.blocks[1].register_forward_pre_hook(lambda _, args: inputs.append(weakref.ref(args[0])) or None)
    with blocks_recomputed(network.blocks, write_in_place=False):
        loss = network(draw(1, 2, 3, 4).requires_grad_(), draw(2, 2, 5, 4))
        assert any(one() is not None for one in inputs)
        loss.backward()
        assert all(one() is None for one in inputs)
