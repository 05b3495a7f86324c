"""Counting memory: closed forms on real tensors, and the same numbers from tensors without data."""

import pytest
import torch
from torch.nn import functional

from palp_train.activations import blocks_recomputed
from palp_train.tracing import (
    GRANULE,
    MASK_ALIGNMENT,
    EvenMasks,
    LiveMemory,
    ShapesOnly,
    kernels_of,
    storage_key,
    without_data,
)

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


def counted(network, x, run=None):
    with LiveMemory(run) as live:
        out = network(x)
        query = out.flatten(2)
        loss = functional.scaled_dot_product_attention(*[query[:, None]] * 3).square().mean()
        kept = live.now
        torch.autograd.backward(loss)
    return kept, live.peak


def emptied(network):
    for module in network.modules():
        module._parameters.update({name: p if p is None else without_data(p) for name, p in module._parameters.items()})
    return network


def test_tensors_without_data_take_what_real_ones_take():
    network, x = network_and_input()
    expected = counted(network, x)
    network.zero_grad()
    with kernels_of("cpu"):
        found = counted(emptied(network), without_data(x), ShapesOnly())
    assert found == expected and expected[0] > 0


def test_a_tensor_without_data_keeps_its_kind():
    parameter = without_data(torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16), requires_grad=False))
    strided = without_data(torch.zeros(4, 6).t())
    assert isinstance(parameter, torch.nn.Parameter)
    assert not parameter.requires_grad and parameter.dtype == torch.bfloat16
    assert strided.stride() == (1, 6) and strided.is_meta


def test_what_meets_a_tensor_without_data_loses_its_own():
    x, real = without_data(torch.zeros(2, 3)), torch.ones(2, 3)
    with LiveMemory(ShapesOnly()):
        results = [x + real, real * x, x.cpu(), x.to("cpu", torch.float64), torch.zeros_like(x, device="cpu")]
    assert all(result.is_meta and result.shape == (2, 3) for result in results)
    assert real.sum() == 6


def test_what_is_computed_without_such_tensors_keeps_its_data():
    with LiveMemory(ShapesOnly()):
        assert torch.arange(4).sum().item() == 6


def test_an_operation_whose_result_is_known_gives_the_same_shape_type_and_memory_again():
    whole, wide = without_data(torch.zeros(4, 6, dtype=torch.int32)), without_data(torch.zeros(4, 6))

    def results():
        # 2, 2.0 and True are equal, but not as factors.
        products = [whole * 2, whole * 2.0, whole * True, wide * 2, wide.t() * 2, (wide * 2).t()]
        return [*products, *torch.var_mean(wide, dim=1), *torch.split(wide, 2), *torch._foreach_add([wide, whole], 1)]

    def portrait(tensors):
        return [(tensor.shape, tensor.stride(), tensor.dtype, tensor.untyped_storage().nbytes()) for tensor in tensors]

    expected = portrait(results())
    with LiveMemory(ShapesOnly()) as live:
        first = results()
        assert portrait(first) == expected
        taken = live.now
        again = results()
        assert portrait(again) == expected and live.now == 2 * taken


def test_a_view_is_one_however_often_it_is_made():
    x = without_data(torch.zeros(8, 8))
    with LiveMemory(ShapesOnly()) as live:
        for _ in range(2):
            made = [torch.ops.aten._unsafe_view(x, [64]), x.view(-1), x.t(), x.detach(), x.add_(1)]
            assert {storage_key(tensor) for tensor in made} == {storage_key(x)}
    assert live.peak == 0


def test_what_is_changed_in_place_is_the_same_tensor_and_may_change_its_shape_each_time():
    x, row, real = without_data(torch.zeros(4, 6)), without_data(torch.zeros(6)), torch.ones(4, 6)
    with LiveMemory(ShapesOnly()) as live:
        for _ in range(2):
            assert x.add_(row) is x and x.mul_(2) is x
            with pytest.raises(RuntimeError):
                row.add_(x)
            real.add_(x)
            assert real.sum() == 24
        for rows in (2, 4, 2, 4):
            assert x.resize_(rows, 6).shape == (rows, 6)
    assert live.now == 0


def test_a_tensor_that_is_set_onto_other_memory_takes_none_and_does_not_keep_that_alive():
    x = without_data(torch.zeros(KIB))
    with LiveMemory(ShapesOnly()) as live:
        for source in (x, x + 1, x + 1):
            alias = x.new_empty(0).set_(source.untyped_storage(), 0, (KIB,), (1,))
            assert storage_key(alias) == storage_key(source)
            del alias, source
        assert live.now == 0
    assert live.peak == 2 * 4 * KIB  # the sums


def rms_norm_kept(device, x, weight, run):
    """Bytes alive after an RMS norm whose input nothing else keeps, and the most until after its backward pass."""
    with kernels_of(device), LiveMemory(run) as live:
        out = functional.rms_norm(x * 1, x.shape[-1:], weight, 1e-6)
        kept = live.now
        torch.autograd.backward(out.sum())
    return kept, live.peak


NORMED = torch.zeros(64, KIB, dtype=torch.bfloat16, requires_grad=True)
ROOTS = 64 * 4


@pytest.mark.skipif(not hasattr(torch.ops.aten, "_fused_rms_norm_backward"), reason="one kernel from torch 2.9 on")
def test_rms_norm_on_cuda_keeps_its_input_and_the_reciprocal_root():
    weight = torch.ones(KIB, dtype=torch.bfloat16)
    found, _ = rms_norm_kept("cuda", without_data(NORMED), without_data(weight), ShapesOnly())
    output, kept = NORMED.nbytes, NORMED.nbytes
    assert found == output + kept + GRANULE  # the roots take less than a granule
    assert ROOTS <= GRANULE


