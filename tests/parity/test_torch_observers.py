"""Observers give torch.ao's qparams exactly, while torch still has them."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch

from zeropoint.quantization import observer as ours

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = importlib.import_module("torch.ao.quantization.observer")
except ImportError:
    theirs = None

pytestmark = pytest.mark.skipif(theirs is None, reason="this torch no longer has torch.ao.quantization")


def batches():
    generator = torch.Generator().manual_seed(3)
    normal = [torch.randn(4, 6, 5, generator=generator) * s for s in (1.0, 0.3, 2.0, 1.5)]
    relu = [b.clamp(min=0) for b in normal]
    shifted = [b + 7 for b in normal]
    heavy = [b**3 for b in normal]
    growing = [b * (i + 1) for i, b in enumerate(normal)]
    zero = [torch.zeros(3, 6, 2)]
    constant = [torch.full((3, 6, 2), 1.7)] * 2 + normal[:1]
    return {
        "normal": normal,
        "relu": relu,
        "shifted": shifted,
        "negative": [-b for b in relu],
        "heavy": heavy,
        "growing": growing,
        "zero": zero,
        "constant": constant,
    }


SCHEMES = {"affine": "per_tensor_affine", "symmetric": "per_tensor_symmetric"}
CASES = [
    (name, kwargs)
    for name in ("MinMaxObserver", "MovingAverageMinMaxObserver", "HistogramObserver")
    for kwargs in (
        {}, {"dtype": "qint8"}, {"qscheme": "per_tensor_symmetric"}, {"dtype": "qint8", "qscheme": "per_tensor_symmetric"},
        {"reduce_range": True}, {"quant_min": 0, "quant_max": 127}, {"dtype": "qint8", "quant_min": -127, "quant_max": 127, "eps": 2**-12},
    )
    if not (kwargs.get("reduce_range") and "qscheme" in kwargs)
]  # fmt: skip
PER_CHANNEL = [
    (name, {"ch_axis": axis, **kwargs})
    for name in ("PerChannelMinMaxObserver", "MovingAveragePerChannelMinMaxObserver")
    for axis in (0, 1, 2)
    for kwargs in (
        {}, {"dtype": "qint8", "qscheme": "per_channel_symmetric"}, {"qscheme": "per_channel_symmetric"}, {"dtype": "qint8"},
        {"qscheme": "per_channel_affine_float_qparams"},
    )
]  # fmt: skip


def build(module, name, kwargs):
    tokens = {k: getattr(torch, v) if module is theirs and isinstance(v, str) else v for k, v in kwargs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(module, name)(**tokens)


@pytest.mark.parametrize("data", batches())
@pytest.mark.parametrize(("name", "kwargs"), CASES + PER_CHANNEL, ids=str)
def test_same_qparams(name, kwargs, data):
    mine, other = build(ours, name, kwargs), build(theirs, name, kwargs)
    values = batches()[data]
    if "ch_axis" in kwargs:
        values = [v for v in values if v.shape == values[0].shape]
    for batch in values:
        mine(batch)
        other(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = other.calculate_qparams()
    actual = mine.calculate_qparams()
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1].double(), expected[1].double())
    assert torch.equal(mine.min_val, other.min_val)
    assert torch.equal(mine.max_val, other.max_val)
    if name == "HistogramObserver":
        assert torch.equal(mine.histogram, other.histogram)


@pytest.mark.parametrize("name", ["MinMaxObserver", "HistogramObserver", "PerChannelMinMaxObserver"])
def test_state_dict_keys(name):
    mine, other = build(ours, name, {}), build(theirs, name, {})
    assert set(mine.state_dict()) == set(other.state_dict())
