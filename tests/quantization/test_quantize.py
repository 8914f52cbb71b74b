from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import zeropoint as zp
from zeropoint import QuantizationError, UncalibratedError
from zeropoint.analysis import coverage, sqnr
from zeropoint.nn import quantized as nnq
from zeropoint.nn.intrinsic import quantized as nniq
from zeropoint.quantization import (
    DeQuantStub,
    HistogramObserver,
    MinMaxObserver,
    QConfig,
    QuantStub,
    QuantWrapper,
    add_quant_dequant,
    convert,
    default_eval_fn,
    default_per_channel_qconfig,
    default_qconfig,
    default_symmetric_qnnpack_qconfig,
    fuse_modules,
    get_default_qconfig,
    get_observer_dict,
    prepare,
    propagate_qconfig,
    propagate_qconfig_,
    quantize,
    swap_module,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv1, self.bn, self.relu = nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()
        self.conv2, self.relu6 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6()
        self.skip = nnq.FloatFunctional()
        self.pool = nn.MaxPool2d(2)
        self.hardswish = nn.Hardswish()
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.relu(self.bn(self.conv1(self.quant(x))))
        x = self.skip.add(x, self.relu6(self.conv2(x)))
        x = self.hardswish(self.pool(x))
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        return self.dequant(self.fc(self.drop(x)))


FUSE = [["conv1", "bn", "relu"], ["conv2", "relu6"]]


def images(n=8):
    return torch.randn(n, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def quantized(qconfig=None, fuse=True):
    torch.manual_seed(0)
    model = Net().eval()
    if fuse:
        fuse_modules(model, FUSE, inplace=True)
    model.qconfig = qconfig or get_default_qconfig()
    prepared = prepare(model)
    prepared(images())
    return model, convert(prepared)


@pytest.mark.parametrize(
    "qconfig",
    [
        get_default_qconfig(),
        get_default_qconfig("fbgemm"),
        get_default_qconfig("qnnpack"),
        default_qconfig,
        default_per_channel_qconfig,
        default_symmetric_qnnpack_qconfig,
    ],
)
@pytest.mark.parametrize("fuse", [True, False])
def test_accuracy(isa, qconfig, fuse):
    model, q = quantized(qconfig, fuse)
    assert sqnr(model(images()), q(images())) > 25
    assert zp.backend.fallbacks() == {}


def test_types_and_printed_forms():
    _, q = quantized()
    assert type(q.quant) is nnq.Quantize
    assert type(q.conv1) is nniq.ConvReLU2d
    assert type(q.conv2) is nniq.ConvReLU2d
    assert q.conv2.relu_max == 6.0
    assert type(q.skip) is nnq.QFunctional
    assert type(q.fc) is nnq.Linear
    assert type(q.hardswish) is nnq.Hardswish
    text = repr(q)
    assert "QuantizedConvReLU2d(3, 16, kernel_size=(3, 3), stride=(2, 2), scale=" in text
    assert "QuantizedLinear(in_features=16, out_features=10, scale=" in text
    assert not any(
        hasattr(m, "qconfig") or "activation_post_process" in m._modules
        for m in q.modules()
        if not isinstance(m, nnq.QFunctional)
    )
    assert {layer.kind for layer in coverage(q)} == {"int8"}


def test_float_layers_are_listed():
    model = nn.Sequential(nn.Linear(3, 3), nn.Softmax(1))
    layers = {layer.name: layer for layer in coverage(model)}
    assert layers["0"].kind == "float"
    assert "no qconfig" in layers["0"].reason


def test_same_bits_everywhere():
    _, q = quantized()
    expected = q(images())
    for name in zp.backend.available_isas():
        with zp.backend.use_isa(name):
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                assert torch.equal(q(images()), expected)
                assert torch.equal(torch.cat([q(x) for x in images().split(3)]), expected)


def saved(q):
    def torch_file(state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)

    return {"torch.save": torch_file, "safetensors": lambda state: load(save(dict(state))), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("how", ["torch.save", "safetensors", "deepcopy"])
@pytest.mark.parametrize("qconfig", [get_default_qconfig(), default_qconfig, default_symmetric_qnnpack_qconfig])
def test_state_dict_round_trip(how, qconfig):
    _, q = quantized(qconfig)
    state = saved(q)[how](q.state_dict())
    torch.manual_seed(5)
    fresh = Net().eval()
    fuse_modules(fresh, FUSE, inplace=True)
    fresh.qconfig = qconfig
    with pytest.warns(UserWarning, match=r"never calibrated.*quant, conv1, conv2, skip, hardswish, fc"):
        fresh = convert(prepare(fresh))
    with pytest.raises(UncalibratedError, match="quant: this Quantize was converted without calibration"):
        fresh(images())
    fresh.load_state_dict(state)
    assert torch.equal(fresh(images()), q(images()))


def test_each_uncalibrated_module_names_itself():
    _, q = quantized()
    model = Net().eval()
    model.qconfig = get_default_qconfig()
    with pytest.warns(UserWarning, match="never calibrated"):
        fresh = convert(prepare(model))
    x = q.quant(images())
    for name in ("conv1", "fc", "hardswish"):
        with pytest.raises(UncalibratedError, match=f"^{name}: "):
            getattr(fresh, name)(x)
    with pytest.raises(UncalibratedError, match=r"^skip: "):
        fresh.skip.add(x, x)
    # An uncalibrated state does not turn into scale 1 by way of a file.
    fresh.load_state_dict(copy.deepcopy(fresh.state_dict()))
    with pytest.raises(UncalibratedError):
        fresh.fc(x)


def test_whole_model_copies_and_pickles():
    _, q = quantized()
    expected = q(images())
    assert torch.equal(copy.deepcopy(q)(images()), expected)
    buffer = io.BytesIO()
    torch.save(q, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(images()), expected)


def test_loading_the_wrong_state_says_what_is_wrong():
    model, q = quantized()
    with pytest.raises(RuntimeError, match="Missing key"):
        q.load_state_dict({})
    state = copy.deepcopy(q.state_dict())
    state["fc.weight"] = state["fc.weight"][:, :3]
    with pytest.raises(RuntimeError, match=r"fc.weight: .*must have shape \(10, 16\)"):
        q.load_state_dict(state)
    with pytest.raises(RuntimeError, match="float checkpoint"):
        q.load_state_dict(model.state_dict())
    state = copy.deepcopy(q.state_dict())
    state["conv1.scale"] = torch.tensor(-1.0)
    with pytest.raises(RuntimeError, match=r"conv1.scale: .*finite and > 0"):
        q.load_state_dict(state)
    state = copy.deepcopy(q.state_dict())
    state["extra"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        q.load_state_dict(state)


def test_prepare_without_qconfig_warns():
    with pytest.warns(UserWarning, match="None of the submodule got qconfig"):
        prepare(Net())


def test_inplace():
    model = Net().eval()
    model.qconfig = get_default_qconfig()
    assert prepare(model, inplace=True) is model
    model(images())
    assert convert(model, inplace=True) is model
    assert type(model.fc) is nnq.Linear


def test_propagation_by_name_and_type():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Conv2d(3, 3, 1)))
    special = QConfig(HistogramObserver, MinMaxObserver)
    propagate_qconfig_(model, {"": default_qconfig, "1.0": special, nn.Conv2d: None})
    assert model[0].qconfig is default_qconfig
    assert model[1][0].qconfig is special
    assert model[1][1].qconfig is None
    assert propagate_qconfig is propagate_qconfig_


def test_a_layer_with_qconfig_none_stays_float():
    model = nn.Sequential(QuantStub(), nn.Linear(4, 4), DeQuantStub(), nn.Linear(4, 4)).eval()
    model.qconfig = get_default_qconfig()
    model[3].qconfig = None
    prepared = prepare(model)
    prepared(torch.randn(5, 4))
    q = convert(prepared)
    assert type(q[3]) is nn.Linear
    assert q(torch.randn(5, 4)).dtype == torch.float32
    assert [layer.name for layer in coverage(q) if layer.kind == "float"] == ["3"]


def test_quantize_in_one_call():
    model = QuantWrapper(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))).eval()
    model.qconfig = default_qconfig
    data = [(torch.randn(6, 4), None) for _ in range(3)]
    q = quantize(model, default_eval_fn, [data])
    assert sqnr(model(data[0][0]), q(data[0][0])) > 20
    assert torch.equal(quantize(model, default_eval_fn, data)(data[0][0]), q(data[0][0]))  # torch 1.3's way


