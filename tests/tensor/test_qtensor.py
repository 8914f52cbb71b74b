from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import zeropoint as zp
from zeropoint import QuantizationError
from zeropoint.analysis import sqnr


@pytest.fixture
def q():
    return zp.quantize_per_tensor(torch.randn(2, 3, 8, 8), 0.05, 128, zp.quint8)


@pytest.fixture
def qc():
    return zp.quantize_per_channel(
        torch.randn(4, 3, 2), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, 2]), 1, zp.qint8
    )


def test_attributes(q, qc):
    assert q.is_quantized
    assert q.dtype == zp.quint8
    assert (q.q_scale(), q.q_zero_point()) == (0.05, 128)
    assert q.qscheme() == zp.per_tensor_affine
    assert q.shape == q.size() == (2, 3, 8, 8)
    assert (q.numel(), q.dim(), len(q)) == (384, 4, 2)
    assert q.int_repr().dtype == torch.uint8
    assert qc.qscheme() == zp.per_channel_affine
    assert qc.q_per_channel_axis() == 1
    assert torch.allclose(qc.q_per_channel_scales(), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    assert qc.q_per_channel_zero_points().tolist() == [0, 1, 2]
    for wrong in (q.q_per_channel_scales, q.q_per_channel_axis, qc.q_scale, qc.q_zero_point):
        with pytest.raises(QuantizationError, match=r"use q_"):
            wrong()


def test_torch_tokens_are_accepted_by_name(q):
    scale = torch.tensor([0.05], dtype=torch.float64)
    again = zp.quantize_per_tensor(q.dequantize(), scale, torch.tensor(128), dtype="quint8")
    assert torch.equal(again, q)
    if hasattr(torch, "quint8"):
        assert torch.equal(zp.quantize_per_tensor(q.dequantize(), 0.05, 128, torch.quint8), q)


MOVES = {
    "view": lambda t: t.view(2, -1),
    "reshape": lambda t: t.reshape(6, 64),
    "permute": lambda t: t.permute(0, 2, 3, 1),
    "transpose": lambda t: t.transpose(1, 2),
    "contiguous": lambda t: t.permute(0, 2, 3, 1).contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "index": lambda t: t[0, 1:, ::2],
    "mask": lambda t: t[:, torch.tensor([True, False, True])],
    "flatten": lambda t: torch.flatten(t, 1),
    "unsqueeze": lambda t: t.unsqueeze(0).squeeze(0),
    "chunk": lambda t: t.chunk(2, 3)[1],
    "split": lambda t: torch.split(t, 3, 2)[2],
    "flip": lambda t: torch.flip(t, (2,)),
    "roll": lambda t: torch.roll(t, 3, 2),
    "expand": lambda t: t[:, :1].expand(2, 3, 8, 8),
    "repeat": lambda t: t.repeat(1, 2, 1, 1),
    "index_select": lambda t: t.index_select(1, torch.tensor([2, 0])),
    "clone": lambda t: t.clone(),
    "detach": lambda t: t.detach(),
    "pixel_shuffle": lambda t: F.pixel_shuffle(t.repeat(1, 4, 1, 1), 2),
    "stack": lambda t: torch.stack([t, t], 1),
    "cat": lambda t: torch.cat([t, t], 1),
    "sort": lambda t: torch.sort(t, 2)[0],
    "topk": lambda t: t.topk(3)[0],
    "relu": F.relu,
    "relu6": F.relu6,
    "max_pool2d": lambda t: F.max_pool2d(t, 3, 2, 1),
    "pad": lambda t: F.pad(t, (1, 2)),
    "reflection": lambda t: F.pad(t, (1, 2, 0, 1), mode="reflect"),
    "nearest": lambda t: F.interpolate(t, scale_factor=2),
    "deepcopy": copy.deepcopy,
    "to": lambda t: t.to("cpu"),
}


@pytest.mark.parametrize("name", MOVES)
def test_functions_that_stay_quantized(q, name):
    result = MOVES[name](q)
    assert isinstance(result, zp.QTensor)
    # Quantization commutes with these: the same on the reals, which here are exact multiples.
    assert torch.allclose(result.dequantize(), MOVES[name](q.dequantize()), atol=1e-6)
    assert zp.backend.fallbacks() == {}


@pytest.mark.parametrize(("name", "axis"), [("transpose", 2), ("permute", 3), ("unsqueeze", 1), ("clone", 1)])
def test_per_channel_axis_moves_with_the_data(name, axis):
    x = torch.randn(2, 3, 4, 5)
    qc = zp.quantize_per_channel(x, torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3), 1, zp.qint8)
    result = MOVES[name](qc)
    assert result.q_per_channel_axis() == axis
    assert torch.equal(result.dequantize(), MOVES[name](qc.dequantize()))


def test_average_pools_round_once(q):
    for function in (
        lambda t: F.avg_pool2d(t, 3, 2, 1),
        lambda t: F.adaptive_avg_pool2d(t, 3),
        lambda t: t.mean([2, 3]),
    ):
        result = function(q)
        assert isinstance(result, zp.QTensor)
        assert float((result.dequantize() - function(q.dequantize())).abs().max()) <= 0.05 / 2 + 1e-5


