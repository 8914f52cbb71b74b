from __future__ import annotations

import copy
import io
import threading

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint import QuantizationError, qint8
from zeropoint.analysis import sqnr
from zeropoint.analysis import sqnr as zp_sqnr
from zeropoint.nn.quantized import dynamic as nnqd
from zeropoint.quantization import default_dynamic_qconfig, per_channel_dynamic_qconfig, quantize_dynamic


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 8))).eval()


@pytest.mark.parametrize("spec", [None, {nn.Linear}, {nn.Linear: per_channel_dynamic_qconfig}, {"0", "2.0"}])
def test_linear(isa, spec):
    net, x = model(), torch.randn(5, 7, 32)
    quantized = quantize_dynamic(net, spec)
    assert type(quantized[0]) is nnqd.Linear
    assert type(quantized[2][0]) is nnqd.Linear
    assert sqnr(net(x), quantized(x)) > 35
    assert "DynamicQuantizedLinear(in_features=32, out_features=64, dtype=zeropoint.qint8" in repr(quantized)
    assert type(net[0]) is nn.Linear


def test_by_name():
    quantized = quantize_dynamic(model(), {"0": default_dynamic_qconfig})
    assert type(quantized[0]) is nnqd.Linear
    assert type(quantized[2][0]) is nn.Linear


def test_layers_called_from_several_threads_at_once():
    """Each call gathers a team of its own; one that finds no helpers works alone."""
    quantized, x = quantize_dynamic(nn.LSTM(64, 128, 2)), torch.randn(9, 3, 64)
    expected, wrong = quantized(x)[0], []
    run = lambda: [wrong.append(1) for _ in range(30) if not torch.equal(quantized(x)[0], expected)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        torch.set_num_threads(before)
    assert wrong == []


def test_same_bits_on_any_thread_count_and_state_round_trip():
    quantized, x = quantize_dynamic(model()), torch.randn(5, 32)
    expected = quantized(x)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(quantized(x), expected)
    buffer = io.BytesIO()
    torch.save(quantized.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(9)
    fresh = quantize_dynamic(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 8))))
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(x), expected)
    assert torch.equal(copy.deepcopy(quantized)(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_float_types(dtype):
    quantized = quantize_dynamic(model())
    assert quantized[0](torch.randn(3, 32).to(dtype)).dtype == dtype


def test_edges():
    linear = quantize_dynamic(model())[0]
    assert linear(torch.zeros(0, 32)).shape == (0, 64)
    assert torch.allclose(linear(torch.zeros(2, 32)), linear.bias().expand(2, 64))
    nan = torch.randn(1, 32)
    nan[0, 3] = float("nan")
    assert bool(torch.isfinite(linear(nan)).all())
    with pytest.raises(ValueError, match="infinite values"):
        linear(torch.full((1, 32), float("inf")))


def test_wrong_use():
    with pytest.raises(QuantizationError, match="MaxPool2d has no dynamic form"):
        quantize_dynamic(model(), {nn.MaxPool2d})
    with pytest.raises(QuantizationError, match="no submodule 'head'"):
        quantize_dynamic(model(), {"head"})
    with pytest.raises(QuantizationError, match="Unknown dtype specified for quantize_dynamic"):
        quantize_dynamic(model(), dtype=torch.float64)
    with pytest.raises(QuantizationError, match=r"must be float \[..., 32\]"):
        quantize_dynamic(model(), dtype=qint8)[0](torch.randn(2, 31))


LAYERS = {
    "LSTM": lambda **k: nn.LSTM(10, 16, **k),
    "GRU": lambda **k: nn.GRU(10, 16, **k),
    "RNN": lambda **k: nn.RNN(10, 16, **k),
    "RNN relu": lambda **k: nn.RNN(10, 16, nonlinearity="relu", **k),
}


def finals(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False}]
)
def test_recurrent_layers(name, options):
    torch.manual_seed(0)
    layer = LAYERS[name](**options).eval()
    quantized = quantize_dynamic(nn.Sequential(layer), {type(layer): per_channel_dynamic_qconfig})[0]
    assert type(quantized) is getattr(nnqd, type(layer).__name__)
    x = torch.randn(7, 3, 10)
    (expected, state), (actual, other) = layer(x), quantized(x)
    assert actual.shape == expected.shape
    assert sqnr(expected, actual) > 28
    for a, b in zip(finals(state), finals(other), strict=True):
        assert a.shape == b.shape
        assert sqnr(a, b) > 28
    start = tuple(torch.randn(s.shape) for s in finals(state))
    start = start if len(start) == 2 else start[0]
    assert sqnr(layer(x, start)[0], quantized(x, start)[0]) > 28
    assert sqnr(layer(x[:, 0])[0], quantized(x[:, 0])[0]) > 28  # no batch


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sort", [True, False])
def test_packed_sequences(name, sort):
    torch.manual_seed(0)
    layer = LAYERS[name](num_layers=2, bidirectional=True).eval()
    quantized = quantize_dynamic(nn.Sequential(layer), {type(layer): per_channel_dynamic_qconfig})[0]
    lengths = [7, 4, 2] if sort else [2, 7, 4]
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(7, 3, 10), lengths, enforce_sorted=sort)
    (expected, state), (actual, other) = layer(packed), quantized(packed)
    assert torch.equal(actual.batch_sizes, expected.batch_sizes)
    assert sqnr(expected.data, actual.data) > 28
    assert all(sqnr(a, b) > 28 for a, b in zip(finals(state), finals(other), strict=True))