def test_add_quant_dequant():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].qconfig = default_qconfig
    add_quant_dequant(model)
    assert type(model[0]) is QuantWrapper
    assert type(model[1]) is nn.ReLU


def test_observer_dict():
    model = Net().eval()
    model.qconfig = get_default_qconfig()
    found = {}
    get_observer_dict(prepare(model), found)
    assert set(found) == {
        f"{n}.activation_post_process" for n in ("quant", "conv1", "bn", "conv2", "relu6", "skip", "hardswish", "fc")
    }


def test_hooks_survive():
    model, seen = nn.Sequential(QuantStub(), nn.Linear(4, 4), DeQuantStub()).eval(), []
    model[1].register_forward_pre_hook(lambda m, i: seen.append("pre"))
    model[1].register_forward_hook(lambda m, i, o: seen.append("post"))
    model.qconfig = get_default_qconfig()
    prepared = prepare(model)
    prepared(torch.randn(2, 4))
    q = convert(prepared)
    seen.clear()
    q(torch.randn(2, 4))
    assert seen == ["pre", "post"]
    assert len(q[1]._forward_hooks) == 1


def test_swap_module_leaves_what_it_does_not_know():
    module = nn.Linear(2, 2)
    assert swap_module(module, {}) is module


def test_custom_mapping():
    class Mine(nnq.Linear):
        pass

    model = QuantWrapper(nn.Linear(4, 4)).eval()
    model.qconfig = get_default_qconfig()
    prepared = prepare(model)
    prepared(torch.randn(2, 4))
    assert type(convert(prepared, mapping={nn.Linear: Mine}).module) is Mine


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_in_other_float_types(dtype):
    model = Net().eval().to(dtype)
    model.qconfig = get_default_qconfig()
    prepared = prepare(model)
    x = images().to(dtype)
    prepared(x)
    assert sqnr(model(x).float(), convert(prepared)(x)) > 15


def test_calibration_in_pieces_and_processes():
    model = Net().eval()
    model.qconfig = QConfig(MinMaxObserver, default_per_channel_qconfig.weight)
    whole, first, second = prepare(model), prepare(model), prepare(model)
    whole(images())
    first(images()[:4])
    second(images()[4:])
    found = {}, {}
    get_observer_dict(first, found[0])
    get_observer_dict(second, found[1])
    for name, observer in found[0].items():
        observer.merge(found[1][name])
    assert torch.equal(convert(first)(images()), convert(whole)(images()))


def test_no_warning_in_the_ordinary_case():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized()


def test_float_input_in_the_middle_is_an_error_that_says_what_to_do():
    _, q = quantized()
    with pytest.raises(QuantizationError, match=r"fc: the input must be quint8 or qint8.*QuantStub"):
        q.fc(torch.randn(2, 16))
    with pytest.raises(QuantizationError, match="quant: the input must be a float tensor"):
        q(torch.zeros(1, 3, 20, 20, dtype=torch.int64))
