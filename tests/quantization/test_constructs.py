"""Every construct goes stub -> prepare -> calibrate -> convert -> run -> state_dict -> run, and says what ran in float."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

import zeropoint as zp
from zeropoint.analysis import sqnr
from zeropoint.quantization import DeQuantStub, QuantStub, convert, get_default_qconfig, prepare

_spec = importlib.util.spec_from_file_location("constructs", Path(__file__).with_name("constructs.py"))
constructs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(constructs)
NAMES = [*constructs.MODULES, *constructs.FUNCTIONS]

# What has no integer form: computed in float, then quantized, counted.
IN_FLOAT = {
    "LocalResponseNorm": "local_response_norm", "LogSoftmax": "log_softmax", "GLU": "glu", "LPPool2d": "lp_pool2d",
    "Fold/Unfold": "unfold", "sum": "sum", "einsum": "einsum",
    "F.scaled_dot_product_attention": "scaled_dot_product_attention", "F.normalize": "normalize", "cumsum": "cumsum",
    ".to(float16)": "to",
}  # fmt: skip
# Lower than 24 dB also in torch.ao: averages of noise near 0 keep their input's scale, a comparison flips at 0.
COARSE = {"AdaptiveAvgPool2d": 17, "mean(dim)": 17, "x>0": 17}


def stubs():
    return QuantStub(), DeQuantStub()


def converted(name, seed=0):
    torch.manual_seed(seed)
    shape, construct = constructs.construct(name)
    model = constructs.Net(stubs, construct).eval()
    model.qconfig = get_default_qconfig()
    batches = [torch.randn(shape) for _ in range(4)]
    prepared = prepare(model)
    for batch in batches:
        prepared(batch)
    return model, prepared, convert(prepared), batches


@pytest.mark.parametrize("name", NAMES)
def test_runs_and_comes_back(name):
    model, prepared, quantized, batches = converted(name)
    zp.backend.reset_fallbacks()
    result = quantized(batches[0])
    assert zp.backend.fallbacks() == ({IN_FLOAT[name]: 1} if name in IN_FLOAT else {})
    assert sqnr(model(batches[0]), result) > COARSE.get(name, 24)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="convert: these modules were never calibrated")
        fresh = convert(prepare(model))
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(fresh(batches[0]), result)
    again = prepare(model)
    again.load_state_dict(prepared.state_dict())
    assert torch.equal(convert(again)(batches[0]), result)


def test_there_are_123():
    assert len(NAMES) == 123


# Averages of two are often ties, which torch.ao rounds to even integers, zeropoint to even differences from the zero
# point: neither is nearer, but one draw of data may favour either by 0.5 dB, so the mean of many is compared.
DRAWS = {"AvgPool1d": 30}


@pytest.mark.parametrize("name", NAMES)
def test_no_worse_than_torch_ao(name):
    taq = pytest.importorskip("torch.ao.quantization")
    differences = []
    for seed in range(DRAWS.get(name, 1)):
        model, _, quantized, batches = converted(name, seed)
        theirs = constructs.Net(lambda: (taq.QuantStub(), taq.DeQuantStub()), copy.deepcopy(model.construct)).eval()
        for module in theirs.modules():
            module.__dict__.pop("qconfig", None)
        theirs.qconfig = taq.QConfig(
            taq.HistogramObserver.with_args(reduce_range=False), taq.default_per_channel_weight_observer
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                prepared = taq.prepare(theirs)
                for batch in batches:
                    prepared(batch)
                reference = taq.convert(prepared)(batches[0])
            except Exception:
                return  # torch.ao cannot run it at all
        expected = model(batches[0])
        differences.append(float(sqnr(expected, quantized(batches[0])) - sqnr(expected, reference)))
    assert sum(differences) / len(differences) >= -0.05
