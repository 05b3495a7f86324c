"""The layer itself: against float64 finite differences and peft's own layer, in bfloat16, and what it keeps and runs."""

import math
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from palp_train.frozen import OwnWeights, frozen_linear
from palp_train.lora import injected_lora
from palp_train.lora_layer import LoraLinear, NarrowCopies

ROOT = Path(__file__).resolve().parents[2]
IN, OUT, RANK = 6, 5, 3
EPSILON = torch.finfo(torch.bfloat16).eps


def draw(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer(dtype=torch.float64, *, bias=True, matrices=torch.float64):
    """A layer with random weights and matrices."""
    base = nn.Linear(IN, OUT, bias=bias, dtype=dtype).requires_grad_(False)
    for number, parameter in enumerate(base.parameters()):
        parameter.copy_(draw(number, *parameter.shape))
    made = LoraLinear(base, "palp", r=RANK, lora_alpha=RANK)
    made.set_matrices(draw(7, RANK, IN, dtype=matrices), draw(8, OUT, RANK, dtype=matrices))
    return made


def written_out(one, x, down, up, rows):
    """What the layer computes, in plain operations: the LoRA on the first rows only."""
    plain = nn.functional.linear(x, one.weight, one.bias)
    on = torch.zeros(len(x), *[1] * (x.ndim - 1), dtype=x.dtype)
    on[: len(x) if rows is None else rows] = 1
    return plain + on * ((x @ down.T) @ up.T)


SHAPES = pytest.mark.parametrize("shape", [(4, IN), (4, 3, IN), (2, 3, 4, IN), (4, 0, IN)], ids=str)
ROWS = pytest.mark.parametrize("rows", [None, 0, 1, 2])


@SHAPES
@ROWS
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_same_in_plain_operations(shape, rows, bias):
    one = layer(bias=bias)
    one.state.rows = rows
    outputs, gradients = [], []
    for compute in (lambda x: one(x), lambda x: written_out(one, x, one.down, one.up, rows)):
        x = draw(1, *shape).requires_grad_()
        outputs.append(compute(x))
        inputs = [x] if rows == 0 else [x, one.down, one.up]
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), inputs))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("rows", [None, 2])
def test_gradients_are_the_finite_differences(rows):
    one = layer()
    one.state.rows = rows

    def compute(x, down, up):
        one.set_matrices(down, up)
        vars(one.lora_A[one._name])["_parameters"]["weight"] = down
        vars(one.lora_B[one._name])["_parameters"]["weight"] = up
        return one(x)

    given = [draw(1, 3, 2, IN), draw(7, RANK, IN), draw(8, OUT, RANK)]
    assert torch.autograd.gradcheck(compute, [tensor.requires_grad_() for tensor in given])


@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
def test_inputs_and_gradients_of_any_layout_are_understood(layout):
    views = {
        "transposed": lambda t: t.transpose(0, 1),
        "expanded": lambda t: t[:, :1].expand(3, 4, IN),
        "sliced": lambda t: t[::2],
    }
    one, start = layer(), draw(1, 3, 4, IN)
    found = []
    for compute in (one, lambda x: written_out(one, x, one.down, one.up, None)):
        x = start.clone().requires_grad_()
        out = compute(views[layout](x))
        found.append(torch.autograd.grad(out.transpose(0, 1)[:, :1].expand(-1, 5, -1).sum() + out.sum(), [x, one.down, one.up]))
    torch.testing.assert_close(found[0], found[1])


def test_a_layer_whose_input_needs_no_gradient_gives_its_matrices_theirs():
    one, x = layer(), draw(1, 4, IN)
    out = one(x)
    expected = torch.autograd.grad(written_out(one, x, one.down, one.up, None).sum(), [one.down, one.up])
    torch.testing.assert_close(torch.autograd.grad(out.sum(), [one.down, one.up]), expected)


# Against peft's own layer


def pefts(base, down, up):
    from peft.tuners.lora import Linear

    try:
        from peft import LoraConfig

        made = Linear(base, "palp", config=LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights=False), r=RANK, lora_alpha=RANK)
    except TypeError:  # older versions of peft
        made = Linear(base, "palp", r=RANK, lora_alpha=RANK, init_lora_weights=False)
    made.lora_A["palp"].weight = nn.Parameter(down.clone())
    made.lora_B["palp"].weight = nn.Parameter(up.clone())
    return made


def test_in_float32_it_does_what_pefts_own_layer_does():
    one = layer(torch.float32, matrices=torch.float32)
    other = pefts(one.base_layer, one.down.detach(), one.up.detach())
    results = []
    for adapted, down, up in ((one, one.down, one.up), (other, other.lora_A["palp"].weight, other.lora_B["palp"].weight)):
        x = draw(1, 4, 3, IN, dtype=torch.float32).requires_grad_()
        out = adapted(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, down, up])])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


