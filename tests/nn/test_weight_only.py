"""Linear with 8- or 4-bit weights in groups."""

import copy
import pickle

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint import QuantizationError
from zeropoint.nn.quantized.dynamic import WeightOnlyLinear
from zeropoint.quantization import quantize_weight_only


def sqnr(reference, value):
    reference = reference.detach()
    return float(10 * torch.log10(reference.pow(2).sum() / (reference - value).pow(2).sum()))


@pytest.mark.parametrize("k", [64, 100, 7])
@pytest.mark.parametrize("bits", [4, 8])
def test_equals_float_product_with_the_quantized_weight(bits, k):
    """15-bit activations lose next to nothing: what remains is the weight's rounding."""
    linear, x = nn.Linear(k, 33), torch.randn(5, k)
    quantized = WeightOnlyLinear.from_float(linear, bits, group_size=32)
    exact = nn.functional.linear(x, quantized.dequantized_weight(), linear.bias)
    assert sqnr(exact, quantized(x)) > 80
    assert sqnr(linear.weight, quantized.dequantized_weight()) > (20 if bits == 4 else 44)


def test_bfloat16_activations_keep_all_their_bits():
    linear, x = nn.Linear(256, 64), torch.randn(3, 256).bfloat16()
    quantized = WeightOnlyLinear.from_float(linear, 4, 64)
    out = quantized(x)
    assert out.dtype == torch.bfloat16
    exact = nn.functional.linear(x.double(), quantized.dequantized_weight().double(), linear.bias.double()).detach()
    assert float((out.double() - exact).abs().max()) < 2**-7 * float(exact.abs().max())
    assert torch.equal(quantized(x.float()).bfloat16(), out)


def test_affine_groups_recover_weights_on_a_grid():
    """Weights scale * q + minimum, as 4-bit checkpoints have them, come back exactly but for float rounding."""
    q = torch.randint(0, 16, (8, 4, 32)).float()
    q[..., 0], q[..., 1] = 0, 15  # each group uses its whole range
    weight = (q * torch.rand(8, 4, 1) + torch.randn(8, 4, 1)).reshape(8, 128)
    linear = nn.Linear(128, 8, bias=False)
    linear.weight.data = weight
    assert torch.allclose(WeightOnlyLinear.from_float(linear, 4, 32).dequantized_weight(), weight, atol=2e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_state_dict_round_trip(bits, symmetric):
    model, x = nn.Sequential(nn.Linear(45, 20), nn.ReLU(), nn.Linear(20, 3, bias=False)), torch.randn(4, 45)
    quantized = quantize_weight_only(model, bits=bits, group_size=32, symmetric=symmetric)
    state = quantized.state_dict()
    assert all(type(t) is torch.Tensor for t in state.values())
    if bits == 4:
        assert state["0.weight"].shape == (20, 23)
    fresh = quantize_weight_only(model, bits=8, group_size=64)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), quantized(x))
    for copied in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert torch.equal(copied(x), quantized(x))


def test_names_and_report():
    model = nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, 2))
    quantized = quantize_weight_only(model, ["1"], bits=4)
    assert isinstance(quantized[1][0], WeightOnlyLinear)
    assert type(quantized[0]) is nn.Linear
    assert type(model[1][0]) is nn.Linear
    assert "weights of 4 bits, activations of 15" in str(zp.report(quantized))
    assert isinstance(quantize_weight_only(nn.Linear(64, 2)), WeightOnlyLinear)


def test_rows_do_not_depend_on_each_other():
    quantized, x = WeightOnlyLinear.from_float(nn.Linear(96, 40), 4, 32), torch.randn(60, 96)
    assert torch.equal(quantized(x)[17:18], quantized(x[17:18]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WeightOnlyLinear(8, 8, bits=3), "bits must be 4 or 8"),
        (lambda: WeightOnlyLinear(8, 8, group_size=48), "multiple of 32"),
        (lambda: WeightOnlyLinear(8, 8, activation_bits=16), "8 or 15"),
        (lambda: WeightOnlyLinear(8, 8)(torch.zeros(2, 7)), r"\[\.\.\., 8\]"),
        (lambda: WeightOnlyLinear(8, 8)(torch.zeros(2, 8, dtype=torch.int64)), "float"),
        (lambda: WeightOnlyLinear(8, 8)(torch.full((1, 8), float("inf"))), "infinite"),
        (lambda: WeightOnlyLinear(8, 8).set_weight_bias(torch.full((8, 8), float("nan")), None), "NaN"),
        (lambda: WeightOnlyLinear(8, 8).set_weight_bias(torch.zeros(8, 9), None), "shape"),
        (lambda: quantize_weight_only(nn.Linear(8, 8), ["head"]), "no submodule 'head'"),
        (lambda: quantize_weight_only(nn.ReLU()), "no Linear"),
        (lambda: WeightOnlyLinear.from_float(nn.Conv1d(1, 1, 1)), "works for Linear"),
    ],
)
def test_errors(call, message):
    with pytest.raises((QuantizationError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weight", torch.zeros(3, 3, dtype=torch.int8), "half as many columns"),
        ("weight_scale", torch.zeros(20, 2), "above 0"),
        ("weight_scale", torch.ones(20, 3), "shape"),
        ("weight_zero_point", torch.full((20, 2), float("nan")), "finite"),
        ("group_size", torch.tensor(33), "multiple of 32"),
        ("bias", torch.zeros(3), "bias"),
    ],
)
def test_wrong_state_is_an_error(key, value, message):
    quantized = WeightOnlyLinear.from_float(nn.Linear(45, 20), 4, 32)
    with pytest.raises(RuntimeError, match=message):
        quantized.load_state_dict({**quantized.state_dict(), key: value})


def test_nan_is_real_zero():
    quantized, x = WeightOnlyLinear.from_float(nn.Linear(64, 8), 8, 32), torch.randn(2, 64)
    x[0, 3] = 0
    expected = quantized(x)
    x[0, 3] = float("nan")
    assert torch.equal(quantized(x), expected)
