"""Static and trained LSTM, GRU, RNN, cells and attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import zeropoint as zp
from zeropoint import _reference, ops
from zeropoint.analysis import sqnr
from zeropoint.errors import QuantizationError
from zeropoint.nn import quantizable
from zeropoint.nn import quantized as nnq
from zeropoint.quantization import (
    DeQuantStub,
    QuantStub,
    convert,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
)


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.quant, self.layer, self.dequant = QuantStub(), layer, DeQuantStub()

    def forward(self, x):
        out, state = self.layer(self.quant(x))
        return self.dequant(out), state


LAYERS = {
    "LSTM": lambda **k: nn.LSTM(8, 12, **k),
    "GRU": lambda **k: nn.GRU(8, 12, **k),
    "RNN": lambda **k: nn.RNN(8, 12, **k),
    "RNN relu": lambda **k: nn.RNN(8, 12, nonlinearity="relu", **k),
}
OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}, {"bias": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_observed_layers_equal_the_float_ones(name, options):
    torch.manual_seed(0)
    layer, x = LAYERS[name](**options).eval(), torch.randn(6, 4, 8)
    observed = getattr(quantizable, type(layer).__name__).from_float(layer)
    (expected, state), (result, other) = layer(x), observed(x)
    assert torch.allclose(result, expected, atol=1e-6)
    for a, b in zip(*(s if isinstance(s, tuple) else (s,) for s in (state, other)), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_static(name, options):
    torch.manual_seed(0)
    model = Net(LAYERS[name](**options)).eval()
    model.qconfig = get_default_qconfig()
    prepared, x = prepare(model), torch.randn(6, 4, 8)
    prepared(x)
    quantized = convert(prepared)
    assert isinstance(quantized.layer, getattr(nnq, name.split()[0]))
    assert sqnr(model(x)[0], quantized(x)[0]) > 22
    assert "Quantized" in repr(quantized.layer)
    with pytest.warns(UserWarning, match="never calibrated"):
        fresh = convert(prepare(model))
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(fresh(x)[0], quantized(x)[0])


class Called(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def static(layer, x):
    model = Net(layer).eval()
    model.qconfig = get_default_qconfig()
    prepared = prepare(model)
    prepared(x)
    return convert(prepared)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_all_steps_are_one_operator_with_the_bits_of_the_cell(name, options):
    torch.manual_seed(0)
    x = torch.randn(6, 4, 8)
    quantized = static(LAYERS[name](**options), x)
    with Called() as called:
        out, state = quantized(x)
    directions = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    assert called.names.count("zeropoint.rnn_static.default") == directions
    assert "zeropoint.linear.default" not in called.names
    program = zp.compile(quantized, (x,))
    assert torch.equal(program(x)[0], out)
    assert [i.operator for i in program.program.body].count("zeropoint::rnn_static") == directions
    for cell in [m for m in quantized.modules() if hasattr(m, "igates")]:
        cell.igates.register_forward_hook(lambda *_: None)  # who listens hears every step
    with Called() as called:
        stepwise, other = quantized(x)
    assert "zeropoint.rnn_static.default" not in called.names
    assert (
        called.names.count("zeropoint.linear.default")
        == 2 * x.shape[1 if options.get("batch_first") else 0] * directions
    )
    assert torch.equal(stepwise, out)
    for a, b in zip(*(s if isinstance(s, tuple) else (s,) for s in (state, other)), strict=True):
        assert torch.equal(a, b)


def test_given_states_of_a_static_layer():
    torch.manual_seed(0)
    x = torch.randn(6, 4, 8)
    layer = static(nn.LSTM(8, 12), x).layer
    q = zp.quantize_per_tensor(x, 0.03, 120, zp.quint8)
    states = torch.randn(1, 4, 12), torch.randn(1, 4, 12)
    out = layer(q, states)[0]
    layer.layers[0].layer_fw.cell.register_forward_hook(lambda *_: None)
    assert torch.equal(layer(q, states)[0].int_repr(), out.int_repr())
    assert not torch.equal(layer(q)[0].int_repr(), out.int_repr())


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_trained(name):
    torch.manual_seed(0)
    model = Net(LAYERS[name]()).train()
    model.qconfig = get_default_qat_qconfig()
    prepared = prepare_qat(model)
    optimizer, x = torch.optim.Adam(prepared.parameters(), 0.02), torch.randn(6, 4, 8)
    losses = []
    for _ in range(8):
        loss = (prepared(x)[0] - 0.3).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    prepared.eval()
    assert sqnr(prepared(x)[0], convert(prepared)(x)[0]) > 22


def test_given_states_and_single_sequences():
    torch.manual_seed(0)
    layer = quantizable.LSTM.from_float(nn.LSTM(8, 12))
    x, state = torch.randn(6, 4, 8), (torch.randn(1, 4, 12), torch.randn(1, 4, 12))
    float_layer = nn.LSTM(8, 12)
    layer = quantizable.LSTM.from_float(float_layer)
    assert torch.allclose(layer(x, state)[0], float_layer(x, state)[0], atol=1e-6)
    assert torch.allclose(layer(x[:, 0])[0], float_layer(x[:, 0])[0], atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"kdim": 10, "vdim": 6}, {"bias": False}], ids=str)
def test_attention(options):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, **options).eval()
    q, k, v = torch.randn(5, 3, 16), torch.randn(5, 3, attention.kdim), torch.randn(5, 3, attention.vdim)
    observed = quantizable.MultiheadAttention.from_float(attention)
    length = 3 if options.get("batch_first") else 5
    causal = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
    for kwargs in ({}, {"attn_mask": causal}, {"need_weights": False}):
        (expected, weights), (result, mine) = attention(q, k, v, **kwargs), observed(q, k, v, **kwargs)
        assert torch.allclose(result, expected, atol=1e-5)
        assert (weights is None) == (mine is None)
        if weights is not None:
            assert torch.allclose(mine, weights, atol=1e-5)
    back = observed.dequantize()
    assert torch.allclose(back(q, k, v)[0], attention(q, k, v)[0], atol=1e-5)


def test_wrong_use():
    with pytest.raises(QuantizationError, match="projections"):
        quantizable.LSTM.from_float(nn.LSTM(8, 12, proj_size=4))
    with pytest.raises(QuantizationError, match="works for LSTM"):
        quantizable.LSTM.from_float(nn.GRU(8, 12))
    with pytest.raises(QuantizationError, match="add_bias_kv"):
        quantizable.MultiheadAttention(16, 4, add_bias_kv=True)
    with pytest.raises(QuantizationError, match="PackedSequence"):
        quantizable.GRU(8, 4)(nn.utils.rnn.pack_sequence([torch.randn(3, 8)]))


def test_programs_of_recurrent_layers_say_what_does_not_fit():
    torch.manual_seed(0)
    x = torch.randn(6, 4, 8)
    program = zp.compile(static(nn.LSTM(8, 12), x), x)
    with pytest.raises(ValueError, match="x has 9 features and h 12, the weights expect 8 and 12 with 4 gates"):
        program(torch.randn(6, 4, 9))


@pytest.mark.parametrize(("kind", "steps", "reverse"), [(0, 430, True), (1, 460, False), (2, 1300, False)])
def test_sequences_whose_products_come_in_parts(kind, steps, reverse):
    """More than 4 MB of gates: the inputs' product runs some steps ahead, not all."""
    gates, tables, grids = ((4, 5, 15), (3, 3, 14), (1, 1, 6))[kind]
    hidden, features, batch = 256, 19, (10, 12, 13)[kind]
    assert steps * batch * gates * hidden > 1 << 22
    bytes_ = lambda *shape: torch.randint(0, 256, shape, dtype=torch.uint8)
    torch.manual_seed(0)
    states = bytes_(batch, hidden), bytes_(batch, hidden) if kind == 0 else bytes_(0)
    weights = [bytes_(gates * hidden, n).view(torch.int8) for n in (features, hidden)]
    scale, x = torch.full((gates * hidden,), 1e-3), bytes_(steps, batch, features)
    grid = torch.tensor([[0.03 + 0.001 * i, 37 * i % 256] for i in range(grids)]).double()
    rest = (bytes_(tables, 256), grid, kind, reverse)

    def run(operator, pack):
        ih, hh = ((w, pack(w), scale, None, None) for w in weights)
        return operator(x, *states, *ih, *hh, *rest)

    expected = run(_reference.rnn_static, lambda w: torch.empty(0))
    for result, value in zip(run(ops.rnn_static, lambda w: ops.linear_pack(w, None)), expected, strict=True):
        assert torch.equal(result, value)
