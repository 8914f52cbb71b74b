"""Encoder layers of torch, whose fused operator reads weights past the modules."""

import copy

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint.analysis import sqnr
from zeropoint.quantization import quantize_dynamic, quantize_weight_only


def encoder(activation):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation=activation)
    return nn.TransformerEncoder(layer, 2).eval()


FORMS = {
    "dynamic": (quantize_dynamic, 35),
    "weights": (quantize_weight_only, 20),
    "static": (lambda m: zp.quantize(m, [torch.randn(2, 12, 64) for _ in range(4)], eager=True), 20),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("grad", [False, True])
def test_swapped_layers_are_called(form, activation, grad):
    model, x = encoder(activation), torch.randn(2, 12, 64)
    quantize, least = FORMS[form]
    quantized = copy.deepcopy(quantize(model))
    with torch.set_grad_enabled(grad):
        expected, actual = model(x), quantized(x)
        assert least < sqnr(expected.detach(), actual.detach()) < 80  # more would be the float path


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # of the float model
@pytest.mark.parametrize("form", ["dynamic", "weights"])
def test_padding_masks(form):
    model, x = encoder("gelu"), torch.randn(2, 12, 64)
    padding = torch.zeros(2, 12, dtype=torch.bool)
    padding[1, 9:] = True
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
        actual = FORMS[form][0](model)(x, src_key_padding_mask=padding)
    assert FORMS[form][1] < sqnr(expected[~padding], actual[~padding]) < 80


def test_float_layers_keep_it():
    model = encoder("relu")
    assert quantize_dynamic(model, {"layers.0.linear1"}).layers[0].activation_relu_or_gelu == 0
    kept = quantize_dynamic(model, {nn.LSTM})
    assert [layer.activation_relu_or_gelu for layer in kept.layers] == [1, 1]
    assert kept.use_nested_tensor == model.use_nested_tensor


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_only_program(bits):
    model, x = encoder("gelu"), torch.randn(2, 12, 64)
    program = zp.quantize(model, weight_bits=bits, group_size=32, example=x)
    assert program.engine == "native"
    weights = {row[0] for row in program.layer_coverage() if row[2] == "int8"}
    assert weights == {f"layers.{i}.{n}" for i in (0, 1) for n in ("self_attn", "linear1", "linear2")}
    assert sqnr(model(x), program(x)) > {4: 18, 8: 38}[bits]
