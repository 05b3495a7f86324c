"""Counting memory: closed forms on real tensors, and the same numbers from tensors without data."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from palp_train.tracing import EvenMasks, LiveMemory, storage_key, without_data

KIB = 1024


def test_what_is_made_counts_until_it_is_freed():
    with LiveMemory() as live:
        first = torch.zeros(KIB)
        second = first + 1
        assert (live.now, live.peak) == (8 * KIB, 8 * KIB)
        del first
        assert (live.now, live.peak) == (4 * KIB, 8 * KIB)
        del second
    assert (live.now, live.peak) == (0, 8 * KIB)


def test_tensors_from_before_views_and_writing_in_place_take_nothing():
    before = torch.zeros(KIB)
    with LiveMemory() as live:
        halves = before.view(2, -1)
        halves.add_(1)
        kept = before.detach()
    assert live.peak == 0 and kept is not None


def test_every_allocation_is_rounded_up():
    with LiveMemory() as live:
        one = torch.ones(1)
        assert live.now == 512 and one == 1


def test_what_autograd_saves_is_alive_until_the_backward_pass():
    weight, x = torch.zeros(KIB, requires_grad=True), torch.ones(KIB)
    with LiveMemory() as live:
        loss = (weight * x).sin().sum()
        assert live.now == 4 * KIB + 512  # the sine's input
        loss.backward()
        del loss
        assert live.now == 4 * KIB  # the gradient


def network_and_input():
    layers = [torch.nn.Conv2d(3, 16, 3), torch.nn.GroupNorm(4, 16), torch.nn.SiLU(), torch.nn.Conv2d(16, 8, 3)]
    return torch.nn.Sequential(*layers), torch.randn(2, 3, 20, 20)


def counted(network, x, scale=1.0):
    with LiveMemory() as live:
        out = network(x)
        query = out.flatten(2)
        loss = scale * functional.scaled_dot_product_attention(query, query, query).square().mean()
        kept = live.now
        loss.backward()
    return kept, live.peak


def test_tensors_without_data_take_what_real_ones_take():
    network, x = network_and_input()
    expected = counted(network, x)
    network.zero_grad()
    with FakeTensorMode():
        for module in network.modules():
            module._parameters.update({name: p if p is None else without_data(p) for name, p in module._parameters.items()})
        found = counted(network, without_data(x))
    assert found == expected and expected[0] > 0


def test_a_tensor_without_data_keeps_its_kind():
    with FakeTensorMode():
        parameter = without_data(torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16), requires_grad=False))
        strided = without_data(torch.zeros(4, 6).t())
    assert isinstance(parameter, torch.nn.Parameter) and not parameter.requires_grad and parameter.dtype == torch.bfloat16
    assert strided.stride() == (1, 6) and strided.device.type == "cpu"


def test_memory_is_told_apart_by_what_lies_behind_a_tensor():
    tensor = torch.zeros(4)
    assert storage_key(tensor) == storage_key(tensor[2:]) != storage_key(tensor.clone())


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_mask_picks_its_share_where_there_is_no_data(share):
    with FakeTensorMode(), EvenMasks(share):
        x, mask = torch.zeros(8, 3, requires_grad=True), torch.zeros(8, dtype=torch.bool)
        picked = x[mask]
        out = torch.zeros(8, 3)
        out[mask] = picked * 2
        out.sum().backward()
        assert picked.shape == (8 * share, 3) and x.grad is not None and x.grad.shape == (8, 3)
