"""Norms in programs: one pass with the sum before and the rounding after, spelled-out RMS norms, and what stays apart."""

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint import ops
from zeropoint.analysis import sqnr
from zeropoint.errors import QuantizationError
from zeropoint.quantization import quantize_weight_only


class PreNorm(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.up, self.down = norm, nn.Linear(24, 40), nn.Linear(40, 24)
        self.last, self.head = nn.LayerNorm(24, eps=1e-3), nn.Linear(24, 5)

    def forward(self, x):
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(self.last(x)), x


class PostNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(24, 24), nn.Linear(24, 24), nn.LayerNorm(24)

    def forward(self, x):
        x = self.norm(x + self.a(x))
        return x + self.b(x)


class Spelled(nn.Module):
    """RMS norm as models write it."""

    def __init__(self, form):
        super().__init__()
        self.form, self.weight = form, nn.Parameter(torch.rand(24) + 0.5)

    def forward(self, x):
        square = x.pow(2) if self.form != "product" else x * x
        scale = torch.rsqrt(square.mean(-1, keepdim=True) + 1e-5)
        if self.form == "plain":
            return x * scale
        return self.weight * (x * scale) if self.form == "left" else (scale * x) * self.weight


def operators(program):
    return [i.operator for i in program.program.body]


def norms(program):
    return operators(program).count("zeropoint::add_norm")


def check(model, *, dynamic=False, least=25.0):
    torch.manual_seed(0)
    model.eval()
    batches = [torch.randn(4, 9, 24) * 2 for _ in range(8)]
    program = zp.quantize(model, dynamic=True, example=batches[0]) if dynamic else zp.quantize(model, batches)
    assert program.engine == "native"
    for x in (batches[0], torch.randn(2, 9, 24), torch.randn(2, 9, 24), torch.randn(0, 9, 24)):
        got = program(x)
        expected = program.program.interpret([x])
        for mine, reference in zip(got if isinstance(got, tuple) else (got,), expected, strict=True):
            assert torch.equal(mine, reference)
        if len(x):
            wanted = model(x)
            for mine, exact in zip(*((t if isinstance(t, tuple) else (t,)) for t in (got, wanted)), strict=True):
                assert sqnr(exact, mine) > least
    return program


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("norm", [nn.LayerNorm(24), nn.LayerNorm(24, elementwise_affine=False), nn.RMSNorm(24)])
def test_pre_norm(norm, dynamic):
    program = check(PreNorm(norm), dynamic=dynamic)
    assert norms(program) == 2
    assert not {"aten::layer_norm", "aten::rms_norm", "zeropoint::add_float"} & set(operators(program))


def test_post_norm():
    program = check(PostNorm())
    assert norms(program) == 1
    assert operators(program).count("zeropoint::quantize_per_tensor") == 1  # the input's
    assert operators(program).count("zeropoint::add_float") == 1


@pytest.mark.parametrize("form", ["product", "power", "left", "plain"])
def test_spelled_out_rms_norm(form):
    program = check(nn.Sequential(nn.Linear(24, 24), Spelled(form), nn.Linear(24, 24)))
    assert norms(program) == 1
    assert "aten::rsqrt" not in operators(program)


class Other(nn.Module):
    """Looks like a norm and is none: another dimension, no eps, a mean that is not kept, a square of something else."""

    def __init__(self, form):
        super().__init__()
        self.form, self.layer = form, nn.Linear(24, 24)

    def forward(self, x):
        x = self.layer(x)
        if self.form == "dimension":
            return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5)
        if self.form == "cube":
            return x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-5)
        if self.form == "other":
            return x * torch.rsqrt(x.relu().pow(2).mean(-1, keepdim=True) + 1e-5)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + x.abs().mean(-1, keepdim=True))


@pytest.mark.parametrize("form", ["dimension", "cube", "other", "tensor"])
def test_what_is_no_norm_stays(form):
    program = check(Other(form), least=20.0)
    assert norms(program) == 0
    assert "aten::rsqrt" in operators(program)


