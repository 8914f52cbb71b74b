"""Cells of recurrent layers in graphs: int8 weights, as their layers have; one copy of them for all steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint.analysis import sqnr

CELLS = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "tanh": nn.RNNCell,
    "relu": lambda *sizes, **options: nn.RNNCell(*sizes, nonlinearity="relu", **options),
}


class Steps(nn.Module):
    """All steps in one call, from states of zeros."""

    def __init__(self, kind, bias=True):
        super().__init__()
        self.cell, self.kind = CELLS[kind](32, 64, bias=bias), kind

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 64)
        outputs = []
        for i in range(x.shape[1]):
            if self.kind == "lstm":
                h, c = self.cell(x[:, i], (h, c))
            else:
                h = self.cell(x[:, i], h)
            outputs.append(h)
        return torch.stack(outputs, 1)


class Step(nn.Module):
    """One step, as in streaming: states come and go."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTMCell(16, 32), nn.Linear(32, 16)

    def forward(self, x, h, c):
        h, c = self.cell(x, (h, c))
        return self.head(h), h, c


def quantized(model, inputs, dynamic):
    if dynamic:
        return zp.quantize(model, dynamic=True, example=inputs[0])
    return zp.quantize(model, inputs)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", list(CELLS))
def test_cells_are_int8(kind, bias, dynamic, tmp_path):
    torch.manual_seed(0)
    model = Steps(kind, bias).eval()
    inputs = [torch.randn(4, 6, 32) for _ in range(4)]
    program = quantized(model, inputs, dynamic)
    reasons = {operator: why for _, operator, why in program.program.coverage}
    assert not any(part in operator for operator in reasons for part in ("cell", "squeeze"))
    assert {why for operator, why in reasons.items() if operator.endswith((".input",))} == {"int8"}
    for batch in (1, 3):
        x = torch.randn(batch, 6, 32)
        assert sqnr(model(x), program(x)) > 33
    zp.save(program, tmp_path / "cells.zp")
    x = torch.randn(2, 6, 32)
    assert torch.equal(zp.load(tmp_path / "cells.zp")(x), program(x))
    # Bytes of int8 weights, once for all six steps, with scales, biases and what describes the program.
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert (tmp_path / "cells.zp").stat().st_size < weights + 30000


@pytest.mark.parametrize("dynamic", [False, True])
def test_streams(dynamic):
    torch.manual_seed(0)
    model = Step().eval()
    inputs = [(torch.randn(2, 16), torch.randn(2, 32) / 3, torch.randn(2, 32) / 3) for _ in range(4)]
    program = quantized(model, inputs, dynamic)
    h = c = a = b = torch.zeros(3, 32)
    for _ in range(10):
        x = torch.randn(3, 16)
        y, h, c = model(x, h, c)
        z, a, b = program(x, a, b)
    assert min(sqnr(y, z), sqnr(h, a), sqnr(c, b)) > 25


def test_weights_that_are_computed_stay_float():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.linear = nn.GRUCell(8, 8), nn.Linear(8, 8)

        def forward(self, x, scale):
            w = self.cell.weight_ih * scale
            h = torch.gru_cell(x, x, w, self.cell.weight_hh, self.cell.bias_ih, self.cell.bias_hh)
            return self.linear(h)

    model = Scaled().eval()
    inputs = (torch.randn(4, 8), torch.tensor(1.5))
    program = zp.quantize(model, dynamic=True, example=inputs)
    reasons = {operator: why for _, operator, why in program.program.coverage}
    assert reasons["aten.gru_cell.default"] != "int8"
    assert sqnr(model(*inputs), program(*inputs)) > 25