def test_rms_norm_on_the_cpu_keeps_what_it_keeps_there():
    weight = torch.ones(KIB, dtype=torch.bfloat16)
    real = rms_norm_kept("cpu", NORMED, weight, None)
    NORMED.grad = None
    assert rms_norm_kept("cpu", without_data(NORMED), without_data(weight), ShapesOnly()) == real
    assert real[0] >= 3 * NORMED.nbytes  # the output, and a copy of the input in float32


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_rms_norm_on_cuda_is_several_kernels_where_the_weight_is_of_another_type():
    x, weight = without_data(NORMED), without_data(torch.ones(KIB))
    found = [rms_norm_kept(device, x, weight, ShapesOnly()) for device in ("cpu", "cuda")]
    assert found[0] == found[1]


def attention_took(device, run, query, *more, **how):
    """Bytes alive after an attention, the most until after its backward pass, and without gradient."""
    with kernels_of(device):
        with LiveMemory(run) as live:
            out = functional.scaled_dot_product_attention(query, *more, **how)
            kept = live.now
            torch.autograd.backward(out.sum())
        with torch.no_grad(), LiveMemory(run) as without:
            functional.scaled_dot_product_attention(query, *more, **how)
    return kept, live.peak, without.peak


def attention_inputs(mask):
    shapes = {"float": ((32, 77), torch.bfloat16), "bool": ((1, 1, 32, 77), torch.bool)}
    query, keys = (torch.zeros(2, 4, rows, 16, dtype=torch.bfloat16, requires_grad=True) for rows in (32, 77))
    if mask == "none":
        return (query, keys, keys), {}
    shape, dtype = shapes[mask]
    return (query, keys, keys), {"attn_mask": torch.zeros(shape, dtype=dtype)}


def without_any_data(tensors, named):
    return [without_data(tensor) for tensor in tensors], {name: without_data(tensor) for name, tensor in named.items()}


@pytest.mark.parametrize("mask", ["none", "float", "bool"])
def test_attention_on_the_cpu_takes_what_it_takes_there(mask):
    tensors, named = attention_inputs(mask)
    expected = attention_took("cpu", None, *tensors, **named)
    tensors, named = without_any_data(tensors, named)
    assert attention_took("cpu", ShapesOnly(), *tensors, **named) == expected


def test_attention_that_the_cpu_has_no_kernel_for_takes_what_it_takes_there():
    (query, keys, _), _ = attention_inputs("none")
    values = torch.zeros(2, 4, 77, 24, dtype=torch.bfloat16, requires_grad=True)
    expected = attention_took("cpu", None, query, keys, values)
    tensors, _ = without_any_data((query, keys, values), {})
    assert attention_took("cpu", ShapesOnly(), *tensors) == expected
    matrix = 2 * 4 * 32 * 77 * 2
    assert expected[0] > matrix > attention_took("cuda", ShapesOnly(), *tensors)[0]


def test_attention_keeps_its_output_and_one_number_a_row_on_cuda_and_pads_its_mask_there():
    tensors, named = without_any_data(*attention_inputs("float"))
    plain = attention_took("cuda", ShapesOnly(), *tensors)[0]
    masked = attention_took("cuda", ShapesOnly(), *tensors, **named)[0]
    output, row_sums = 2 * 4 * 32 * 16 * 2, 2 * 4 * 32 * 4
    assert plain == output + row_sums
    padded_row = 77 + -77 % MASK_ALIGNMENT
    assert masked - plain == 32 * padded_row * 2


def test_the_devices_kernels_count_in_a_block_that_runs_again_too():
    """Its second run is inside the backward pass."""

    class Block(torch.nn.Module):
        def forward(self, x):
            return x + functional.scaled_dot_product_attention(x, x, x)

    block, x = Block(), without_data(torch.zeros(1, 1, 4 * KIB, 8, requires_grad=True))
    with blocks_recomputed([block], write_in_place=False), kernels_of("cuda"), LiveMemory(ShapesOnly()) as live:
        torch.autograd.backward(block(x).sum())
    matrix = (4 * KIB) ** 2 * 4
    assert live.peak < matrix


def test_real_tensors_go_through_pytorchs_own_functions_which_are_put_back():
    before = functional.scaled_dot_product_attention, torch.rms_norm
    query = torch.randn(1, 2, 4, 8)
    expected = functional.scaled_dot_product_attention(query, query, query), functional.rms_norm(query, (8,))
    with pytest.raises(KeyError), kernels_of("cuda"):
        found = functional.scaled_dot_product_attention(query, query, query), functional.rms_norm(query, (8,))
        raise KeyError
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert (functional.scaled_dot_product_attention, torch.rms_norm) == before


def test_memory_is_told_apart_by_what_lies_behind_a_tensor():
    tensor = torch.zeros(4)
    assert storage_key(tensor) == storage_key(tensor[2:]) != storage_key(tensor.clone())


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_mask_picks_its_share_where_there_is_no_data(share):
    x, mask = torch.zeros(8, 3, requires_grad=True, device="meta"), torch.zeros(8, dtype=torch.bool, device="meta")
    with EvenMasks(share), LiveMemory(ShapesOnly()):
        picked = x[mask]
        out = torch.zeros_like(x)
        out[mask] = picked * 2
        out.sum().backward()
    assert picked.shape == (8 * share, 3) and x.grad is not None and x.grad.shape == (8, 3)
