from __future__ import annotations

import io
import math
import pickle

import pytest
import torch

import zeropoint as zp
from zeropoint import QuantizationError
from zeropoint.quantization import (
    ClipWeightedHistogramObserver,
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    NoopObserver,
    Observer,
    ObserverBase,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QConfig,
    RecordingObserver,
    default_debug_observer,
    default_observer,
    get_observer_state_dict,
    load_observer_state_dict,
    prepare,
)

ALL = [
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    HistogramObserver,
    ClipWeightedHistogramObserver,
    PerChannelMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
]
MERGEABLE = [MinMaxObserver, HistogramObserver, ClipWeightedHistogramObserver, PerChannelMinMaxObserver]


@pytest.mark.parametrize("cls", ALL)
def test_uncalibrated_warns_and_says_so(cls):
    observer = cls()
    assert not observer.calibrated
    with pytest.warns(UserWarning, match="must run observer"):
        scale, zero_point = observer.calculate_qparams()
    assert (float(scale), int(zero_point)) == (1.0, 0)
    observer(torch.randn(3, 4))
    assert observer.calibrated
    observer.reset_min_max_vals()
    assert not observer.calibrated


@pytest.mark.parametrize("cls", ALL)
def test_returns_its_input_and_ignores_empty_tensors(cls):
    observer = cls()
    x = torch.randn(3, 4, requires_grad=True)
    assert observer(x) is x
    before = observer.min_val.clone()
    observer(torch.zeros(0, 4))
    assert torch.equal(observer.min_val, before)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_left_out_with_a_warning(cls, bad):
    clean, dirty = cls(), cls()
    x = torch.randn(3, 40)
    y = torch.cat([x, torch.full((3, 1), bad)], 1)
    clean(x)
    with pytest.warns(UserWarning, match="NaN or inf"):
        dirty(y)
    assert torch.equal(clean.calculate_qparams()[0], dirty.calculate_qparams()[0])


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types(cls, dtype):
    a, b = cls(), cls()
    x = torch.randn(3, 40).to(dtype)
    a(x)
    b(x.float())
    assert torch.equal(a.calculate_qparams()[0], b.calculate_qparams()[0])


@pytest.mark.parametrize("cls", MERGEABLE)
def test_merge_is_as_if_one_had_seen_all(cls):
    first, second, both = cls(), cls(), cls()
    a, b = torch.randn(3, 400), torch.randn(3, 400) * 2
    first(a), second(b), both(a), both(b)
    first.merge(second)
    scale, other = first.calculate_qparams()[0], both.calculate_qparams()[0]
    if issubclass(cls, HistogramObserver):  # bins are laid over anew, in another order
        assert torch.allclose(scale, other, rtol=0.05)
        assert float(first.histogram.sum()) == pytest.approx(2400, rel=1e-4)
    else:
        assert torch.equal(scale, other)
    with pytest.raises(QuantizationError, match="merge"):
        first.merge(RecordingObserver())


@pytest.mark.parametrize("cls", ALL)
def test_state_dict_and_pickle(cls):
    observer = cls()
    observer(torch.randn(3, 40))
    expected = observer.calculate_qparams()
    fresh = cls()
    fresh.load_state_dict(observer.state_dict())
    for copy in (fresh, pickle.loads(pickle.dumps(observer))):
        assert torch.equal(copy.calculate_qparams()[0], expected[0])
        assert torch.equal(copy.calculate_qparams()[1], expected[1])


def test_with_args():
    make = MinMaxObserver.with_args(dtype=zp.qint8).with_args(qscheme=zp.per_tensor_symmetric)
    a, b = make(), make()
    assert a is not b
    assert (a.dtype, a.qscheme) == (zp.qint8, zp.per_tensor_symmetric)
    assert MinMaxObserver.with_args(eps=1.0) == MinMaxObserver.with_args(eps=1.0)
    assert MinMaxObserver.with_args(eps=1.0) != MinMaxObserver.with_args(eps=2.0)
    assert "MinMaxObserver" in repr(make)
    assert (default_observer().quant_min, default_observer().quant_max) == (0, 127)


