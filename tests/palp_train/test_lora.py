"""The LoRA in a real network: identity at first, on or off row by row, and gone without a trace afterwards."""

import pytest
import torch
from torch import nn

from palp_train.lora import injected_lora

RANK = 2


class Attention(nn.Module):
    """Cross-attention as the host's networks name it."""

    def __init__(self, width=6, context=5):
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(width, width, bias=False), nn.Linear(context, width, bias=False), nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x, context):
        attention = torch.softmax(self.to_q(x) @ self.to_k(context).transpose(1, 2), dim=-1)
        return self.to_out(attention @ self.to_v(context))


class Network(nn.Module):
    """Blocks of attention between two linear layers that no LoRA is meant for."""

    def __init__(self, blocks=2):
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4)
        self.blocks = nn.ModuleList(Attention() for _ in range(blocks))

    def forward(self, x, context):
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(self.norm(x), context)
        return self.leave(x)


def projections(network):
    return [path for path, layer in network.blocks.named_modules(prefix="blocks") if isinstance(layer, nn.Linear)]


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = Network()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.requires_grad_(False)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, 7, 6, generator=generator), torch.randn(4, 3, 5, generator=generator)


def inject(network, targets=None, rank=RANK, seed=0):
    return injected_lora(network, projections(network) if targets is None else targets, rank, torch.Generator().manual_seed(seed))


def randomize(lora):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)


HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))]


def fingerprint(network):
    """Everything of a module tree that an injection could leave behind: objects, order, attributes, hooks, flags, values."""
    return {
        path: (
            id(module),
            sorted(vars(module)),
            [(name, id(child)) for name, child in module.named_children()],
            [(name, id(p), p.requires_grad, p.dtype, p.device, p.tolist()) for name, p in module.named_parameters(recurse=False)],
            [dict(getattr(module, hooks)) for hooks in HOOKS],
            module.training,
        )
        for path, module in network.named_modules()
    }


# Within


def test_a_fresh_lora_changes_nothing(network, inputs):
    before = network(*inputs)
    with inject(network):
        assert torch.equal(network(*inputs), before)


def test_up_starts_at_zero(network):
    with inject(network) as lora:
        assert all(not up.any() for _, up in lora.matrices().values())


def test_down_starts_uniform_within_one_over_the_root_of_its_inputs(network):
    with inject(network, rank=64) as lora:
        for down, _ in lora.matrices().values():
            bound = down.shape[1] ** -0.5
            assert 0.95 * bound < down.abs().max() <= bound and down.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_the_seed_alone_decides_how_a_lora_starts(network):
    starts = []
    for seed in (1, 1, 2):
        torch.rand(1)
        with inject(network, seed=seed) as lora:
            starts.append(torch.cat([down.flatten() for down, _ in lora.matrices().values()]))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_injecting_draws_nothing_from_the_global_generator(network):
    before = torch.get_rng_state()
    with inject(network):
        pass
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("blocks", [1, 2, 9], ids=["4 layers", "8 layers", "36 layers"])
def test_just_the_named_layers_are_adapted(blocks):
    network = Network(blocks)
    targets = projections(network)[:-1]
    with inject(network, targets) as lora:
        adapted = {path.removesuffix(".base_layer") for path, _ in network.named_modules() if path.endswith(".base_layer")}
        assert adapted == set(lora.layers) == set(targets)


def test_matrices_have_the_shapes_rank_by_in_and_out_by_rank(network):
    with inject(network, rank=3) as lora:
        shapes = {path: (tuple(down.shape), tuple(up.shape)) for path, (down, up) in lora.matrices().items()}
    assert (shapes["blocks.0.to_k"], shapes["blocks.1.to_out.0"]) == (((3, 5), (6, 3)), ((3, 6), (6, 3)))


def test_the_injected_network_is_the_base_with_up_times_down_added_to_each_weight(network, inputs):
    with inject(network) as lora:
        randomize(lora)
        injected, matrices = network(*inputs), lora.matrices()
    with torch.no_grad():
        for path, (down, up) in matrices.items():
            network.get_submodule(path).weight += up @ down
    torch.testing.assert_close(network(*inputs), injected)


def test_matrices_are_copies(network):
    with inject(network) as lora:
        for pair in lora.matrices().values():
            for matrix in pair:
                matrix.fill_(7)
        assert not any((matrix == 7).any() for pair in lora.matrices().values() for matrix in pair)


def test_matrices_outlive_the_injection(network):
    with inject(network) as lora:
        randomize(lora)
        within = lora.matrices()
    torch.testing.assert_close(lora.matrices(), within)


def test_parameters_are_two_float32_matrices_a_layer_that_train(network):
    with inject(network.to(torch.bfloat16)) as lora:
        assert [(p.dtype, p.requires_grad) for p in lora.parameters()] == [(torch.float32, True)] * 16