FLOAT = {
    "add": (lambda t: t + t, "add"),
    "mul": (lambda t: t * 2.0, "mul"),
    "silu": (F.silu, "silu"),
    "softmax": (lambda t: torch.softmax(t, 1), "softmax"),
    "sum": (lambda t: t.sum(), "sum"),
    "matmul": (lambda t: t @ t, "matmul"),
    "where": (lambda t: torch.where(t.dequantize() > 0, t, t), "where"),
    "half": (lambda t: t.to(torch.float16), "to"),
    "conv2d": (lambda t: F.conv2d(t, torch.ones(1, 3, 3, 3)), "conv2d"),
    "einsum": (lambda t: torch.einsum("nchw->nc", t), "einsum"),
}


@pytest.mark.parametrize(
    "function",
    [
        torch.max,
        torch.min,
        lambda t: t.max(1)[0],
        lambda t: t.amin((1, 2)),
        lambda t: F.max_pool1d(t[0], 2),
        lambda t: F.adaptive_max_pool2d(t, 3),
    ],
)
def test_extremes_are_those_of_the_integers(q, function):
    result = function(q)
    assert isinstance(result, zp.QTensor)
    assert torch.equal(result.dequantize(), function(q.dequantize()))
    assert zp.backend.fallbacks() == {}


@pytest.mark.parametrize(
    "question", [lambda t: t > 0, lambda t: t == t, lambda t: t.argmax(1), lambda t: t.float(), torch.isnan]
)
def test_questions_are_answered_about_the_reals(q, question):
    assert torch.equal(question(q), question(q.dequantize()))
    assert zp.backend.fallbacks() == {}


@pytest.mark.parametrize("name", FLOAT)
def test_other_functions_run_in_float_and_are_counted(q, name):
    function, counted = FLOAT[name]
    assert torch.equal(function(q), function(q.dequantize()))
    assert zp.backend.fallbacks()[counted] >= 1
    with zp.backend.strict(), pytest.raises(QuantizationError, match="no integer form"):
        function(q)


def test_mixed_with_float(q):
    x = torch.randn(q.shape)
    assert torch.equal(x + q, x + q.dequantize())


def test_equal(q):
    assert torch.equal(q, q.clone())
    assert not torch.equal(q, zp.make_per_tensor_quantized_tensor(q.int_repr(), 0.06, 128))
    assert not torch.equal(q, q.dequantize())


def test_assignment(q):
    q[0, 0, 0, 0] = 1.0
    assert float(q[0, 0, 0, 0].dequantize()) == pytest.approx(1.0)
    q[1] = torch.zeros(3, 8, 8)
    assert bool((q[1].int_repr() == 128).all())
    target = zp.quantize_per_tensor(torch.zeros(2, 3, 8, 8), 0.1, 0, zp.quint8)
    target.copy_(torch.full((2, 3, 8, 8), 0.5))
    assert bool((target.int_repr() == 5).all())
    target.copy_(q)
    assert torch.equal(target, q)


def round_trips():
    def torch_save(t):
        buffer = io.BytesIO()
        torch.save({"t": t}, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)["t"]

    return {"pickle": lambda t: pickle.loads(pickle.dumps(t)), "deepcopy": copy.deepcopy, "torch.save": torch_save}


@pytest.mark.parametrize("name", round_trips())
def test_round_trips(q, qc, name):
    for tensor in (q, qc, q[0, :, 1:], zp.quantize_per_tensor(torch.randn(()), 0.1, 0, zp.qint32)):
        result = round_trips()[name](tensor)
        assert isinstance(result, zp.QTensor)
        assert torch.equal(result, tensor)


def test_integers_go_through_safetensors(q):
    restored = load(save({"q": q.int_repr()}))["q"]
    assert torch.equal(zp.make_per_tensor_quantized_tensor(restored, q.q_scale(), q.q_zero_point()), q)


def test_a_damaged_pickle_is_an_error(q):
    function, arguments = q.__reduce_ex__(2)
    for position, value in ((1, float("nan")), (1, -1.0), (2, 300), (3, "quint9"), (0, torch.zeros(3)), (4, 9)):
        damaged = list(arguments)
        damaged[position] = value
        with pytest.raises(QuantizationError):
            function(*damaged)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e-60, 1e60, torch.ones(2)])
def test_bad_scale(scale):
    with pytest.raises(QuantizationError, match="scale"):
        zp.quantize_per_tensor(torch.randn(3), scale, 0, zp.quint8)


@pytest.mark.parametrize(
    ("zero_point", "dtype"),
    [(-1, zp.quint8), (256, zp.quint8), (128, zp.qint8), (-129, zp.qint8), (0.5, zp.quint8), (2**31, zp.qint32)],
)
def test_bad_zero_point(zero_point, dtype):
    with pytest.raises(QuantizationError, match="zero_point"):
        zp.quantize_per_tensor(torch.randn(3), 0.1, zero_point, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, "int8", zp.quint4x2, 3])
