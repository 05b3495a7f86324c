"""Gradients through blocks that write in place and run again, against the same network written without either, in float64."""

import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from palp_train import activations
from palp_train.activations import MemoryCopy, _Keeper, activations_kept, blocks_recomputed, copied


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
    torch.testing.assert_close(gradients(network, activations_kept(network.blocks)), gradients(Network(False), nullcontext()))


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


def laid_out():
    """Tensors by how they lie in memory, made anew at each call."""
    padded = draw(3, 2, 3, 5, 8)[..., :5]
    return {
        "packed": draw(3, 2, 3, 4),
        "padded rows": padded,
        "padded and expanded": padded[:, :1].expand(2, 4, 5, 5),
        "expanded": draw(3, 1, 4).expand(3, 4),
        "transposed": draw(3, 3, 4).T,
        "channels last": draw(3, 2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "sliced with an offset": draw(3, 40)[7:31:3],
        "overlapping": draw(3, 12).unfold(0, 4, 2),
        "half precision, unaligned": draw(3, 9, 7).half()[1:, 3:],
        "a number": draw(3, 4)[2],
        "empty": draw(3, 4, 0),
        "an empty slice at the end": draw(3, 4)[4:],
    }


LAYOUTS = pytest.mark.parametrize("layout", laid_out())


def place(tensor):
    """What a kernel may rely on: size, strides, type, and where in an aligned piece of memory the tensor begins."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.storage_offset() * tensor.element_size() % 512


def bytes_behind(tensor):
    """How much memory there is from a tensor's first element on, up to the end of its last aligned piece of 512 bytes."""
    first = tensor.storage_offset() * tensor.element_size()
    return min(tensor.untyped_storage().nbytes() - first, 512)


@LAYOUTS
def test_a_copy_lies_in_memory_as_the_tensor_does_and_shares_none_of_it(layout):
    tensor = laid_out()[layout]
    copy = copied(tensor)
    assert place(copy) == place(tensor)
    assert torch.equal(copy, tensor)
    assert bytes_behind(copy) >= bytes_behind(tensor)  # a kernel may read the padding of the last row
    assert copy.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or tensor.numel() == 0


class Inspects(torch.autograd.Function):
    """Says in its backward pass how the tensor that it has saved lies in memory, and what it holds."""

    @staticmethod
    def forward(ctx, x, tensor, seen):
        ctx.save_for_backward(tensor)
        ctx.seen = seen
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (tensor,) = ctx.saved_tensors
        ctx.seen.append((place(tensor), tensor.clone()))
        return gradient, None, None


class Writes(nn.Module):
    """A block that saves its second input and then overwrites the memory behind it."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x, tensor):
        x = Inspects.apply(x, tensor, self.seen)
        tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0).zero_()
        return x


@LAYOUTS
def test_what_a_block_saves_and_overwrites_comes_back_as_it_was_saved(layout):
    tensor, seen = laid_out()[layout], []
    expected, block = tensor.clone(), Writes(seen)
    with activations_kept([block]):
        out = block(draw(1, 2).requires_grad_(), tensor)
    assert (tensor == 0).all()
    out.sum().backward()
    ((found, values),) = seen
    assert found == place(tensor)
    assert torch.equal(values, expected)


@LAYOUTS
def test_a_block_that_runs_again_gets_its_inputs_as_they_lay(layout):
    seen = []

    class Notes(nn.Module):
        def forward(self, x, tensor):
            seen.append((place(tensor), tensor.clone()))
            return x * 2

    block, tensor = Notes(), laid_out()[layout]
    for in_place in (True, False):
        with blocks_recomputed([block], write_in_place=in_place):
            block(draw(1, 2).requires_grad_(), tensor).sum().backward()
    assert len(seen) == 4
    assert all(found == place(tensor) and torch.equal(values, tensor) for found, values in seen)


class Attends(nn.Module):
    """A block that attends with a mask and adds the result onto its input in place."""

    def forward(self, x, mask):
        heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
        found = nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
        x += found.transpose(1, 2).flatten(-2)
        return x


@pytest.mark.parametrize("recomputed", [True, False])
def test_attention_with_a_padded_and_expanded_mask_gives_the_same_gradient_and_gets_that_mask_back(recomputed, monkeypatch):
    """As PyTorch's memory-efficient kernel pads a mask of 5 x 5, and its backward pass asks for the padding."""
    mask = draw(4, 5, 8)[:, :5].expand(3, 2, 5, 5)
    masks, kept = [], _Keeper._pack

    def noted(self, tensor):
        saved = kept(self, tensor)
        if tensor.shape == mask.shape:
            masks.append(place(saved.restored()) == place(tensor))
        return saved

    monkeypatch.setattr(_Keeper, "_pack", noted)

    def gradient(block, within):
        start = draw(5, 3, 5, 8).requires_grad_()
        with within:
            out = block(block(start + 0, mask), mask)
            out.square().sum().backward()
        return start.grad

    def written_out(x, mask):
        heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
        weights = (heads @ heads.mT / 2 + mask).softmax(dim=-1)
        return x + (weights @ heads).transpose(1, 2).flatten(-2)

    block = Attends()
    within = blocks_recomputed([block], write_in_place=True) if recomputed else activations_kept([block])
    torch.testing.assert_close(gradient(block, within), gradient(written_out, nullcontext()))
    assert masks and all(masks)


def test_tensors_that_no_block_can_overwrite_are_not_copied_and_others_once_for_each_state(monkeypatch):
    network, made = Network(True), []

    class Counted(MemoryCopy):
        def __init__(self, tensor):
            made.append(tensor.shape)
            super().__init__(tensor)

    monkeypatch.setattr(activations, "MemoryCopy", Counted)
    gradients(network, activations_kept(network.blocks))
    assert made == [(2, 3, 4)] * (len(network.blocks) + 1)  # the residual stream before each block, and at its end


def test_what_is_overwritten_outside_of_blocks_fails_loudly():
    x = draw(1, 3).requires_grad_()
    with activations_kept([]):
        y = x * 2
        z = y.square()
        y.detach().add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


def test_what_is_kept_goes_with_the_graph():
    x, block = draw(1, 2, 3, 4).requires_grad_(), Network(True)
    with activations_kept(block.blocks):
        out = block(x, draw(2, 2, 5, 4))
        middle = x.exp()
    gone = [weakref.ref(middle), weakref.ref(out)]
    del middle, out
    assert [one() for one in gone] == [None, None]  # at once, without a garbage collection