def test_a_bfloat16_network_stays_one_with_a_lora_in_it(network, inputs):
    network, inputs = network.to(torch.bfloat16), [tensor.to(torch.bfloat16) for tensor in inputs]
    with inject(network) as lora:
        randomize(lora)
        with lora.rows(2):
            assert network(*inputs).dtype == torch.bfloat16


def test_gradients_reach_the_lora_and_nothing_else(network, inputs):
    with inject(network) as lora:
        randomize(lora)
        network(*inputs).square().sum().backward()
        with_gradient = {id(p) for p in network.parameters() if p.grad is not None and p.grad.any()}
        assert with_gradient == {id(p) for p in lora.parameters()}


# Rows


def test_a_mixed_batch_equals_separate_passes(network, inputs):
    base = network(*inputs)
    with inject(network) as lora:
        randomize(lora)
        personalized = network(*inputs)
        with lora.rows(2):
            mixed = network(*inputs)
    assert not torch.allclose(base, personalized)
    torch.testing.assert_close(mixed, torch.cat([personalized[:2], base[2:]]))


def test_rows_that_are_all_off_give_the_pretrained_network(network, inputs):
    base = network(*inputs)
    with inject(network) as lora:
        randomize(lora)
        with lora.rows(0):
            assert torch.equal(network(*inputs), base)


def test_rows_that_are_all_on_give_the_personalized_network(network, inputs):
    with inject(network) as lora:
        randomize(lora)
        personalized = network(*inputs)
        with lora.rows(4):
            assert torch.equal(network(*inputs), personalized)


def test_off_rows_give_the_lora_no_gradient(network, inputs):
    with inject(network) as lora:
        randomize(lora)
        with lora.rows(2):
            output = network(*inputs)
        assert not any(g.any() for g in torch.autograd.grad(output[2:].sum(), list(lora.parameters())))


def test_on_rows_of_a_mixed_batch_give_the_lora_the_gradient_of_their_own_pass(network, inputs):
    with inject(network) as lora:
        randomize(lora)
        with lora.rows(2):
            mixed = torch.autograd.grad(network(*inputs).square()[:2].sum(), list(lora.parameters()))
        alone = torch.autograd.grad(network(*(tensor[:2] for tensor in inputs)).square().sum(), list(lora.parameters()))
    torch.testing.assert_close(mixed, alone)


@pytest.mark.parametrize("fails", [False, True])
def test_after_rows_every_row_is_personalized_again(network, inputs, fails):
    with inject(network) as lora:
        randomize(lora)
        personalized = network(*inputs)
        try:
            with lora.rows(0):
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert torch.equal(network(*inputs), personalized)


# After


def test_after_training_the_network_is_the_very_same(network, inputs):
    before = fingerprint(network)
    with inject(network) as lora:
        randomize(lora)
        with lora.rows(2):
            network(*inputs).sum().backward()
    assert fingerprint(network) == before


def test_after_an_error_in_the_body_the_network_is_the_very_same(network):
    before = fingerprint(network)
    with pytest.raises(KeyError), inject(network):
        raise KeyError
    assert fingerprint(network) == before


@pytest.mark.parametrize("bad", ["blocks.0.to_nowhere", "norm"], ids=["a path that does not exist", "a layer that cannot be adapted"])
def test_after_a_failed_injection_the_network_is_the_very_same(network, bad):
    before = fingerprint(network)
    with pytest.raises((AttributeError, ValueError)), inject(network, [*projections(network), bad]):
        pass
    assert fingerprint(network) == before


def test_state_dict_keys_come_back_in_their_order(network):
    before = list(network.state_dict())
    with inject(network):
        assert list(network.state_dict()) != before
    assert list(network.state_dict()) == before


def test_a_layer_at_the_root_of_the_network_is_put_back(network):
    enter = network.enter
    with inject(network, ["enter"]) as lora:
        assert list(lora.layers) == ["enter"] and network.enter is not enter
    assert network.enter is enter


def test_hooks_that_the_owner_set_stay_and_keep_working(network, inputs):
    seen = []
    network.blocks[0].to_q.register_forward_hook(lambda *_: seen.append(1))
    before = fingerprint(network)
    with inject(network):
        network(*inputs)
    network(*inputs)
    assert fingerprint(network) == before and len(seen) == 2


def test_a_network_can_be_given_a_lora_again(network, inputs):
    with inject(network, seed=1):
        pass
    with inject(network, seed=2) as lora:
        randomize(lora)
        personalized = network(*inputs)
    assert not torch.allclose(network(*inputs), personalized)


def test_parameters_that_the_owner_trains_come_back_trainable(network):
    network.requires_grad_(True)
    with inject(network):
        pass
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_layer_whose_path_ends_like_a_target_is_left_alone():
    network = nn.ModuleDict({"to_q": nn.Linear(2, 2), "block": nn.ModuleDict({"to_q": nn.Linear(2, 2)})}).requires_grad_(False)
    before = fingerprint(network)
    with inject(network, ["to_q"]):
        assert type(network["block"]["to_q"]) is nn.Linear
    assert fingerprint(network) == before