# In bfloat16

WIDE = 256
DIRECTION = 1 - 4 * EPSILON
"""The least cosine between a bfloat16 gradient and the exact one.

Inputs, matrices, hidden values and the incoming gradient are each rounded to within half an epsilon, independently; a
product of three such factors is off by at most 2 epsilon of its length, and a deviation of that size at worst takes
half its square off a cosine. Sums are made in float32. Twice that again is allowed for.
"""


def test_in_bfloat16_gradients_point_where_the_exact_ones_do():
    base = nn.Linear(WIDE, WIDE, dtype=torch.bfloat16).requires_grad_(False)
    base.weight.copy_(draw(0, WIDE, WIDE) / WIDE**0.5)
    one = LoraLinear(base, "palp", r=8, lora_alpha=8)
    one.set_matrices((draw(1, 8, WIDE) / WIDE**0.5).float(), draw(2, WIDE, 8).float())
    x, incoming = draw(3, 2, 64, WIDE).bfloat16().requires_grad_(), draw(4, 2, 64, WIDE).bfloat16()
    found = torch.autograd.grad(one(x), [x, one.down, one.up], incoming)
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, torch.float32, torch.float32]

    exact = [tensor.detach().double().requires_grad_() for tensor in (x, one.down, one.up)]
    plain = exact[0] @ base.weight.double().T + base.bias.double() + (exact[0] @ exact[1].T) @ exact[2].T
    expected = torch.autograd.grad(plain, exact, incoming.double())
    for ours, theirs in zip(found, expected, strict=True):
        cosine = (ours.double() * theirs).sum() / ours.double().norm() / theirs.norm()
        assert cosine >= DIRECTION
        assert (ours.double() - theirs).norm() <= 2 * EPSILON * theirs.norm()


