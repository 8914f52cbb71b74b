"""What went wrong without a word in torch.ao is an error, a warning, or right. One test for each, by name."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint.errors import QuantizationError, UncalibratedError
from zeropoint.nn import quantized as nnq
from zeropoint.quantization import QuantWrapper, convert, get_default_qconfig, prepare, quantize_dynamic


def prepared(*layers, shape=(8, 16)):
    torch.manual_seed(0)
    model = QuantWrapper(nn.Sequential(*layers)).eval()
    model.qconfig = get_default_qconfig()
    ready = prepare(model)
    x = torch.randn(shape)
    ready(x)
    return model, ready, x


def test_convert_without_calibration_warns_and_does_not_run():
    model = QuantWrapper(nn.Linear(4, 2)).eval()
    model.qconfig = get_default_qconfig()
    with pytest.warns(UserWarning, match="never calibrated"):
        quantized = convert(prepare(model))
    with pytest.raises(UncalibratedError, match="converted without calibration"):
        quantized(torch.randn(1, 4))


def test_prepare_without_qconfig_warns():
    with pytest.warns(UserWarning, match="None of the submodule got qconfig"):
        prepare(nn.Sequential(nn.Linear(4, 2)).eval())


def test_types_without_a_dynamic_form_are_an_error():
    with pytest.raises(QuantizationError, match="MaxPool2d has no dynamic form"):
        quantize_dynamic(nn.Sequential(nn.MaxPool2d(2)), {nn.MaxPool2d})


def test_requested_types_are_quantized_or_named():
    quantized = quantize_dynamic(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.RNN(4, 4), nn.Embedding(5, 4)), {nn.Conv2d, nn.RNN, nn.Embedding}
    )
    assert zp.report(quantized).in_float == []


def test_nan_is_counted_when_asked():
    _, ready, x = prepared(nn.Linear(16, 4))
    quantized = convert(ready)
    x[0, 0] = float("nan")
    zp.backend.reset_bad_values()
    with zp.backend.check_values():
        quantized(x)
    assert zp.backend.bad_values()["nan"] == 1


@pytest.mark.parametrize("make", [lambda: nn.ELU(0.7), nn.Sigmoid, lambda: nn.Softmax(-1), lambda: nn.PReLU(16)])
def test_state_dict_keeps_the_scale_of_activations(make):
    model, ready, x = prepared(make())
    quantized = convert(ready)
    with pytest.warns(UserWarning, match="never calibrated"):
        fresh = convert(prepare(model))
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(fresh(x), quantized(x))


def test_prepared_models_are_saved_and_go_on():
    _, ready, x = prepared(nn.Linear(16, 4), nn.SiLU())
    buffer = io.BytesIO()
    torch.save(ready, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(convert(again)(x), convert(ready)(x))


def test_recurrent_state_loads_with_weights_only():
    quantized = quantize_dynamic(nn.Sequential(nn.LSTM(4, 3)))
    buffer = io.BytesIO()
    torch.save(quantized.state_dict(), buffer)
    buffer.seek(0)
    assert quantized.load_state_dict(torch.load(buffer, weights_only=True))


def test_converted_models_export():
    _, ready, x = prepared(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 4))
    quantized = convert(ready)
    assert torch.equal(torch.export.export(quantized, (x,)).module()(x), quantized(x))


def test_infinite_calibration_values_are_left_out_with_a_warning():
    _, ready, x = prepared(nn.Linear(16, 4))
    before = float(convert(ready).quant.scale)
    x[0, 0] = float("inf")
    with pytest.warns(UserWarning, match="NaN or inf"):
        ready(x)
    assert float(convert(ready).quant.scale) == pytest.approx(before, rel=0.2)


def test_embeddings_need_no_qconfig_of_their_own():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4)).eval()
    model.qconfig = get_default_qconfig()
    ready = prepare(model)
    ids = torch.randint(0, 10, (3, 5))
    ready(ids)
    quantized = convert(ready)
    assert isinstance(quantized[0], nnq.Embedding)
    assert float((quantized(ids).dequantize() - model(ids)).detach().abs().max()) < 0.05