def test_custom_observer_needs_both_methods():
    assert Observer is ObserverBase
    with pytest.raises(TypeError):
        ObserverBase(zp.quint8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MinMaxObserver(qscheme=zp.per_channel_affine),
        lambda: HistogramObserver(qscheme=zp.per_channel_affine),
        lambda: PerChannelMinMaxObserver(qscheme=zp.per_tensor_affine),
        lambda: MinMaxObserver(qscheme=zp.per_tensor_symmetric, reduce_range=True),
        lambda: HistogramObserver(is_dynamic=True),
        lambda: PerChannelMinMaxObserver(is_dynamic=True),
        lambda: FixedQParamsObserver(1.0, 0, is_dynamic=True),
    ],
)
def test_unsupported_combinations(make):
    with pytest.raises(NotImplementedError):
        make()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dtype": torch.float32}, "dtype"),
        ({"qscheme": "per_row"}, "qscheme"),
        ({"quant_min": 0}, "both"),
        ({"quant_min": 5, "quant_max": 5}, "less than"),
        ({"quant_min": 1, "quant_max": 5}, "include 0"),
        ({"quant_min": 0, "quant_max": 256}, "does not fit"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(QuantizationError, match=message):
        MinMaxObserver(**kwargs)


def test_wrong_axis_and_changed_channels():
    observer = PerChannelMinMaxObserver(ch_axis=2)
    with pytest.raises(QuantizationError, match="ch_axis 2"):
        observer(torch.randn(3, 4))
    observer = PerChannelMinMaxObserver()
    observer(torch.randn(3, 4))
    with pytest.raises(QuantizationError, match="3 channels before and 5 now"):
        observer(torch.randn(5, 4))


def test_integers_cannot_be_observed():
    with pytest.raises(QuantizationError, match="float tensor"):
        MinMaxObserver()(torch.zeros(3, dtype=torch.int64))


def test_recording():
    observer = default_debug_observer()
    x = torch.randn(3)
    observer(x), observer(x + 1)
    values = observer.get_tensor_value()
    assert torch.equal(values[0], x)
    assert torch.equal(values[1], x + 1)
    for silent in (observer, PlaceholderObserver(), NoopObserver()):
        with pytest.raises(QuantizationError, match="should not be called"):
            silent.calculate_qparams()


def test_fixed():
    scale, zero_point = FixedQParamsObserver(1 / 256, 3).calculate_qparams()
    assert (float(scale), int(zero_point)) == (1 / 256, 3)


def test_observer_state_of_a_model():
    def model():
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        net.qconfig = QConfig(MinMaxObserver, MinMaxObserver.with_args(dtype=zp.qint8))
        return prepare(net)

    a, b = model(), model()
    a(torch.randn(5, 3))
    state = get_observer_state_dict(a)
    assert set(state) == {f"{i}.activation_post_process.{k}" for i in (0, 1) for k in ("eps", "min_val", "max_val")}
    load_observer_state_dict(b, state)
    assert torch.equal(b[1].activation_post_process.max_val, a[1].activation_post_process.max_val)
    with pytest.raises(QuantizationError, match="missing keys"):
        load_observer_state_dict(b, {})


def test_prepared_model_can_be_saved():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4))
    net.qconfig = QConfig(HistogramObserver, MinMaxObserver.with_args(dtype=zp.qint8))
    prepared = prepare(net)
    prepared(torch.randn(5, 3))
    buffer = io.BytesIO()
    torch.save(prepared, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(again[0].activation_post_process.histogram, prepared[0].activation_post_process.histogram)


_SAMPLES = {
    "normal": lambda g: torch.randn(20_000, generator=g),
    "relu": lambda g: torch.randn(20_000, generator=g).relu(),
    "negative": lambda g: -torch.rand(20_000, generator=g) - 1,
    "heavy": lambda g: torch.randn(20_000, generator=g) ** 5,
    "outlier": lambda g: torch.cat([torch.randn(20_000, generator=g), torch.tensor([-30.0, 90.0])]),
}


@pytest.mark.parametrize("kind", _SAMPLES)
@pytest.mark.parametrize("weight", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_other_range_has_less_of_the_weighted_error(kind, weight, symmetric):
    x = _SAMPLES[kind](torch.Generator().manual_seed(3)).double()
    kwargs = {"dtype": zp.qint8, "qscheme": zp.per_tensor_symmetric} if symmetric else {}
    observer = ClipWeightedHistogramObserver(clip_weight=weight, **kwargs)
    observer(x.float())

    rounded = (x != 0).sum().item()  # zeros are exact

    def error(low, high):
        return rounded * (high - low) ** 2 / 255**2 / 12 + weight * ((x - x.clamp(low, high)) ** 2).sum().item()

    found_low, found_high = (float(v) for v in observer._search_range())
    assert found_low <= 0 <= found_high
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    fractions = [i / 60 for i in range(61)]
    others = [error(low * f, high * f) for f in fractions[1:]]
    if not symmetric:
        others += [error(low * f, high * g) for f in fractions for g in fractions if low * f != high * g]
    assert error(found_low, found_high) <= 1.001 * min(others)
    scale, zero_point = observer.calculate_qparams()
    assert float(scale) == pytest.approx((found_high - found_low) / 255, rel=1e-3)
    assert -128 <= int(zero_point) <= 255


def test_clipping_that_counts_infinitely_is_minima_and_maxima():
    x = torch.randn(1000)
    without, plain = ClipWeightedHistogramObserver(clip_weight=math.inf), MinMaxObserver()
    without(x), plain(x)
    assert torch.allclose(without.calculate_qparams()[0], plain.calculate_qparams()[0])


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_weighted_histogram_of_one_value(value):
    observer, plain = ClipWeightedHistogramObserver(), MinMaxObserver()
    observer(torch.full((7,), value)), plain(torch.full((7,), value))
    assert torch.allclose(observer.calculate_qparams()[0], plain.calculate_qparams()[0])
    assert torch.equal(observer.calculate_qparams()[1], plain.calculate_qparams()[1])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_a_clip_weight_is_positive(weight):
    with pytest.raises(QuantizationError, match="clip_weight must be positive"):
        ClipWeightedHistogramObserver(clip_weight=weight)


def test_the_default_of_the_one_call_has_weighted_clipping():
    observer = zp.quantization.get_default_qconfig("zeropoint").activation()
    assert type(observer) is ClipWeightedHistogramObserver
    assert (observer.quant_min, observer.quant_max) == (0, 255)
    assert type(zp.quantization.get_default_qconfig().activation()) is HistogramObserver
    x, linear = torch.randn(64, 4) ** 5, torch.nn.Linear(4, 2)
    for eager in (False, True):
        y = zp.quantize(linear, [x], eager=eager)(x)
        same, other = (
            zp.quantize(linear, [x], eager=eager, qconfig=zp.quantization.get_default_qconfig(backend))(x)
            for backend in ("zeropoint", "x86")
        )
        assert torch.equal(y, same)
        assert not torch.equal(y, other)