@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(cls):
    torch.manual_seed(0)
    cell = cls(10, 16).eval()
    quantized = quantize_dynamic(nn.Sequential(cell), {cls: per_channel_dynamic_qconfig})[0]
    x = torch.randn(5, 10)
    for arguments in ((x,), (x, tuple(torch.randn(5, 16) for _ in "hc") if cls is nn.LSTMCell else torch.randn(5, 16))):
        for a, b in zip(finals(cell(*arguments)), finals(quantized(*arguments)), strict=True):
            assert sqnr(a, b) > 28
    with pytest.raises(QuantizationError, match="state must have shape"):
        quantized(x, (torch.zeros(4, 16),) * 2 if cls is nn.LSTMCell else torch.zeros(4, 16))


def test_recurrent_state_copy_and_default():
    net, x = nn.Sequential(nn.LSTM(10, 16)), torch.randn(4, 2, 10)
    quantized = quantize_dynamic(net)
    expected = quantized(x)[0]
    assert torch.equal(copy.deepcopy(quantized)(x)[0], expected)
    fresh = quantize_dynamic(nn.Sequential(nn.LSTM(10, 16)))
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(fresh(x)[0], expected)
    assert "DynamicQuantizedLSTM" in repr(quantized)
    with pytest.raises(QuantizationError, match=r"\[..., 10\]"):
        quantized(torch.randn(4, 2, 9))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("bidirectional", [False, True])
def test_projections(bidirectional):
    lstm, x = nn.LSTM(10, 16, 2, proj_size=4, bidirectional=bidirectional), torch.randn(5, 3, 10)
    quantized = quantize_dynamic(nn.Sequential(lstm))[0]
    (out, (h, c)), (ref, (rh, rc)) = quantized(x), lstm(x)
    assert out.shape == ref.shape
    assert h.shape == rh.shape
    assert c.shape == rc.shape
    assert float((out - ref).detach().abs().max()) < 0.02


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv1d(4, 6, 3),
        lambda: nn.Conv2d(4, 6, 3, padding=1),
        lambda: nn.Conv3d(4, 6, 3),
        lambda: nn.ConvTranspose2d(4, 6, 3, 2),
    ],
)
def test_dynamic_convolutions(make):
    conv = make()
    quantized = quantize_dynamic(nn.Sequential(conv), {type(conv)})
    x = torch.randn(2, 4, *[7] * len(conv.kernel_size))
    assert "DynamicQuantizedConv" in repr(quantized)
    assert zp_sqnr(conv(x), quantized(x)) > 34


def test_rows_have_ranges_of_their_own():
    """One loud token leaves the others their resolution, and a row's result does not depend on the others."""
    linear, x = nn.Linear(64, 32), torch.randn(8, 64)
    x[0] *= 1000
    per_tensor, per_row = (quantize_dynamic(nn.Sequential(linear), per_row=r) for r in (False, True))
    assert zp_sqnr(linear(x)[1:], per_tensor(x)[1:]) < 10
    assert zp_sqnr(linear(x)[1:], per_row(x)[1:]) > 34
    assert torch.equal(per_row(x)[3:5], per_row(x[3:5]))
    fresh = quantize_dynamic(nn.Sequential(nn.Linear(64, 32)))
    fresh.load_state_dict(per_row.state_dict())
    assert torch.equal(fresh(x), per_row(x))