def test_bad_dtype(dtype):
    with pytest.raises(QuantizationError, match="dtype"):
        zp.quantize_per_tensor(torch.randn(3), 0.1, 0, dtype)


@pytest.mark.parametrize("x", [torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.complex64), [1.0]])
def test_bad_input(x):
    with pytest.raises(QuantizationError, match="input must be"):
        zp.quantize_per_tensor(x, 0.1, 0, zp.quint8)


def test_quantizing_twice_is_an_error(q):
    with pytest.raises(QuantizationError, match="quantized already"):
        zp.quantize_per_tensor(q, 0.1, 0, zp.quint8)


@pytest.mark.parametrize(
    ("scales", "zero_points", "axis", "message"),
    [
        (torch.ones(3), torch.zeros(3), 2, "axis"),
        (torch.ones(3), torch.zeros(3), -3, "axis"),
        (torch.ones(2), torch.zeros(3), 1, "scales"),
        (torch.ones(3), torch.zeros(2), 1, "zero_points"),
        (torch.ones(1, 3), torch.zeros(3), 1, "scales"),
        (torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3), 1, "scale"),
        (torch.tensor([1.0, math.nan, 1.0]), torch.zeros(3), 1, "scale"),
        (torch.ones(3), torch.tensor([0, 0, 200]), 1, "zero_point"),
    ],
)
def test_bad_channels(scales, zero_points, axis, message):
    with pytest.raises(QuantizationError, match=message):
        zp.quantize_per_channel(torch.randn(4, 3), scales, zero_points, axis, zp.qint8)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (2, 0, 4)])
def test_shapes_at_the_edge(shape):
    x = torch.zeros(shape)
    q = zp.quantize_per_tensor(x, 0.1, 3, zp.quint8)
    assert q.shape == x.shape
    assert torch.equal(q.dequantize(), x)


def test_negative_axis():
    x = torch.randn(4, 3)
    a = zp.quantize_per_channel(x, torch.ones(3), torch.zeros(3), -1, zp.qint8)
    assert a.q_per_channel_axis() == 1


@settings(max_examples=200, deadline=None)
@given(
    scale=st.floats(2.0**-12, 16.0, width=32),
    zero_point=st.integers(0, 255),
    values=st.lists(st.floats(-4000, 4000, width=32), min_size=1, max_size=50),
)
def test_properties(scale, zero_point, values):
    x = torch.tensor(sorted(values))
    q = zp.quantize_per_tensor(x, scale, zero_point, zp.quint8)
    back = q.dequantize()
    low, high = (0 - zero_point) * scale, (255 - zero_point) * scale
    inside = (x >= low) & (x <= high)
    # Half a step, and the float32 roundings of the product and the sum (|x / scale + zero_point| < 2^9).
    assert bool(((back - x).abs()[inside] <= scale * (0.5 + 2.0**-13)).all())
    integers = q.int_repr().int()
    assert bool((integers[1:] >= integers[:-1]).all())  # monotone
    assert torch.equal(zp.quantize_per_tensor(back, scale, zero_point, zp.quint8), q)  # idempotent
    doubled = zp.quantize_per_tensor(x * 2, scale * 2, zero_point, zp.quint8)
    assert torch.equal(doubled.int_repr(), q.int_repr())
    assert float(zp.quantize_per_tensor(torch.zeros(1), scale, zero_point, zp.quint8).dequantize()) == 0.0


def test_repr(q):
    text = repr(q[0, 0, 0, :2])
    assert "size=(2,)" in text
    assert "dtype=zeropoint.quint8" in text
    assert "zero_point=128" in text


class ToDtypeOfInput(torch.nn.Module):
    """As normalization layers do that compute in float32 whatever they are given."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x):
        x = self.first(x)
        scale = x.to(torch.float32).square().mean(-1, keepdim=True).rsqrt().to(x.dtype)
        return self.last((x * scale + torch.ones(8, dtype=x.dtype)).to(x.dtype))


def test_dtypes_of_quantized_inputs():
    torch.manual_seed(0)
    model, x = ToDtypeOfInput().eval(), torch.randn(6, 8)
    converted = zp.quantize(model, [x], eager=True)
    assert sqnr(model(x), converted(x)) > 20
    q = zp.quantize_per_tensor(x, 0.1, 0, zp.qint8)
    assert q.to(q.dtype).dtype is zp.qint8
    with pytest.raises(
        QuantizationError, match=r"to: zeropoint.qint8 needs a scale; use zeropoint.quantize_per_tensor"
    ):
        x.to(zp.qint8)
    with pytest.raises(QuantizationError, match=r"zeros: zeropoint.qint8 needs a scale"):
        torch.zeros(3, dtype=zp.qint8)
    with pytest.raises(QuantizationError, match=r"Tensor.to: zeropoint.quint8 has other integers than zeropoint.qint8"):
        q.to(zp.quint8)
