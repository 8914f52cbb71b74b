"""Statically quantized recurrent layers and attention: what ``convert`` makes of :mod:`zeropoint.nn.quantizable`.

Their parts are int8 modules; these classes add the name and the way there. A layer whose parts are as ``convert`` made
them runs all steps as one operator (``ops.rnn_static``), with the bits that its parts give one by one.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from zeropoint import ops
from zeropoint.errors import QuantizationError
from zeropoint.nn.quantizable import activation as quantizable_activation
from zeropoint.nn.quantizable import rnn as quantizable
from zeropoint.nn.quantized.modules.activation import Sigmoid, Tanh
from zeropoint.nn.quantized.modules.functional_modules import QFunctional
from zeropoint.nn.quantized.modules.linear import Linear
from zeropoint.tensor import QTensor, make_table, quint8, traced
from zeropoint.tensor._callsite import enter, leave

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "MultiheadAttention", "RNNCell"]


def _converted(cls: type, other: Any, accepted: type) -> Any:
    from zeropoint.quantization import convert  # the workflow stands above this floor

    given: Any = type(other)
    if given is not accepted:
        raise QuantizationError(
            f"quantized {cls.__name__}.from_observed works for the quantizable one, got {type(other).__name__}"
        )
    with warnings.catch_warnings():
        # Hooks, call sites and what was never calibrated are settled with the whole model.
        warnings.filterwarnings("ignore", message="convert: these modules were never calibrated")
        for name, child in list(other.named_children()):
            setattr(other, name, convert(child, inplace=True, remove_qconfig=False))
    for module in other.modules():
        if type(module) is quantizable._SingleLayer:
            module.__class__ = _Sequence
    other.__class__ = cls
    return other


class _FromObserved:
    @classmethod
    def from_float(cls, other: Any, *unused: Any) -> Any:
        raise NotImplementedError(
            "from_float of a statically quantized layer: prepare the float layer and calibrate, then convert (from_observed)"
        )

    @classmethod
    def from_observed(cls, other: Any) -> Any:
        """From the prepared and calibrated quantizable layer, which it becomes."""
        return _converted(cls, other, cls.__mro__[2])

    def _get_name(self) -> str:
        return f"Quantized{type(self).__name__}"


class LSTM(_FromObserved, quantizable.LSTM):
    """Static int8 LSTM. Replaces ``torch.ao.nn.quantized.LSTM``."""


class GRU(_FromObserved, quantizable.GRU):
    """Static int8 GRU; torch had none."""


class RNN(_FromObserved, quantizable.RNN):
    """Static int8 RNN; torch had none."""


class LSTMCell(_FromObserved, quantizable.LSTMCell):
    """Static int8 LSTM cell; torch had none."""


class GRUCell(_FromObserved, quantizable.GRUCell):
    """Static int8 GRU cell; torch had none."""


class RNNCell(_FromObserved, quantizable.RNNCell):
    """Static int8 RNN cell; torch had none."""


# By the operator's kinds: parts of a cell in the order of its grids (_reference/recurrent.py), each with the part whose result it
# looks up, if it is a table.
_PARTS: dict[type, tuple[tuple[str, str | None], ...]] = {
    LSTMCell: (
        ("igates", None), ("hgates", None), ("gates", None), ("input_gate", "gates"), ("forget_gate", "gates"),
        ("cell_gate", "gates"), ("output_gate", "gates"), ("fgate_cx", None), ("igate_cgate", None),
        ("fgate_cx_igate_cgate", None), ("cell_tanh", "fgate_cx_igate_cgate"), ("ogate_cy", None),
    ),
    GRUCell: (
        ("igates", None), ("hgates", None), ("reset", None), ("reset_gate", "reset"), ("update", None),
        ("update_gate", "update"), ("from_state", None), ("new", None), ("new_gate", "new"), ("difference", None),
        ("step", None), ("output", None),
    ),
    RNNCell: (("igates", None), ("hgates", None), ("gates", None), ("nonlinearity", "gates")),
}  # fmt: skip


def _listens(module: nn.Module) -> bool:
    """Whether somebody hears of its calls, other than those who keep track of call sites, of which a cell has none."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(hook is not enter and hook is not leave for hook in hooks)