def test_groups_have_ranges_of_their_own():
    """One loud input leaves the other groups of its row their resolution."""
    linear, x = nn.Linear(200, 32), torch.randn(8, 200)
    linear.weight.data[:, 3] = 0  # what the loud input itself loses does not count
    x[:, 3] *= 1000
    per_row, grouped = (quantize_dynamic(nn.Sequential(linear), per_row=True, group_size=g) for g in (None, 32))
    assert zp_sqnr(linear(x), per_row(x)) < 10
    assert zp_sqnr(linear(x)[:, :], grouped(x)) > 8
    linear.weight.data[:, :32] = 0
    grouped = quantize_dynamic(nn.Sequential(linear), group_size=32)
    assert zp_sqnr(linear(x), grouped(x)) > 38
    assert "group_size=32" in repr(grouped)
    fresh = quantize_dynamic(nn.Sequential(nn.Linear(200, 32)))
    fresh.load_state_dict(grouped.state_dict())
    assert torch.equal(fresh(x), grouped(x))
    with pytest.raises(QuantizationError, match="multiple of 32"):
        quantize_dynamic(nn.Sequential(linear), group_size=20)


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_groups_leave_recurrent_layers_per_row(recurrent):
    net, x = nn.Sequential(recurrent(64, 64)), torch.randn(5, 64)
    results = [quantize_dynamic(net, per_row=True, group_size=g)(x) for g in (None, 32)]
    per_row, grouped = (r if isinstance(r, torch.Tensor) else r[0] for r in results)
    assert torch.equal(per_row, grouped)


def test_float16_weights():
    net, x = nn.Sequential(nn.Linear(16, 8), nn.LSTM(8, 5, bidirectional=True)), torch.randn(4, 2, 16)
    quantized = quantize_dynamic(net, dtype=torch.float16)
    assert quantized[0].weight().dtype == torch.float16
    assert torch.allclose(quantized(x)[0], net(x)[0], atol=2e-3)
    fresh = quantize_dynamic(net, dtype=torch.float16)
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(fresh(x)[0], quantized(x)[0])


@pytest.mark.parametrize(("dtype", "worst"), [(zp.quint8, 0.02), (zp.quint4x2, 0.3)])
def test_embeddings(dtype, worst):
    net = nn.Sequential(nn.Embedding(50, 9))
    quantized = quantize_dynamic(net, dtype=dtype)
    ids = torch.randint(0, 50, (3, 7))
    assert quantized(ids).shape == (3, 7, 9)
    assert float((quantized(ids) - net(ids)).detach().abs().max()) < worst
    bag = nn.EmbeddingBag(50, 9, mode="mean")
    quantized_bag = quantize_dynamic(nn.Sequential(bag), dtype=dtype)[0]
    offsets = torch.tensor([0, 2, 10])
    assert float((quantized_bag(ids.flatten(), offsets) - bag(ids.flatten(), offsets)).detach().abs().max()) < worst
    fresh = quantize_dynamic(nn.Sequential(nn.Embedding(50, 9)), dtype=dtype)
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(fresh(ids), quantized(ids))
    with pytest.raises(IndexError):
        quantized(torch.tensor([50]))
    with pytest.raises(IndexError):
        quantized_bag(torch.tensor([[50]]))


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"mode": "sum"}, ("rows",)),
        ({"mode": "sum"}, ("rows", "weights")),
        ({"mode": "mean", "padding_idx": 3}, ("flat", "offsets")),
        ({"mode": "max"}, ("flat", "offsets")),
        ({"mode": "mean", "include_last_offset": True}, ("flat", "offsets")),
        ({"mode": "mean", "include_last_offset": True}, ("rows",)),
    ],
)
def test_embedding_bags_are_those_of_torch(options, given):
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(20, 33, **options)
    quantized = quantize_dynamic(nn.Sequential(bag), dtype=zp.quint8)[0]
    rows = torch.randint(0, 20, (3, 7))
    rows[0] = 3  # nothing but padding, where that is what 3 is
    inputs = {
        "rows": rows,
        "flat": rows.flatten(),
        "offsets": torch.tensor([0, 7, 7, 21]),
        "weights": torch.randn(3, 7),
    }
    call = {
        "per_sample_weights" if n == "weights" else "offsets" if n == "offsets" else "input": inputs[n] for n in given
    }
    expected = bag(**call).detach()
    result = quantized(call.pop("input"), **call)
    assert result.shape == expected.shape
    assert float((result - expected).abs().max()) < 0.1
    assert float((result - expected)[expected == 0].abs().sum()) == 0


def test_embedding_bags_refuse_what_torch_refuses():
    quantized = quantize_dynamic(nn.Sequential(nn.EmbeddingBag(20, 4)), dtype=zp.quint8)[0]  # means
    rows = torch.randint(0, 20, (3, 7))
    with pytest.raises(ValueError, match=r"indices .bags, n. without offsets"):
        quantized(rows, torch.tensor([0, 7]))
    with pytest.raises(ValueError, match=r"indices .bags, n. without offsets"):
        quantized(rows.flatten())
    with pytest.raises(ValueError, match="mode='sum'"):
        quantized(rows, per_sample_weights=torch.ones(3, 7))
    for offsets in ([1, 7], [0, 9, 7], [0, 22]):
        with pytest.raises(ValueError, match="offsets must begin with 0"):
            quantized(rows.flatten(), torch.tensor(offsets))
