"""Reference of zeropoint::rnn_static: recurrent layers on grids that calibration fixed."""

from __future__ import annotations

from typing import Any

import torch

from zeropoint._reference.elementwise import add, lookup, mul
from zeropoint._reference.linear import linear
from zeropoint.errors import QuantizationError

__all__ = ["rnn_static"]

_Grid = tuple[float, int]
_BYTE = (0, 255, torch.uint8)

# What each grid belongs to. A cell's operators have their results' grids in the order of nn/quantizable/rnn.py.
_NAMES = (
    [
        "x",
        "h",
        "c",
        "from_input",
        "from_state",
        "gates",
        "i",
        "f",
        "g",
        "o",
        "kept",
        "added",
        "cell",
        "cell_tanh",
        "out",
    ],
    [
        "x",
        "h",
        "from_input",
        "from_state",
        "reset_sum",
        "reset",
        "update_sum",
        "update",
        "scaled",
        "new_sum",
        "new",
        "difference",
        "step",
        "out",
    ],
    ["x", "h", "from_input", "from_state", "sum", "out"],
)
_GATES, _TABLES = (4, 3, 1), (5, 3, 1)


class _Bytes:
    """uint8 values and their grid."""

    def __init__(self, data: torch.Tensor, grid: _Grid) -> None:
        self.data, self.grid = data, grid

    def of(self, other: _Bytes, function: Any, grid: _Grid) -> _Bytes:
        return _Bytes(function(self.data, *self.grid, other.data, *other.grid, *grid, *_BYTE), grid)

    def by(self, table: torch.Tensor, grid: _Grid) -> _Bytes:
        return _Bytes(lookup(self.data, table), grid)

    def parts(self, count: int) -> list[_Bytes]:
        return [_Bytes(part.contiguous(), self.grid) for part in self.data.chunk(count, 1)]

    def negative(self) -> _Bytes:
        return _Bytes(255 - self.data, (self.grid[0], 255 - self.grid[1]))


def _lstm(x: _Bytes, s: _Bytes, h: _Bytes, c: _Bytes, t: torch.Tensor, g: dict[str, _Grid]) -> tuple[_Bytes, _Bytes]:
    gates = x.of(s, add, g["gates"]).parts(4)
    i, f, n, o = (gate.by(t[k], g[name]) for k, (gate, name) in enumerate(zip(gates, "ifgo", strict=True)))
    cell = f.of(c, mul, g["kept"]).of(i.of(n, mul, g["added"]), add, g["cell"])
    return o.of(cell.by(t[4], g["cell_tanh"]), mul, g["out"]), cell


def _gru(x: _Bytes, s: _Bytes, h: _Bytes, c: _Bytes, t: torch.Tensor, g: dict[str, _Grid]) -> tuple[_Bytes, _Bytes]:
    (rx, zx, nx), (rs, zs, ns) = x.parts(3), s.parts(3)
    reset = rx.of(rs, add, g["reset_sum"]).by(t[0], g["reset"])
    update = zx.of(zs, add, g["update_sum"]).by(t[1], g["update"])
    new = nx.of(reset.of(ns, mul, g["scaled"]), add, g["new_sum"]).by(t[2], g["new"])
    difference = h.of(new.negative(), add, g["difference"])
    return new.of(update.of(difference, mul, g["step"]), add, g["out"]), c


def _simple(x: _Bytes, s: _Bytes, h: _Bytes, c: _Bytes, t: torch.Tensor, g: dict[str, _Grid]) -> tuple[_Bytes, _Bytes]:
    return x.of(s, add, g["sum"]).by(t[0], g["out"]), c


_CELLS = (_lstm, _gru, _simple)


def rnn_static(
    x: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
    ih: torch.Tensor,
    ih_packed: torch.Tensor,
    ih_scale: torch.Tensor,
    ih_zero_point: torch.Tensor | None,
    ih_bias: torch.Tensor | None,
    hh: torch.Tensor,
    hh_packed: torch.Tensor,
    hh_scale: torch.Tensor,
    hh_zero_point: torch.Tensor | None,
    hh_bias: torch.Tensor | None,
    tables: torch.Tensor,
    grids: torch.Tensor,
    kind: int,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One layer of an LSTM (``kind`` 0), a GRU (1) or an RNN of one gate (2) in one direction, all on bytes.

    x uint8 [steps, batch, F]; h and c uint8 [batch, H] (c empty but for an LSTM); weights int8 [gates * H, F] and
    [gates * H, H]. ``tables`` uint8 [n, 256] are the activations: sigmoids and tanh of an LSTM's gates in the order i, f,
    g, o and the tanh of its cell; those of reset, update and new of a GRU; the one of an RNN. ``grids`` float64 [n, 2]
    are scales and zero points: of x, h and (LSTM) c as they come in, then of each result within a cell (``_NAMES``).
    Gives the outputs [steps, batch, H] and the last states, on the grids of the cell's results.

    Raises:
        QuantizationError: another kind, or other numbers of tables or grids.
    """
    if kind not in (0, 1, 2):
        raise QuantizationError("rnn_static: kind must be 0 (LSTM), 1 (GRU) or 2 (one gate)")
    names = _NAMES[kind]
    if tuple(tables.shape) != (_TABLES[kind], 256) or tuple(grids.shape) != (len(names), 2):
        raise QuantizationError(
            f"rnn_static: tables must be [{_TABLES[kind]}, 256] and grids [{len(names)}, 2], got {tuple(tables.shape)} and {tuple(grids.shape)}"
        )
    pairs = [(float(scale), int(zero_point)) for scale, zero_point in grids.tolist()]
    if not all(0 <= zero_point <= 255 for _, zero_point in pairs):
        raise QuantizationError("rnn_static: zero points must lie between 0 and 255")
    g: dict[str, _Grid] = dict(zip(names, pairs, strict=True))
    inputs = linear(x, ih, ih_packed, ih_scale, ih_zero_point, ih_bias, *g["x"], *g["from_input"], *_BYTE)
    state, cell = _Bytes(h, g["h"]), _Bytes(c, g.get("c", g["h"]))
    outputs = [x] * x.shape[0]
    for t in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
        product = linear(
            state.data, hh, hh_packed, hh_scale, hh_zero_point, hh_bias, *state.grid, *g["from_state"], *_BYTE
        )
        state, cell = _CELLS[kind](
            _Bytes(inputs[t], g["from_input"]), _Bytes(product, g["from_state"]), state, cell, tables, g
        )
        outputs[t] = state.data
    stacked = torch.stack(outputs) if outputs else x.new_empty(0, *h.shape)
    return stacked, state.data.clone(), cell.data.clone()