def _unchanged(part: Any) -> bool:
    """A converted part that nobody listens to: its result is what the operator computes."""
    if type(part) not in (Linear, QFunctional, Sigmoid, Tanh, nn.ReLU) or _listens(part):
        return False
    if isinstance(part, nn.ReLU):
        return True
    observer = getattr(part, "activation_post_process", None)
    return (
        part._calibrated
        and part._output_dtype == quint8
        and part.relu_max is None
        and (observer is None or (type(observer) is nn.Identity and not _listens(observer)))
    )


class _Sequence(quantizable._SingleLayer):
    """A converted cell over time."""

    _fixed: tuple[Any, torch.Tensor, torch.Tensor] | None = None  # a key, the tables and the grids it stands for

    def forward(self, x: Any, hidden: Any = None) -> Any:
        cell: Any = self.cell
        names = _PARTS.get(type(cell))
        if names is None or not isinstance(x, QTensor) or x.dim() != 3 or 0 in x.shape:
            return super().forward(x, hidden)
        if hidden is None or (isinstance(hidden, tuple) and hidden[0] is None):
            hidden = cell._initial(x[0])
        states = hidden if isinstance(hidden, tuple) else (hidden,)
        given = (x, *states)
        known = all(isinstance(t, QTensor) and t._axis is None and t._qdtype == quint8 for t in given)
        if not known or _listens(cell):
            return super().forward(x, hidden)
        if not all(_unchanged(getattr(cell, name)) for name, _ in names):
            return super().forward(x, hidden)
        kind = list(_PARTS).index(type(cell))
        c = states[1]._data if kind == 0 else x._data.new_zeros(0)
        tables, grids = self._tables_and_grids(names, given)
        weights = [
            part
            for linear in (cell.igates, cell.hgates)
            for part in (linear._int_weight, linear._ready(), linear._w_scale, linear._w_zero_point, linear._bias)
        ]
        out, h, c = ops.rnn_static(x._data, states[0]._data, c, *weights, tables, grids, kind, False)
        last = self._grid(names[-1])
        new = QTensor(h, *last, quint8)
        outputs = QTensor(out, *last, quint8)
        if kind:
            return outputs, new
        made = cell.fgate_cx_igate_cgate
        return outputs, (new, QTensor(c, made._scale, made._zero_point, quint8))

    def _grid(self, part: tuple[str, str | None]) -> tuple[float, int]:
        module = getattr(self.cell, part[0])
        if isinstance(module, nn.ReLU):  # it keeps its input's
            module = getattr(self.cell, str(part[1]))
        return module._scale, module._zero_point

    def _tables_and_grids(
        self, names: tuple[tuple[str, str | None], ...], given: tuple[QTensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [(t._scale, t._zero_point) for t in given] + [self._grid(part) for part in names]
        key = tuple(pairs)
        if self._fixed is not None and self._fixed[0] == key and not traced(given[0]._data):
            return self._fixed[1:]
        tables = []
        for part in names:
            if part[1] is not None:
                module = getattr(self.cell, part[0])
                function = torch.relu if isinstance(module, nn.ReLU) else module._function
                source = self._grid((part[1], None))
                tables.append(make_table(function, *source, quint8, *self._grid(part), quint8))
        made = torch.stack(tables), torch.tensor(pairs, dtype=torch.float64)
        if not traced(given[0]._data):  # torch.compile and torch.export: nothing may be kept
            self._fixed = (key, *made)
        return made


class MultiheadAttention(_FromObserved, quantizable_activation.MultiheadAttention):
    """Static int8 attention. Replaces ``torch.ao.nn.quantized.MultiheadAttention``."""
