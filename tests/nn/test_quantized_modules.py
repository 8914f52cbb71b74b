from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint import QuantizationError
from zeropoint.nn import quantized as nnq
from zeropoint.nn.intrinsic import quantized as nniq
from zeropoint.nn.quantized import functional as qF


def q(shape, scale=0.05, zero_point=120, dtype=zp.quint8):
    return zp.quantize_per_tensor(torch.randn(shape), scale, zero_point, dtype)


def weight(shape, per_channel=True):
    w = torch.randn(shape) * 0.2
    if per_channel:
        return zp.quantize_per_channel(w, torch.rand(shape[0]) * 0.003 + 0.002, torch.zeros(shape[0]), 0, zp.qint8)
    return zp.quantize_per_tensor(w, 0.005, 0, zp.qint8)


def within_a_step(module, actual, expected, clamp=(None, None)):
    """The result is the float result on the dequantized operands, rounded once."""
    expected = expected.clamp(*clamp) if any(c is not None for c in clamp) else expected
    grid = zp.quantize_per_tensor(expected, module.scale, module.zero_point, actual.dtype)
    difference = (actual.int_repr().int() - grid.int_repr().int()).abs()
    assert int(difference.max()) <= 1
    assert int((difference > 0).sum()) <= max(2, difference.numel() // 100)  # sums in float round differently near ties


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cls", [nnq.Linear, nniq.LinearReLU])
def test_linear(isa, cls, per_channel, bias):
    module = cls(20, 30, bias)
    w, b = weight((30, 20), per_channel), torch.randn(30) if bias else None
    module.set_weight_bias(w, b)
    module.scale, module.zero_point = 0.02, 50
    x = q((5, 20))
    expected = nn.functional.linear(x.dequantize(), w.dequantize(), b)
    within_a_step(module, module(x), expected, (0.0 if cls is nniq.LinearReLU else None, None))
    assert torch.equal(module.weight(), w)
    if cls is nnq.Linear:
        assert torch.equal(qF.linear(x, w, b, 0.02, 50), module(x))


CONVS = {
    "plain": {},
    "stride": {"stride": 2, "padding": 1},
    "rectangle": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "groups": {"groups": 2},
    "depthwise": {"groups": 8, "padding": 1},
    "same": {"padding": "same"},
    "same even": {"padding": "same", "kernel_size": 4},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": (1, 2), "padding_mode": "replicate"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "1x1": {"kernel_size": 1},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("cls", [nnq.Conv2d, nniq.ConvReLU2d])
def test_conv2d(isa, cls, name):
    arguments = {"kernel_size": 3, **CONVS[name]}
    float_conv = nn.Conv2d(8, 8, **arguments)
    module = cls(8, 8, **arguments)
    w = weight(tuple(float_conv.weight.shape))
    module.set_weight_bias(w, float_conv.bias)
    module.scale, module.zero_point = 0.04, 60
    with torch.no_grad():
        float_conv.weight.copy_(w.dequantize())
        x = q((2, 8, 11, 9))
        expected = float_conv(x.dequantize())
    actual = module(x)
    assert actual.shape == expected.shape
    within_a_step(module, actual, expected, (0.0 if cls is nniq.ConvReLU2d else None, None))
    assert torch.equal(module(x[0]), actual[0])


def test_functional_conv2d(isa):
    x, w, b = q((1, 4, 6, 6)), weight((5, 4, 3, 3)), torch.randn(5)
    module = nnq.Conv2d(4, 5, 3, 2, 1)
    module.set_weight_bias(w, b)
    module.scale, module.zero_point = 0.03, 70
    assert torch.equal(qF.conv2d(x, w, b, 2, 1, scale=0.03, zero_point=70), module(x))


@pytest.mark.parametrize("relu", [None, nn.ReLU(), nn.ReLU6()])
def test_batch_norm(isa, relu):
    bn = nn.BatchNorm2d(6).eval()
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    nn.init.normal_(bn.weight)
    with torch.no_grad():
        bn.weight[2] = 0.0  # a dead channel gives its bias
        bn.bias.normal_()
    cls = nnq.BatchNorm2d if relu is None else nniq.BNReLU2d
    module = cls.from_reference(bn, 0.05, 100)
    module.relu_max = 6.0 if isinstance(relu, nn.ReLU6) else None
    x = q((2, 6, 5, 4))
    high = 6.0 if isinstance(relu, nn.ReLU6) else None
    within_a_step(module, module(x), bn(x.dequantize()), (None if relu is None else 0.0, high))
    fresh = cls(6)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


@pytest.mark.parametrize("relu6", [True, False])
def test_relu6_is_exact_where_six_is_inside_the_range(relu6):
    module = nniq.ConvReLU2d(1, 1, 1)
    module.set_weight_bias(zp.quantize_per_tensor(torch.ones(1, 1, 1, 1), 1 / 127, 0, zp.qint8), None)
    module.scale, module.zero_point = 0.1, 0
    module.relu_max = 6.0 if relu6 else None
    x = zp.quantize_per_tensor(torch.linspace(-5, 20, 26).view(1, 1, 1, 26), 0.1, 50, zp.quint8)
    assert float(module(x).dequantize().max()) == pytest.approx(6.0 if relu6 else 20.0, abs=0.06)
    assert float(module(x).dequantize().min()) == 0.0


def test_dead_channel_with_a_large_bias(isa):
    # The weight observer's eps is the scale of an all-zero channel; its int32 bias would overflow.
    module = nnq.Linear(3, 2)
    w = zp.quantize_per_channel(
        torch.tensor([[0.0] * 3, [0.1] * 3]), torch.tensor([1.2e-7, 0.001]), torch.zeros(2), 0, zp.qint8
    )
    module.set_weight_bias(w, torch.tensor([5.0, 0.0]))
    module.scale, module.zero_point = 0.05, 0
    assert float(module(q((1, 3)))[0, 0].dequantize()) == pytest.approx(5.0, abs=0.03)


def test_float_functional():
    f, x, y = nnq.FloatFunctional(), torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(f.add(x, y), x + y)
    assert torch.equal(f.add_relu(x, y), (x + y).clamp(min=0))
    assert torch.equal(f.mul(x, y), x * y)
    assert torch.equal(f.cat([x, y], 1), torch.cat([x, y], 1))
    assert torch.equal(f.add_scalar(x, 2.0), x + 2)
    assert torch.equal(f.mul_scalar(x, 2.0), x * 2)
    assert torch.equal(f.matmul(x, y.t()), x @ y.t())
    with pytest.raises(RuntimeError, match="not intended"):
        f(x)


def test_qfunctional(isa):
    f = nnq.QFunctional()
    f.scale, f.zero_point = 0.0617, 110
    a, b = q((3, 4, 5, 5)), q((3, 4, 5, 5), 0.03, 100)
    x, y = a.dequantize(), b.dequantize()
    within_a_step(f, f.add(a, b), x + y)
    within_a_step(f, f.add_relu(a, b), (x + y).clamp(min=0))
    within_a_step(f, f.mul(a, b), x * y)
    within_a_step(f, f.cat([a, b], 1), torch.cat([x, y], 1))
    within_a_step(f, f.add(a, b[:, :, :1, :1]), x + y[:, :, :1, :1])
    assert torch.equal(f.add(a, b), qF.add(a, b, 0.0617, 110))
    assert torch.equal(f.mul(a, b), qF.mul(a, b, 0.0617, 110))
    within_a_step(f, f.matmul(a, b), x @ y)
    assert zp.backend.fallbacks() == {}
    within_a_step(f, f.add(a, y), x + y)  # a float operand: in float, counted
    assert zp.backend.fallbacks() == {"QFunctional.add": 1}


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 100.0, -100.0])
def test_scalar_operations(value):
    f, a = nnq.QFunctional(), q((50,))
    added = f.add_scalar(a, value)
    assert (
        float((added.dequantize() - (a.dequantize() + value)).abs().max())
        <= max(added.q_scale(), a.q_scale()) * 0.51 + 1e-4
    )
    multiplied = f.mul_scalar(a, value)
    assert torch.allclose(multiplied.dequantize(), a.dequantize() * value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (nnq.Hardswish(0.0417, 20), nn.functional.hardswish),
        (nnq.ELU(0.0417, 60, 0.7), lambda x: nn.functional.elu(x, 0.7)),
        (nnq.LeakyReLU(0.0417, 60, 0.2), lambda x: nn.functional.leaky_relu(x, 0.2)),
        (nnq.Sigmoid(1 / 256, 0), torch.sigmoid),
    ],
)
def test_table_activations(isa, module, function):
    x = q((7, 33))
    within_a_step(module, module(x), function(x.dequantize()))
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other = copy.deepcopy(module)
    other.scale = 1.0
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), module(x))  # torch.ao lost the scale of these


