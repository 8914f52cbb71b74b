"""Dynamically quantized recurrent layers: int8 weights, each product's input quantized to its own range.

Every layer and direction is two dynamic Linear modules, ``ih`` for the inputs of all time steps at once and
``hh`` for the state, so that state, copies and instruction sets are theirs. The gates are in float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.dynamic.linear import Linear
from zeropoint.nn.quantized.modules.weighted import quantize_weight

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

State = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, torch.Tensor, State], State]


def _lstm_step(from_input: torch.Tensor, from_state: torch.Tensor, state: State) -> State:
    i, f, g, o = (from_input + from_state).chunk(4, 1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _gru_step(from_input: torch.Tensor, from_state: torch.Tensor, state: State) -> State:
    (ri, zi, ni), (rh, zh, nh) = from_input.chunk(3, 1), from_state.chunk(3, 1)
    update = torch.sigmoid(zi + zh)
    new = torch.tanh(ni + torch.sigmoid(ri + rh) * nh)
    return (new + update * (state[0] - new),)


def _tanh_step(from_input: torch.Tensor, from_state: torch.Tensor, state: State) -> State:
    return (torch.tanh(from_input + from_state),)


def _relu_step(from_input: torch.Tensor, from_state: torch.Tensor, state: State) -> State:
    return (torch.relu(from_input + from_state),)


def _dynamic_linear(weight: torch.Tensor, bias: torch.Tensor | None, qconfig: Any) -> Linear:
    result = Linear(weight.shape[1], weight.shape[0], bias is not None)
    result.set_weight_bias(quantize_weight(weight, qconfig.weight()), bias)
    return result


def _qconfig_of(cls: type, mod: nn.Module, accepted: type) -> Any:
    if type(mod) is not accepted:
        raise QuantizationError(
            f"dynamic {cls.__name__}.from_float works for {accepted.__name__}, got {type(mod).__name__}"
        )
    qconfig = getattr(mod, "qconfig", None)
    if qconfig is None:
        raise QuantizationError(f"dynamic {cls.__name__}.from_float: the module must have a qconfig")
    return qconfig


class _DynamicRNNBase(nn.Module):
    _FLOAT_MODULE: type = nn.RNN
    _gates = 1
    _states = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional
        directions = 2 if bidirectional else 1
        layers = []
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * directions
            for _ in range(directions):
                ih = Linear(size, self._gates * hidden_size, bias)
                layers.append(nn.ModuleDict({"ih": ih, "hh": Linear(hidden_size, self._gates * hidden_size, bias)}))
        self.layers = nn.ModuleList(layers)

    def _get_name(self) -> str:
        return f"DynamicQuantized{type(self).__name__}"

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bidirectional={self.bidirectional}"
        )

    def _step(self) -> Step:
        raise NotImplementedError

    def _direction(
        self, layer: Any, data: torch.Tensor, sizes: list[int], state: State, reverse: bool
    ) -> tuple[torch.Tensor, State]:
        """One layer in one direction over ``data`` [sum of sizes, features], time after time."""
        step, inputs = self._step(), layer["ih"](data).split(sizes)
        outputs: list[torch.Tensor] = [torch.empty(0)] * len(sizes)
        for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
            n = sizes[t]
            active = tuple(s[:n] for s in state)
            new = step(inputs[t], layer["hh"](active[0]), active)
            outputs[t] = new[0]
            # Sequences that have ended (or, backwards, not begun) keep their state.
            state = tuple(torch.cat([a, s[n:]]) for a, s in zip(new, state, strict=True)) if n < len(state[0]) else new
        return torch.cat(outputs), state

    def _run(self, data: torch.Tensor, sizes: list[int], states: State) -> tuple[torch.Tensor, State]:
        directions = 2 if self.bidirectional else 1
        finals: list[State] = []
        for index in range(self.num_layers):
            results = []
            for direction in range(directions):
                at = index * directions + direction
                out, final = self._direction(self.layers[at], data, sizes, tuple(s[at] for s in states), direction == 1)
                results.append(out)
                finals.append(final)
            data = torch.cat(results, 1)
            if self.dropout and self.training and index < self.num_layers - 1:
                data = torch.dropout(data, self.dropout, True)
        return data, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As the float layer: [T, N, F], [N, T, F] with ``batch_first``, [T, F], or a PackedSequence."""
        packed = input if isinstance(input, PackedSequence) else None
        batched = packed is not None or input.dim() == 3
        if packed is not None:
            data, sizes = packed.data, packed.batch_sizes.tolist()
        else:
            x = input if batched else input.unsqueeze(0 if self.batch_first else 1)
            x = x.transpose(0, 1) if self.batch_first else x
            data, sizes = x.flatten(0, 1), [x.shape[1]] * x.shape[0]
        if data.shape[-1] != self.input_size or not sizes:
            raise QuantizationError(
                f"{type(self).__name__}: the input must have {self.input_size} features and at least one step, got {tuple(data.shape)}"
            )
        states = self._initial(hx, sizes[0], data, batched, packed)
        out, finals = self._run(data, sizes, states)
        if packed is not None:
            result: Any = PackedSequence(out, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
            if packed.unsorted_indices is not None:
                finals = tuple(f.index_select(1, packed.unsorted_indices) for f in finals)
        else:
            result = out.view(len(sizes), sizes[0], -1)
            result = result.transpose(0, 1) if self.batch_first else result
            if not batched:
                result, finals = result.squeeze(0 if self.batch_first else 1), tuple(f.squeeze(1) for f in finals)
        return result, finals if self._states == 2 else finals[0]

    def _initial(self, hx: Any, n: int, data: torch.Tensor, batched: bool, packed: PackedSequence | None) -> State:
        shape = (len(self.layers), n, self.hidden_size)
        if hx is None:
            return tuple(data.new_zeros(shape) for _ in range(self._states))
        states = tuple(hx) if self._states == 2 else (hx,)
        if not batched:
            states = tuple(s.unsqueeze(1) for s in states)
        if packed is not None and packed.sorted_indices is not None:
            states = tuple(s.index_select(1, packed.sorted_indices) for s in states)
        if any(tuple(s.shape) != shape for s in states):
            raise QuantizationError(
                f"{type(self).__name__}: the initial state must have shape {shape}, got {[tuple(s.shape) for s in states]}"
            )
        return states

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """From the float layer with a qconfig; needs no calibration."""
        qconfig = _qconfig_of(cls, mod, cls._FLOAT_MODULE)
        if mod.proj_size:
            raise QuantizationError(
                f"dynamic {cls.__name__}: projections (proj_size={mod.proj_size}) are not supported"
            )
        result: Any = cls(
            mod.input_size, mod.hidden_size, mod.num_layers, mod.bias, mod.batch_first, mod.dropout, mod.bidirectional
        )
        suffixes = [
            f"_l{i}{s}" for i in range(mod.num_layers) for s in (("", "_reverse") if mod.bidirectional else ("",))
        ]
        for layer, suffix in zip(result.layers, suffixes, strict=True):
            for side in ("ih", "hh"):
                bias = getattr(mod, f"bias_{side}{suffix}") if mod.bias else None
                layer[side] = _dynamic_linear(getattr(mod, f"weight_{side}{suffix}"), bias, qconfig)
        result._copy_nonlinearity(mod)
        return result

    def _copy_nonlinearity(self, mod: Any) -> None:
        pass


class LSTM(_DynamicRNNBase):
    """Dynamically quantized ``torch.nn.LSTM`` (no projections)."""

    _FLOAT_MODULE = nn.LSTM
    _gates = 4
    _states = 2

    def _step(self) -> Step:
        return _lstm_step


class GRU(_DynamicRNNBase):
    """Dynamically quantized ``torch.nn.GRU``."""

    _FLOAT_MODULE = nn.GRU
    _gates = 3

    def _step(self) -> Step:
        return _gru_step


class RNN(_DynamicRNNBase):
    """Dynamically quantized ``torch.nn.RNN``, tanh or relu."""

    _FLOAT_MODULE = nn.RNN
    nonlinearity = "tanh"

    def _step(self) -> Step:
        return _tanh_step if self.nonlinearity == "tanh" else _relu_step

    def _copy_nonlinearity(self, mod: Any) -> None:
        self.nonlinearity = mod.nonlinearity


class _DynamicCellBase(nn.Module):
    _FLOAT_MODULE: type = nn.RNNCell
    _gates = 1

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, dtype: Any = None) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        self.ih = Linear(input_size, self._gates * hidden_size, bias)
        self.hh = Linear(hidden_size, self._gates * hidden_size, bias)

    def _get_name(self) -> str:
        return f"DynamicQuantized{type(self).__name__}"

    def _next(self, step: Step, input: torch.Tensor, state: State | None, states: int) -> State:
        """[N, F] or [F]; a missing state is 0."""
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if state is None:
            current = tuple(x.new_zeros(x.shape[0], self.hidden_size) for _ in range(states))
        else:
            current = tuple(s if batched else s.unsqueeze(0) for s in state)
        if any(tuple(s.shape) != (x.shape[0], self.hidden_size) for s in current):
            raise QuantizationError(
                f"{type(self).__name__}: the state must have shape {(x.shape[0], self.hidden_size)}, got {[tuple(s.shape) for s in current]}"
            )
        new = step(self.ih(x), self.hh(current[0]), current)
        return new if batched else tuple(s.squeeze(0) for s in new)

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """From the float cell with a qconfig; needs no calibration."""
        qconfig = _qconfig_of(cls, mod, cls._FLOAT_MODULE)
        result: Any = cls(mod.input_size, mod.hidden_size, mod.bias)
        result.ih = _dynamic_linear(mod.weight_ih, mod.bias_ih if mod.bias else None, qconfig)
        result.hh = _dynamic_linear(mod.weight_hh, mod.bias_hh if mod.bias else None, qconfig)
        if hasattr(mod, "nonlinearity"):
            result.nonlinearity = mod.nonlinearity
        return result


class LSTMCell(_DynamicCellBase):
    """Dynamically quantized ``torch.nn.LSTMCell``."""

    _FLOAT_MODULE = nn.LSTMCell
    _gates = 4

    def forward(self, input: torch.Tensor, hx: State | None = None) -> State:
        return self._next(_lstm_step, input, hx, 2)


class GRUCell(_DynamicCellBase):
    """Dynamically quantized ``torch.nn.GRUCell``."""

    _FLOAT_MODULE = nn.GRUCell
    _gates = 3

    def forward(self, input: torch.Tensor, hx: torch.Tensor | None = None) -> torch.Tensor:
        return self._next(_gru_step, input, None if hx is None else (hx,), 1)[0]


class RNNCell(_DynamicCellBase):
    """Dynamically quantized ``torch.nn.RNNCell``, tanh or relu."""

    _FLOAT_MODULE = nn.RNNCell
    nonlinearity = "tanh"

    def forward(self, input: torch.Tensor, hx: torch.Tensor | None = None) -> torch.Tensor:
        step = _tanh_step if self.nonlinearity == "tanh" else _relu_step
        return self._next(step, input, None if hx is None else (hx,), 1)[0]
