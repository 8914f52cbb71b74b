from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import zeropoint as zp
from zeropoint import QuantizationError

_PROGRAM = """
import hashlib, torch, zeropoint as zp
from zeropoint.nn import quantized as nnq
generator = torch.Generator().manual_seed(0)
w = zp.quantize_per_tensor(torch.randn(40, 20, 3, 3, generator=generator), 0.02, 0, zp.qint8)
conv = nnq.Conv2d(20, 40, 3, padding=1)
conv.set_weight_bias(w, torch.randn(40, generator=generator))
conv.scale, conv.zero_point = 0.3, 120
y = conv(zp.quantize_per_tensor(torch.randn(2, 20, 13, 11, generator=generator), 0.02, 128, zp.quint8))
print(zp.backend.isa(), hashlib.sha256(y.int_repr().contiguous().numpy().tobytes()).hexdigest())
"""


def run(isa):
    environment = (
        {**os.environ, "ZEROPOINT_ISA": isa} if isa else {k: v for k, v in os.environ.items() if k != "ZEROPOINT_ISA"}
    )
    return subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True)


def test_the_environment_caps_the_instruction_set_and_bits_are_the_same():
    results = {}
    for isa in [*zp.backend.available_isas(), ""]:
        process = run(isa)
        assert process.returncode == 0, process.stderr
        used, digest = process.stdout.split()
        if isa:
            assert used == isa
        results[isa] = digest
    assert len(set(results.values())) == 1


def test_an_unknown_instruction_set_is_an_error():
    process = run("avx1024")
    assert process.returncode != 0
    assert "ZEROPOINT_ISA='avx1024' is not an instruction set; use one of scalar" in process.stderr


def test_use_isa():
    before = zp.backend.isa()
    with zp.backend.use_isa("scalar"):
        assert zp.backend.isa() == "scalar"
    assert zp.backend.isa() == before
    with pytest.raises(QuantizationError, match="not available"), zp.backend.use_isa("sse9"):
        pass


def test_threads_are_torchs():
    torch.set_num_threads(2)
    assert zp.backend.threads() == 2


def test_modules_pack_again_for_another_instruction_set():
    linear = zp.nn.quantized.Linear(8, 4)
    linear.scale = 0.1
    x = zp.quantize_per_tensor(torch.randn(2, 8), 0.1, 10, zp.quint8)
    results = []
    for isa in zp.backend.available_isas() * 2:
        with zp.backend.use_isa(isa):
            results.append(linear(x))
    assert all(torch.equal(r, results[0]) for r in results)


def test_nan_and_infinities_are_counted_when_asked():
    x = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), float("nan"), float("nan")])
    zp.backend.reset_bad_values()
    zp.quantize_per_tensor(x, 0.1, 3, zp.quint8)
    assert zp.backend.bad_values() == {"nan": 0, "inf": 0}
    with zp.backend.check_values():
        zp.quantize_per_tensor(x, 0.1, 3, zp.quint8)
        zp.nn.quantized.Quantize(0.1, 3, zp.quint8)(x)
    assert zp.backend.bad_values() == {"nan": 6, "inf": 4}
    zp.backend.reset_bad_values()