@pytest.mark.parametrize(
    "module", [nnq.ReLU(), nnq.ReLU6(), nnq.MaxPool2d(2), nnq.AvgPool2d(2), nnq.AdaptiveAvgPool2d(2)]
)
def test_modules_that_keep_qparams(isa, module):
    x = q((2, 3, 6, 6))
    y = module(x)
    assert (y.q_scale(), y.q_zero_point()) == (x.q_scale(), x.q_zero_point())
    with pytest.raises(QuantizationError, match="must be quint8 or qint8"):
        module(x.dequantize())


def test_quantize_and_dequantize():
    module = nnq.Quantize(torch.tensor([0.1]), torch.tensor([3]), zp.quint8)
    x = torch.randn(4, 4)
    y = module(x)
    assert torch.equal(y, zp.quantize_per_tensor(x, module.scale.item(), 3, zp.quint8))
    assert module(y) is y
    assert torch.equal(nnq.DeQuantize()(y), y.dequantize())
    assert nnq.DeQuantize()(x) is x
    assert repr(module).startswith("Quantize(scale=tensor([0.1000]), zero_point=tensor([3])")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: nnq.Linear(3, 4).set_weight_bias(torch.zeros(4, 3), None), "qint8 quantized tensor"),
        (lambda: nnq.Linear(3, 4).set_weight_bias(q((4, 3)), None), "qint8 quantized tensor"),
        (lambda: nnq.Linear(3, 4).set_weight_bias(weight((3, 4)), None), r"shape \(4, 3\)"),
        (lambda: nnq.Linear(3, 4).set_weight_bias(weight((4, 3)), torch.zeros(3)), "bias must have shape"),
        (
            lambda: nnq.Linear(3, 4).set_weight_bias(
                zp.quantize_per_channel(torch.zeros(4, 3), torch.ones(3), torch.zeros(3), 1, zp.qint8), None
            ),
            "axis 0",
        ),
        (lambda: nnq.Linear(3, 4, dtype=zp.quint8), "weight dtype must be qint8"),
        (lambda: setattr(nnq.Linear(3, 4), "scale", 0.0), "scale must be finite and > 0"),
        (lambda: setattr(nnq.Linear(3, 4), "zero_point", 300), "zero_point 300"),
        (lambda: nnq.Linear(3, 4)(torch.zeros(1, 3)), "must be quint8 or qint8"),
        (lambda: nnq.Linear(3, 4)(q((2, 5))), "5 features"),
        (lambda: nnq.Conv2d(3, 4, 3)(q((1, 5, 8, 8))), r"must be \[N, 3, H, W\]"),
        (lambda: nnq.Conv2d(3, 4, 3)(q((1, 3, 2, 2))), "does not fit"),
        (lambda: nnq.Conv2d(3, 4, 3, groups=2), "divisible by groups"),
        (lambda: nnq.Conv2d(3, 4, 3, padding_mode="mirror"), "padding_mode"),
        (lambda: nnq.Conv2d(3, 4, 3, padding="full"), "padding must be"),
        (lambda: nnq.Conv2d(4, 4, 3, stride=2, padding="same"), "stride 1"),
        (lambda: nnq.Linear.from_float(nn.Linear(2, 2)), "qconfig"),
        (lambda: qF.linear(torch.zeros(1, 3), weight((4, 3))), "must be quantized"),
        (lambda: qF.linear(q((1, 3)), torch.zeros(4, 3)), "weight must be qint8"),
        (lambda: qF.add(q((3,)), q((3,)), -1.0, 0), "scale"),
        (lambda: qF.add(q((3,)), q((3,)), 1.0, 256), "zero_point"),
    ],
)
def test_wrong_use(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_reduction_too_long_for_int32():
    module = nnq.Linear(70000, 1)
    w = zp.quantize_per_tensor(torch.ones(1, 70000), 1 / 127, 0, zp.qint8)
    module.set_weight_bias(w, None)
    with pytest.raises(ValueError, match="int32 accumulator"):
        module(q((1, 70000)))


def test_weights_with_zero_points(isa):
    # 9 bits once the zero point is taken off: split and exact on every instruction set.
    module = nnq.Linear(40, 3)
    w = zp.quantize_per_channel(torch.randn(3, 40), torch.full((3,), 0.02), torch.tensor([-128, 5, 127]), 0, zp.qint8)
    module.set_weight_bias(w, None)
    module.scale, module.zero_point = 0.1, 128
    x = q((4, 40))
    within_a_step(module, module(x), x.dequantize() @ w.dequantize().t())
    fresh = nnq.Linear(40, 3)
    fresh.load_state_dict({**module.state_dict(), "bias": torch.zeros(3)})
    assert torch.equal(fresh(x), module(x))


def test_non_contiguous_and_empty_inputs(isa):
    module = nnq.Linear(8, 4)
    module.set_weight_bias(weight((4, 8)), None)
    module.scale = 0.1
    x = q((6, 16))
    assert torch.equal(module(x[::2, ::2]), module(x[::2, ::2].contiguous()))
    assert module(q((0, 8))).shape == (0, 4)
    assert module(q((8,))).shape == (4,)
    conv = nnq.Conv2d(2, 3, 1)
    assert conv(q((0, 2, 4, 4))).shape == (0, 3, 4, 4)