class Broadcast(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(24, 24), nn.LayerNorm(24)

    def forward(self, x):
        y = self.layer(x)
        return self.norm(y + x[:, :1])


def test_a_broadcast_sum_stays_apart():
    program = check(Broadcast())
    assert norms(program) == 1
    assert "zeropoint::add_float" in operators(program)


class SumFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(24, 24), nn.LayerNorm(24)

    def forward(self, x):
        y = x + self.layer(x)
        return torch.sin(y), self.norm(y)


def test_a_sum_that_is_taken_before_the_norm_stays_apart():
    program = check(SumFirst())
    assert norms(program) == 1
    assert "zeropoint::add_float" in operators(program)


def test_norm_over_two_dimensions_stays():
    program = check(nn.Sequential(nn.Linear(24, 24), nn.LayerNorm([9, 24])))
    assert norms(program) == 0
    assert any(o.startswith("aten::layer_norm") for o in operators(program))


def test_compile_keeps_the_bits_of_the_norm():
    model = zp.quantization.quantize_dynamic(PostNorm().eval())
    program = zp.compile(model, torch.randn(4, 9, 24))
    assert norms(program) == 0
    x = torch.randn(4, 9, 24)
    assert torch.equal(program(x), model(x))


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_only_in_one_call(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), Spelled("power"), nn.Linear(96, 64))
    model[1].weight = nn.Parameter(torch.rand(96) + 0.5)
    x = torch.randn(3, 64)
    program = zp.quantize(model.eval(), weight_bits=bits, example=x, group_size=32)
    assert program.engine == "native"
    assert norms(program) == 1
    assert operators(program).count("zeropoint::linear_grouped") == 2
    assert sqnr(model(x), program(x)) > {4: 15, 8: 40}[bits]
    layers = zp.quantize(model, weight_bits=bits, group_size=32)
    assert sqnr(layers(x), program(x)) > 90
    swapped = quantize_weight_only(model, bits=bits, group_size=32)
    assert sqnr(layers(x), swapped(x)) > 200
    given = zp.quantize(swapped.eval(), dynamic=True, example=x)
    assert torch.equal(given(x), program(x))
    assert all(row[2] == "int8" for row in given.layer_coverage() if "linear_grouped" in row[1])


def test_weights_of_four_bits_are_two_to_a_byte(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 320, bias=False), nn.Linear(320, 33, bias=False), nn.Linear(33, 4, bias=False))
    x = torch.randn(3, 256)
    program = zp.quantize(model.eval(), weight_bits=4, example=x, group_size=128)
    layers = quantize_weight_only(model, bits=4, group_size=128)
    assert sqnr(layers(x), program(x)) > 200
    assert torch.equal(zp.compile(layers.eval(), x)(x), layers(x))
    assert torch.equal(program.program.interpret([x])[0], program(x))
    kinds = {tuple(t.shape): t.dtype for t in program.state_dict().values() if t.dtype in (torch.uint8, torch.int8)}
    # An odd number of inputs keeps a byte each.
    assert kinds == {(320, 128): torch.uint8, (33, 160): torch.uint8, (4, 33): torch.int8}
    program.save(tmp_path / "model.zp")
    scales = sum(t.numel() * 4 for t in program.state_dict().values() if t.dtype == torch.float32)
    assert (tmp_path / "model.zp").stat().st_size < 320 * 128 + 33 * 160 + 4 * 33 + scales + 8192
    assert torch.equal(zp.load(tmp_path / "model.zp")(x), program(x))


def test_pairs_have_four_bits():
    weight = torch.zeros(4, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="4 bits"):
        ops.linear_grouped_pack(weight, torch.ones(4, 1), None, 32, 8)


def test_weights_only_errors():
    model = nn.Linear(64, 8)
    with pytest.raises(QuantizationError, match="got dynamic and weight_bits; give one"):
        zp.quantize(model, dynamic=True, weight_bits=4)
    with pytest.raises(QuantizationError, match="weight_bits"):
        zp.quantize(model, [torch.randn(2, 64)], example=torch.randn(2, 64))
    with pytest.raises(QuantizationError, match="group_size"):
        zp.quantize(model, weight_bits=4, group_size=None)
    with pytest.raises(QuantizationError, match="bits"):
        zp.quantize(model, weight_bits=3)
