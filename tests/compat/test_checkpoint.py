"""Files that torch's own quantization wrote: read without its dtypes, with the results it gave."""

from __future__ import annotations

import contextlib
import os
import random
import warnings
import zipfile

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint import compat
from zeropoint.compat.unpickle import read
from zeropoint.errors import QuantizationError
from zeropoint.quantization import QuantWrapper, convert, get_default_qconfig, prepare, quantize_dynamic

taq = pytest.importorskip("torch.ao.quantization")


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def cnn():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A static CNN of torch.ao: its files, an input and its output."""
    folder = tmp_path_factory.mktemp("old")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = taq.QuantWrapper(cnn()).eval()
        model.qconfig = taq.get_default_qconfig("x86")
        prepared = taq.prepare(model)
        x = torch.randn(4, 3, 8, 8)
        prepared(x)
        quantized = taq.convert(prepared)
        torch.save(quantized.state_dict(), folder / "state.pt")
        torch.save(quantized, folder / "model.pt")
        return folder, x, quantized(x)


def test_static_state_dict(old):
    folder, x, expected = old
    model = QuantWrapper(cnn()).eval()
    model.qconfig = get_default_qconfig()
    mine = convert(prepare(model))
    state = compat.load_state_dict(folder / "state.pt")
    assert all(type(v) in (torch.Tensor, nn.Parameter) for v in state.values())
    mine.load_state_dict(state)
    assert torch.equal(mine(x), expected)


def test_static_whole_model(old):
    folder, x, expected = old
    model = compat.load_model(folder / "model.pt")
    assert torch.equal(model(x), expected)
    assert isinstance(model.module[0], zp.nn.quantized.Conv2d)


DYNAMIC = {
    "Linear": (lambda: nn.Linear(6, 5), torch.randn(3, 6)),
    "LSTM": (lambda: nn.LSTM(6, 5, 2, bidirectional=True), torch.randn(4, 3, 6)),
    "GRU": (lambda: nn.GRU(6, 5, batch_first=True), torch.randn(4, 3, 6)),
    "LSTMCell": (lambda: nn.LSTMCell(6, 5), torch.randn(3, 6)),
    "GRUCell": (lambda: nn.GRUCell(6, 5), torch.randn(3, 6)),
    "RNNCell": (lambda: nn.RNNCell(6, 5), torch.randn(3, 6)),
}


def first(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic(tmp_path, name):
    make, x = DYNAMIC[name]
    torch.manual_seed(0)
    net = nn.Sequential(make())
    theirs = taq.quantize_dynamic(net, {type(net[0])}, dtype=torch.qint8)
    torch.save(theirs.state_dict(), tmp_path / "state.pt")
    torch.save(theirs, tmp_path / "model.pt")
    mine = quantize_dynamic(nn.Sequential(make()))
    mine.load_state_dict(compat.load_state_dict(tmp_path / "state.pt"))
    whole = compat.load_model(tmp_path / "model.pt")
    assert torch.equal(first(mine(x)), first(whole(x)))
    # Activations have 8 bits here and 7 there: the same weights, within the coarser grid's step.
    assert float((first(mine(x)) - first(theirs(x))).detach().abs().max()) < 0.04


@pytest.mark.parametrize("bits", [8, 4])
def test_embedding(tmp_path, bits):
    net = nn.Sequential(nn.Embedding(20, 8))
    net.qconfig = taq.float_qparams_weight_only_qconfig if bits == 8 else taq.float_qparams_weight_only_qconfig_4bit
    theirs = taq.convert(taq.prepare(net))
    torch.save(theirs.state_dict(), tmp_path / "state.pt")
    mine = quantize_dynamic(nn.Sequential(nn.Embedding(20, 8)), dtype=zp.quint8 if bits == 8 else zp.quint4x2)
    mine.load_state_dict(compat.load_state_dict(tmp_path / "state.pt"))
    # torch.ao's own lookup of a 4-bit Embedding fails in 2.13: the weight it holds is what counts.
    assert torch.allclose(mine(torch.arange(20)), theirs[0].weight().dequantize(), atol=1e-5)


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x)


def test_classes_of_the_author_have_to_be_named(tmp_path):
    torch.save(taq.quantize_dynamic(Mine()), tmp_path / "model.pt")
    name = f"{Mine.__module__}.Mine"
    with pytest.raises(QuantizationError, match="classes="):
        compat.load_model(tmp_path / "model.pt")
    model = compat.load_model(tmp_path / "model.pt", classes={name: Mine})
    assert isinstance(model.fc, zp.nn.quantized.dynamic.Linear)
    assert model(torch.randn(1, 3)).shape == (1, 2)


class Evil:
    def __reduce__(self):
        return os.system, ("echo harm > harm.txt",)


def test_no_code_of_the_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(QuantizationError, match="names"):
        compat.load_state_dict(tmp_path / "evil.pt")
    assert not (tmp_path / "harm.txt").exists()


def test_wrong_files(tmp_path, old):
    folder, _, _ = old
    with pytest.raises(QuantizationError, match="no such file"):
        compat.load_state_dict(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(QuantizationError, match="cannot be read"):
        compat.load_state_dict(tmp_path / "text.pt")
    with pytest.raises(QuantizationError, match=r"use compat\.load_model"):
        compat.load_state_dict(folder / "model.pt")
    with pytest.raises(QuantizationError, match=r"use compat\.load_state_dict"):
        compat.load_model(folder / "state.pt")


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_give_errors_or_values(tmp_path, old, seed):
    """Flipped bytes inside the pickle and the archive: an error of ours or a value, never anything else."""
    folder, _, _ = old
    generator = random.Random(seed)
    with zipfile.ZipFile(folder / "state.pt") as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    for _ in range(150):
        damaged = {n: bytearray(data) for n, data in parts.items()}
        target = damaged[generator.choice([n for n in damaged if damaged[n]])]
        for _ in range(generator.choice((1, 1, 3))):
            target[generator.randrange(len(target))] = generator.randrange(256)
        if generator.random() < 0.2:
            del target[generator.randrange(len(target)) :]
        with zipfile.ZipFile(tmp_path / "damaged.pt", "w") as archive:
            for name, data in damaged.items():
                archive.writestr(name, bytes(data))
        with contextlib.suppress(QuantizationError):
            read(tmp_path / "damaged.pt")