def test_under_autocast_it_computes_in_the_type_that_autocast_says():
    one, x = layer(torch.float32, matrices=torch.float32), draw(1, 4, IN, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = one(x)
    out.sum().backward()
    assert (out.dtype, x.grad.dtype, one.down.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


# Copies of the matrices in the network's type


def test_copies_are_made_once_and_anew_when_their_originals_have_changed():
    originals, copies = [nn.Parameter(draw(n, 3, 4).float()) for n in range(3)], NarrowCopies()
    for original in originals:
        copies.of(original, torch.bfloat16)  # tells which type is wanted
    copies.refresh(originals)
    first = [copies.of(original, torch.bfloat16) for original in originals]
    copies.refresh(originals)
    assert all(copies.of(one, torch.bfloat16) is kept for one, kept in zip(originals, first, strict=True))
    with torch.no_grad():
        originals[1].add_(1)
    stale = copies.of(originals[1], torch.bfloat16)
    assert torch.equal(stale, originals[1].detach().bfloat16())  # right also before they are made anew
    copies.refresh(originals)
    again = [copies.of(original, torch.bfloat16) for original in originals]
    assert [one is kept for one, kept in zip(again, first, strict=True)] == [True, False, True]
    assert torch.equal(again[1], stale)


def test_the_matrices_themselves_serve_where_the_network_computes_in_float32():
    original = nn.Parameter(torch.ones(2, 2))
    assert NarrowCopies().of(original, torch.float32).data_ptr() == original.data_ptr()


# What it runs and keeps


@contextmanager
def operations():
    """Names of the operations that reach the dispatcher, without views."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Noted(TorchDispatchMode):
        seen = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            if not any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns) and name not in ("detach", "_unsafe_view"):
                self.seen.append(name)
            return func(*args, **(kwargs or {}))

    with Noted() as mode:
        mode.seen.clear()
        yield mode.seen


def test_three_products_forward_and_five_backward_and_nothing_else():
    one, x = layer(torch.float32, matrices=torch.float32), draw(1, 4, 3, IN, dtype=torch.float32).requires_grad_()
    with operations() as forward:
        out = one(x)
    assert forward == ["addmm", "mm", "addmm_"]
    incoming = torch.ones_like(out)
    with operations() as backward:
        torch.autograd.grad(out, [x, one.down, one.up], incoming)
    assert sorted(backward) == ["addmm_", "mm", "mm", "mm", "mm"]


def kept(compute):
    """Storages and bytes that autograd keeps of a computation."""
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = compute()
    return saved, result


class Float8Weights(OwnWeights):
    """Reads a layer whose weight is stored in eight bits, and counts how often."""

    def __init__(self):
        self.reads_made = 0

    def weight(self, one, like):
        self.reads_made += 1
        return super().weight(one, like)


def stored_narrow():
    base = nn.Linear(IN, OUT).requires_grad_(False)
    base.weight = nn.Parameter(draw(0, OUT, IN).to(torch.float8_e4m3fn), requires_grad=False)
    return base


def test_of_the_frozen_weight_and_its_wide_copy_nothing_is_kept():
    one, reader = layer(torch.float32, matrices=torch.float32), Float8Weights()
    one.base_layer, one.state.reader = stored_narrow(), reader
    x = draw(1, 50, IN, dtype=torch.float32).requires_grad_()
    saved, out = kept(lambda: one(x))
    assert sum(saved.values()) == x.nbytes + 50 * RANK * 4  # its input, and x A^T
    out.sum().backward()
    assert reader.reads_made == 2
    torch.testing.assert_close(x.grad, (one.base_layer.weight.float() + one.up @ one.down).sum(dim=0).expand(50, IN))


def test_a_frozen_linear_function_keeps_nothing_and_gives_the_gradient():
    base, reader = stored_narrow(), Float8Weights()
    x = draw(1, 2, 7, IN, dtype=torch.float32).requires_grad_()
    saved, out = kept(lambda: frozen_linear(x, base, reader))
    assert not saved
    torch.testing.assert_close(out, nn.functional.linear(x, base.weight.float(), base.bias))
    out.square().sum().backward()
    expected = torch.autograd.grad(nn.functional.linear(x, base.weight.float(), base.bias).square().sum(), x)
    torch.testing.assert_close(x.grad, expected[0])


# Layers that somebody has changed


def changed(base, how):
    if how == "a hook":
        base.register_forward_hook(lambda _module, _args, out: 2 * out)
    else:
        base.forward = lambda x: 2 * nn.functional.linear(x, base.weight, base.bias)


@pytest.mark.parametrize("how", ["a hook", "another forward method"])
@ROWS
def test_a_frozen_layer_that_somebody_has_changed_is_called_as_it_is(how, rows):
    one = layer()
    changed(one.base_layer, how)
    one.state.rows = rows
    x = draw(1, 4, 3, IN).requires_grad_()
    out = one(x)
    plain = nn.functional.linear(x, one.weight, one.bias)
    expected = written_out(one, x, one.down, one.up, rows) + plain
    torch.testing.assert_close(out, expected)
    inputs = [x] if rows == 0 else [x, one.down, one.up]
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), inputs), torch.autograd.grad(expected.square().sum(), inputs))


# peft's optional imports


@pytest.mark.parametrize("package", ["torchao", "bitsandbytes"])
def test_a_broken_package_of_those_that_peft_would_use_changes_nothing(tmp_path, package):
    """Other packs bring them, in versions that do not fit."""
    broken = tmp_path / package
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('this one is broken')\n")
    information = tmp_path / f"{package}-0.0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n")
    code = (
        "import torch; from torch import nn; from palp_train.lora import injected_lora\n"
        "network = nn.Sequential(nn.Linear(3, 2))\n"
        "with injected_lora(network, ['0'], 2, torch.Generator()) as lora:\n"
        "    print(type(network[0]).__name__, network(torch.ones(1, 3)).shape)\n"
    )
    path = [str(tmp_path), str(ROOT)]
    run = subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "LoraLinear torch.Size([1, 2])"


# Layers that are no nn.Linear


class Quantized(nn.Module):
    """As the newest host's: a module with the two widths and a forward method."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = IN, OUT
        self.weight, self.bias = nn.Parameter(draw(1, OUT, IN).float(), requires_grad=False), None

    def forward(self, x):
        return x @ self.weight.T


def test_a_layer_that_is_no_torch_linear_takes_a_lora():
    network = nn.ModuleDict({"a": Quantized(), "b": nn.Linear(OUT, IN)}).requires_grad_(False)
    with injected_lora(network, ["a", "b"], RANK, torch.Generator()) as lora:
        with torch.no_grad():
            for parameter in lora.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(1))
        x = draw(2, 4, IN, dtype=torch.float32)
        down, up = lora.layers["a"].down, lora.layers["a"].up
        torch.testing.assert_close(network["a"](x), x @ (network["a"].weight + up @ down).T)
        assert math.isfinite(network["b"](network["a"](x)).sum().item())


def test_a_network_may_write_to_what_an_adapted_or_a_frozen_layer_gives_it():
    one, x = layer(), draw(1, 4, 3, IN).requires_grad_()
    out = one(x)
    out += 1
    frozen = frozen_linear(x, one.base_layer, OwnWeights())
    frozen *= 2
    found = torch.autograd.grad(out.square().sum() + frozen.square().sum(), x)
    plain = nn.functional.linear(x, one.weight, one.bias)
    expected = (written_out(one, x, one.down, one.up, None) + 1).square().sum() + (2 * plain).square().sum()
    torch.testing.assert_close(found, torch.autograd.grad(expected, x))
