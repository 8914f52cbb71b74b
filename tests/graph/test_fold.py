"""What is computed from fixed tensors alone, and products with fixed matrices."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zeropoint as zp
from zeropoint.analysis import sqnr
from zeropoint.graph import capture
from zeropoint.graph.fold import fold_constants
from zeropoint.quantization import quantize_dynamic


class Spelled(nn.Module):
    """A linear layer of a matrix [in, out], as GPT-2 has them, and a head that shares it."""

    def __init__(self, form):
        super().__init__()
        self.form, self.weight, self.bias = form, nn.Parameter(torch.randn(64, 96) * 0.1), nn.Parameter(torch.randn(96))

    def forward(self, x):
        if self.form == "addmm":
            x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], 96)
        elif self.form == "mm":
            x = (torch.mm(x.reshape(-1, 64), self.weight) + self.bias).view(*x.shape[:-1], 96)
        else:
            x = x @ self.weight + self.bias
        return F.gelu(x) @ self.weight.t()


def kinds(program):
    return [i.operator for i in program.program.body]


@pytest.mark.parametrize("form", ["addmm", "mm", "matmul"])
def test_products_with_fixed_matrices_are_linear_layers(form):
    torch.manual_seed(0)
    model, x = Spelled(form).eval(), torch.randn(4, 5, 64)
    expected = model(x)
    static, dynamic = zp.quantize(model, [x]), zp.quantize(model, dynamic=True, example=x)
    four = zp.quantize(model, weight_bits=4, group_size=32, example=x)
    assert kinds(static).count("zeropoint::linear") == 2
    assert kinds(dynamic).count("zeropoint::linear_grouped") == kinds(four).count("zeropoint::linear_grouped") == 2
    assert sqnr(expected, static(x)) > 30
    assert sqnr(expected, dynamic(x)) > 35
    assert sqnr(expected, four(x)) > 15
    for program in (static, dynamic, four):
        assert program.engine == "native"
        assert not any("mm" in row[1] for row in program.layer_coverage())


def test_other_products_stay():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))

        def forward(self, x):
            return torch.addmm(self.bias, x, self.weight, beta=0.5), self.weight.t() @ x.t()

    model, x = Scaled().eval(), torch.randn(4, 8)
    program = zp.quantize(model, [x])
    assert "zeropoint::linear" not in kinds(program)
    assert all(sqnr(a, b) > 100 for a, b in zip(model(x), program(x), strict=True))


def test_cross_attention_runs_in_int8():
    torch.manual_seed(0)

    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(64, 4, batch_first=True)  # its weights are parts of one parameter

        def forward(self, x, memory):
            return self.attention(x, memory, memory, need_weights=False)[0]

    model, inputs = Cross().eval(), (torch.randn(2, 5, 64), torch.randn(2, 7, 64))
    program = zp.quantize(model, [inputs])
    assert kinds(program).count("zeropoint::linear") + kinds(program).count("zeropoint::attention") >= 4
    assert not any(row[2] == "float" and "linear" in row[1] for row in program.layer_coverage())
    assert sqnr(model(*inputs), program(*inputs)) > 25
    dynamic = zp.quantize(model, dynamic=True, example=inputs)
    assert sum(o.startswith("zeropoint::linear_grouped") for o in kinds(dynamic)) == 3  # q, k with v, out
    assert sqnr(model(*inputs), dynamic(*inputs)) > 35


def test_what_would_grow_is_left_alone():
    class Grows(nn.Module):
        def __init__(self):
            super().__init__()
            self.row = nn.Parameter(torch.randn(1, 128))

        def forward(self, x):
            return x + self.row.repeat(64, 1), x * self.row.t().flatten()

    module = capture(Grows().eval(), (torch.randn(64, 128),), {}).graph_module
    fold_constants(module)
    called = [str(n.target) for n in module.graph.nodes if n.op == "call_function"]
    assert called == ["aten.repeat.default", "aten.add.Tensor", "aten.mul.Tensor"]


class Distances(nn.Module):
    """A network of its own makes a bias from fixed distances, as in Swin V2; inside it values grow."""

    def __init__(self):
        super().__init__()
        self.layer, self.grows, self.shrinks = nn.Linear(64, 64), nn.Linear(2, 512), nn.Linear(512, 1)
        self.register_buffer("places", torch.rand(64, 2))

    def forward(self, x):
        steps = torch.linspace(0, 1, 64)
        bias, _ = self.shrinks(F.relu(self.grows(self.places))).flatten().chunk(2)
        return self.layer(x) + torch.cat([bias, bias]) * 16 * steps


def test_networks_on_fixed_inputs_are_computed_once():
    torch.manual_seed(0)
    model = Distances().eval()
    program = zp.quantize(model, [torch.randn(8, 64) for _ in range(4)])
    assert kinds(program).count("zeropoint::linear") == 1
    assert not any(kind.startswith("aten") for kind in kinds(program))
    x = torch.randn(5, 64)
    assert sqnr(model(x), program(x)) > 30


def test_randomness_is_not_folded():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(8, 8), nn.Parameter(torch.ones(8))

        def forward(self, x):
            return self.layer(x), torch.bernoulli(self.scale * 0.5)

    program = zp.quantize(Noise().eval(), [torch.randn(4, 8)])
    draws = torch.stack([program(torch.randn(4, 8))[1] for _ in range(20)])
    assert 0 < draws.mean() < 1
    assert len({tuple(d.tolist()) for d in draws}) > 1


def test_numbers_drawn_for_nobody_are_not_drawn(tmp_path):
    half = quantize_dynamic(nn.LSTM(8, 8, batch_first=True), {nn.LSTM}, dtype=torch.float16)
    x = torch.randn(2, 3, 8)
    program = zp.compile(half, x)
    assert not any("uniform" in kind for kind in kinds(program))
    zp.save(program, tmp_path / "m.zp")
    assert torch.equal(zp.load(tmp_path / "m.zp")(x)[0], program(x)[0])
    assert sqnr(half(x)[0].detach(), program(x)[0]) > 100
