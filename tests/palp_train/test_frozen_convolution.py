"""Frozen convolutions against PyTorch's own."""

import pytest
import torch
from torch import nn

from palp_train.frozen import OwnWeights
from palp_train.frozen_convolution import frozen_convolution, is_plain_convolution
from palp_train.tracing import LiveMemory

LAYERS = {
    "3 x 3": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "stride": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "groups and dilation": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
    "one dimension": lambda: nn.Conv1d(4, 6, 3, padding=1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradient_are_those_of_the_layer(name):
    layer = LAYERS[name]().double().requires_grad_(False)
    x = torch.randn(2, 4, *[9] * (layer.weight.ndim - 2), dtype=torch.float64, requires_grad=True)
    found, expected = frozen_convolution(x, layer, OwnWeights()), layer(x)
    assert torch.equal(found, expected)
    upstream = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(found, x, upstream)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x, upstream)[0])


def test_neither_the_input_nor_the_weight_is_kept():
    layer = LAYERS["3 x 3"]().requires_grad_(False)
    source = torch.randn(2, 4, 32, 32, requires_grad=True)
    with LiveMemory() as live:
        output = frozen_convolution(source * 2, layer, OwnWeights())
        assert live.now == output.nbytes
    with LiveMemory() as live:
        output = layer(source * 2)
        assert live.now > output.nbytes


def test_layers_that_pad_otherwise_are_left_to_pytorch():
    assert all(is_plain_convolution(make()) for make in LAYERS.values())
    assert not is_plain_convolution(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"))
    assert not is_plain_convolution(nn.Conv2d(4, 6, 3, padding="same"))
    assert not is_plain_convolution(nn.Linear(4, 6))
