"""LSTM, GRU and RNN as cells of Linear, Sigmoid, Tanh and FloatFunctional: quantized statically, or trained so.

``prepare`` puts them in place of ``torch.nn.LSTM`` and its siblings, ``convert`` turns their parts into int8
(:mod:`zeropoint.nn.quantized.modules.rnn`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.modules.functional_modules import FloatFunctional
from zeropoint.tensor import ObservedTensor, QTensor, mark, quint8, unmark

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


def _stacked(outputs: list[Any]) -> Any:
    """Time steps of one cell as one tensor: they share their qparams."""
    first = outputs[0]
    if isinstance(first, QTensor):
        return first.with_data(torch.stack([o._data for o in outputs]))
    stacked = torch.stack([unmark(o) for o in outputs])
    return mark(stacked) if isinstance(first, ObservedTensor) else stacked


def _prepared(observed: nn.Module, qconfig: Any, training: bool) -> Any:
    from zeropoint.quantization import prepare, prepare_qat  # the workflow stands above this floor

    if qconfig is None:
        return observed.train(training)
    observed.qconfig = qconfig
    return prepare_qat(observed.train(), inplace=True) if training else prepare(observed.eval(), inplace=True)


class _Cell(nn.Module):
    """``igates`` and ``hgates`` make the gates from input and state; subclasses combine them."""

    _FLOAT_MODULE: Any = nn.RNNCell
    _gates = 1
    _states = 1

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        split_gates: bool = False,
    ) -> None:
        super().__init__()
        if split_gates:
            raise QuantizationError(
                f"{type(self).__name__}: split_gates=True is not supported; weights are quantized per channel, which needs no split"
            )
        self.input_size, self.hidden_size, self.bias = input_dim, hidden_dim, bias
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.igates = nn.Linear(input_dim, self._gates * hidden_dim, bias=bias, **options)
        self.hgates = nn.Linear(hidden_dim, self._gates * hidden_dim, bias=bias, **options)
        self.initial_hidden_state_qparams: tuple[float, int] = (1.0, 0)
        self.hidden_state_dtype = quint8
        self._add_parts()

    def _add_parts(self) -> None:
        """What combines the gates."""
        raise NotImplementedError

    def initialize_hidden(self, batch_size: int, is_quantized: bool = False) -> Any:
        """Zero states [batch, hidden]; quantized with ``initial_hidden_state_qparams`` if asked."""
        if is_quantized:
            scale, zero_point = self.initial_hidden_state_qparams
            dtype = self.hidden_state_dtype
            data = torch.full((batch_size, self.hidden_size), zero_point, dtype=dtype.storage)
            h: Any = QTensor(data, scale, zero_point, dtype)
        else:
            h = torch.zeros(batch_size, self.hidden_size)
        return (h, h) if self._states == 2 else h

    def _initial(self, x: Any) -> Any:
        hidden = self.initialize_hidden(x.shape[0], isinstance(x, QTensor))
        return mark(hidden) if isinstance(x, ObservedTensor) else hidden

    @classmethod
    def from_params(
        cls, wi: torch.Tensor, wh: torch.Tensor, bi: Any = None, bh: Any = None, split_gates: bool = False
    ) -> Any:
        """From weights [gates * hidden, input] and [gates * hidden, hidden], and their biases."""
        cell = cls(wi.shape[1], wh.shape[1], bias=bi is not None, split_gates=split_gates)
        cell.igates.weight, cell.hgates.weight = nn.Parameter(wi.detach()), nn.Parameter(wh.detach())
        if bi is not None:
            cell.igates.bias, cell.hgates.bias = nn.Parameter(bi.detach()), nn.Parameter(bh.detach())
        return cell

    @classmethod
    def from_float(cls, other: Any, use_precomputed_fake_quant: bool = False, split_gates: bool = False) -> Any:
        """From a float cell; prepared if it has a qconfig.

        Raises:
            QuantizationError: another type.
        """
        given: Any = type(other)
        if given is not cls._FLOAT_MODULE:
            raise QuantizationError(
                f"quantizable {cls.__name__}.from_float works for {cls._FLOAT_MODULE.__name__}, got {type(other).__name__}"
            )
        observed = cls.from_params(
            other.weight_ih, other.weight_hh, other.bias_ih, other.bias_hh, split_gates=split_gates
        )
        if hasattr(other, "nonlinearity"):
            observed._set_nonlinearity(other.nonlinearity)
        return _prepared(observed, getattr(other, "qconfig", None), other.training)

    def _set_nonlinearity(self, name: str) -> None:
        pass


class LSTMCell(_Cell):
    """``torch.nn.LSTMCell`` of observable parts. Replaces ``torch.ao.nn.quantizable.LSTMCell``."""

    _FLOAT_MODULE = nn.LSTMCell
    _gates = 4
    _states = 2

    def _add_parts(self) -> None:
        self.gates = FloatFunctional()
        self.input_gate, self.forget_gate, self.output_gate = nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid()
        self.cell_gate, self.cell_tanh = nn.Tanh(), nn.Tanh()
        self.fgate_cx, self.igate_cgate = FloatFunctional(), FloatFunctional()
        self.fgate_cx_igate_cgate, self.ogate_cy = FloatFunctional(), FloatFunctional()
        self.initial_cell_state_qparams: tuple[float, int] = (1.0, 0)
        self.cell_state_dtype = quint8

    def forward(self, x: Any, hidden: Any = None) -> Any:
        hx, cx = self._initial(x) if hidden is None or hidden[0] is None else hidden
        gates = self.gates.add(self.igates(x), self.hgates(hx))
        i, f, g, o = gates.chunk(4, 1)
        kept = self.fgate_cx.mul(self.forget_gate(f), cx)
        added = self.igate_cgate.mul(self.input_gate(i), self.cell_gate(g))
        cy = self.fgate_cx_igate_cgate.add(kept, added)
        return self.ogate_cy.mul(self.output_gate(o), self.cell_tanh(cy)), cy


class GRUCell(_Cell):
    """``torch.nn.GRUCell`` of observable parts; torch had none."""

    _FLOAT_MODULE = nn.GRUCell
    _gates = 3

    def _add_parts(self) -> None:
        self.reset, self.update, self.new, self.from_state = (FloatFunctional() for _ in range(4))
        self.reset_gate, self.update_gate, self.new_gate = nn.Sigmoid(), nn.Sigmoid(), nn.Tanh()
        self.difference, self.step, self.output = (FloatFunctional() for _ in range(3))

    def forward(self, x: Any, hidden: Any = None) -> Any:
        h = self._initial(x) if hidden is None else hidden
        (ri, zi, ni), (rh, zh, nh) = self.igates(x).chunk(3, 1), self.hgates(h).chunk(3, 1)
        reset = self.reset_gate(self.reset.add(ri, rh))
        update = self.update_gate(self.update.add(zi, zh))
        new = self.new_gate(self.new.add(ni, self.from_state.mul(reset, nh)))
        # new + update * (h - new), the form with one product.
        difference = self.difference.add(h, self.difference.mul_scalar(new, -1.0))
        return self.output.add(new, self.step.mul(update, difference))


class RNNCell(_Cell):
    """``torch.nn.RNNCell`` of observable parts, tanh or relu; torch had none."""

    _FLOAT_MODULE = nn.RNNCell

    def _add_parts(self) -> None:
        self.gates = FloatFunctional()
        self.nonlinearity: nn.Module = nn.Tanh()

    def _set_nonlinearity(self, name: str) -> None:
        self.nonlinearity = nn.Tanh() if name == "tanh" else nn.ReLU()

    def forward(self, x: Any, hidden: Any = None) -> Any:
        h = self._initial(x) if hidden is None else hidden
        return self.nonlinearity(self.gates.add(self.igates(x), self.hgates(h)))


class _SingleLayer(nn.Module):
    """A cell over time: [T, N, F] to [T, N, H] and the last state."""

    def __init__(self, cell: _Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Any, hidden: Any = None) -> Any:
        outputs = []
        for step in range(x.shape[0]):
            hidden = self.cell(x[step], hidden)
            outputs.append(hidden[0] if isinstance(hidden, tuple) else hidden)
        return _stacked(outputs), hidden


class _Layer(nn.Module):
    """One layer, in both directions if ``layer_bw`` is there."""

    def __init__(self, layer_fw: _SingleLayer, layer_bw: _SingleLayer | None) -> None:
        super().__init__()
        self.layer_fw = layer_fw
        self.layer_bw = layer_bw

    def forward(self, x: Any, hidden: Any = (None, None)) -> Any:
        forward, state_fw = self.layer_fw(x, hidden[0])
        if self.layer_bw is None:
            return forward, (state_fw,)
        backward, state_bw = self.layer_bw(x.flip(0), hidden[1])
        return torch.cat([forward, backward.flip(0)], 2), (state_fw, state_bw)


class _Recurrent(nn.Module):
    _FLOAT_MODULE: Any = nn.RNN
    _CELL: Any = RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        split_gates: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= dropout <= 1 or isinstance(dropout, bool):
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, float(dropout), bidirectional
        directions = 2 if bidirectional else 1
        make = lambda size: _SingleLayer(self._CELL(size, hidden_size, bias, device, dtype, split_gates=split_gates))
        sizes = [input_size] + [hidden_size * directions] * (num_layers - 1)
        self.layers = nn.ModuleList(_Layer(make(s), make(s) if bidirectional else None) for s in sizes)

    def forward(self, x: Any, hidden: Any = None) -> Any:
        """[T, N, F], or [N, T, F] with ``batch_first``, or [T, F]; the state as in the float layer."""
        if isinstance(x, PackedSequence):
            raise QuantizationError(
                f"{type(self).__name__}: a PackedSequence is not supported by the static form; pad, or use quantize_dynamic"
            )
        batched = x.dim() == 3
        if not batched:
            x = x.unsqueeze(1)
            if hidden is not None:
                hidden = tuple(s.unsqueeze(1) for s in hidden) if isinstance(hidden, tuple) else hidden.unsqueeze(1)
        elif self.batch_first:
            x = x.transpose(0, 1)
        finals: list[Any] = []
        directions = 2 if self.bidirectional else 1
        for index, layer in enumerate(self.layers):
            given = [self._given(x, hidden, index * directions + d) for d in range(directions)]
            x, states = layer(x, given)
            finals.extend(states)
            if self.dropout and self.training and index < self.num_layers - 1:
                x = nn.functional.dropout(x, self.dropout, True)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        final = self._final(finals)
        if not batched:
            x = x.squeeze(1)
            final = tuple(s.squeeze(1) for s in final) if isinstance(final, tuple) else final.squeeze(1)
        return x, final

    def _given(self, x: Any, hidden: Any, at: int) -> Any:
        """The initial state of one layer and direction; a float one is quantized where x is."""
        if hidden is None:
            return None
        parts = tuple(s[at] for s in (hidden if isinstance(hidden, tuple) else (hidden,)))
        if isinstance(x, QTensor):
            parts = tuple(self._to_grid(s) for s in parts)
        elif isinstance(x, ObservedTensor):
            parts = mark(parts)
        return parts if self._CELL._states == 2 else parts[0]

    @staticmethod
    def _to_grid(state: Any) -> Any:
        if isinstance(state, QTensor):
            return state
        from zeropoint.nn.quantized.dynamic.linear import quantize_by_range

        data, scale, zero_point = quantize_by_range(state.float())
        return QTensor(data, scale, zero_point, quint8)

    def _final(self, finals: list[Any]) -> Any:
        """[layers * directions, N, H]. Float: layers differ in their qparams, and a state is for the next call."""
        states = [s if isinstance(s, tuple) else (s,) for s in finals]
        stacked = []
        for parts in zip(*states, strict=True):
            reals = [p.dequantize() if isinstance(p, QTensor) else unmark(p) for p in parts]
            stacked.append(torch.stack(reals))
        return tuple(stacked) if len(stacked) == 2 else stacked[0]

    @classmethod
    def from_float(cls, other: Any, qconfig: Any = None, split_gates: bool = False) -> Any:
        """From the float layer; prepared with its qconfig (or ``qconfig``).

        Raises:
            QuantizationError: another type, or projections.
        """
        given: Any = type(other)
        if given is not cls._FLOAT_MODULE:
            raise QuantizationError(
                f"quantizable {cls.__name__}.from_float works for {cls._FLOAT_MODULE.__name__}, got {type(other).__name__}"
            )
        if other.proj_size:
            raise QuantizationError(
                f"quantizable {cls.__name__}: projections (proj_size={other.proj_size}) are not supported; set the module's "
                "qconfig to None or use quantize_dynamic"
            )
        observed: Any = cls(
            other.input_size, other.hidden_size, other.num_layers, other.bias, other.batch_first, other.dropout,
            other.bidirectional, split_gates=split_gates,
        )  # fmt: skip
        for index, layer in enumerate(observed.layers):
            for single, suffix in ((layer.layer_fw, ""), (layer.layer_bw, "_reverse")):
                if single is None:
                    continue
                weights = [getattr(other, f"weight_{side}_l{index}{suffix}") for side in ("ih", "hh")]
                biases = [
                    getattr(other, f"bias_{side}_l{index}{suffix}") if other.bias else None for side in ("ih", "hh")
                ]
                single.cell = cls._CELL.from_params(*weights, *biases)
                if cls._FLOAT_MODULE is nn.RNN:
                    single.cell._set_nonlinearity(other.nonlinearity)
        return _prepared(observed, qconfig or getattr(other, "qconfig", None), other.training)

    @classmethod
    def from_observed(cls, other: Any) -> Any:
        raise NotImplementedError(
            "It looks like you are trying to convert a non-quantizable module; use zeropoint.nn.quantized"
        )


class LSTM(_Recurrent):
    """``torch.nn.LSTM`` of observable parts. Replaces ``torch.ao.nn.quantizable.LSTM``."""

    _FLOAT_MODULE = nn.LSTM
    _CELL = LSTMCell


class GRU(_Recurrent):
    """``torch.nn.GRU`` of observable parts; torch had none."""

    _FLOAT_MODULE = nn.GRU
    _CELL = GRUCell


class RNN(_Recurrent):
    """``torch.nn.RNN`` of observable parts; torch had none."""
