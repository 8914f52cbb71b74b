"""Dynamically quantized recurrent layers: int8 weights, each product's input quantized to its own range.

Every layer and direction is two dynamic Linear modules, ``ih`` for the inputs of all time steps at once and
``hh`` for the state, so that state, copies and instruction sets are theirs. A layer runs as one operator
(ops.rnn_dynamic): one product for all inputs, then step by step the state's product and the gates in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from zeropoint import ops
from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.dynamic.linear import Linear, float_input, float_weight_dtype
from zeropoint.nn.quantized.modules.weighted import quantize_weight

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

State = tuple[torch.Tensor, ...]
_LSTM, _GRU, _TANH, _RELU = range(4)  # kinds of ops.rnn_dynamic


def _run_layer(
    ih: Linear, hh: Linear, data: torch.Tensor, sizes: list[int], state: State, kind: int, reverse: bool
) -> tuple[torch.Tensor, State]:
    """One layer in one direction over ``data`` [sum of sizes, features], time after time."""
    h, c = state[0], state[1] if kind == _LSTM else state[0].new_zeros(0)
    if ih._float_weight is not None:
        return _run_layer_in_float(ih, hh, data, sizes, (h, c), kind, reverse)
    out, h, c = ops.rnn_dynamic(
        data, sizes, h, c, ih._int_weight, ih.pack(), ih._w_scale, ih._w_zero_point, ih._bias, hh._int_weight, hh.pack(),
        hh._w_scale, hh._w_zero_point, hh._bias, kind, ih.per_row, reverse,
    )  # fmt: skip
    return out, (h, c) if kind == _LSTM else (h,)


def _run_layer_in_float(
    ih: Linear, hh: Linear, data: torch.Tensor, sizes: list[int], state: State, kind: int, reverse: bool
) -> tuple[torch.Tensor, State]:
    """With float16 weights: torch's own layer on the weights as float32."""
    make: Any = {_LSTM: nn.LSTM, _GRU: nn.GRU}.get(kind, nn.RNN)
    options = {} if kind in (_LSTM, _GRU) else {"nonlinearity": "relu" if kind == _RELU else "tanh"}
    hidden = hh.in_features
    layer = make(ih.in_features, hidden, bias=ih._bias is not None, **options).requires_grad_(False)
    for side, linear in (("ih", ih), ("hh", hh)):
        getattr(layer, f"weight_{side}_l0").copy_(linear._float_weight)
        if linear._bias is not None:
            getattr(layer, f"bias_{side}_l0").copy_(linear._bias)
    parts = list(data.split(sizes))
    states = tuple(s.clone() for s in (state if kind == _LSTM else state[:1]))
    outputs = list(parts)
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        n = sizes[t]
        active = tuple(s[None, :n].contiguous() for s in states)
        out, final = layer(parts[t].unsqueeze(0), active if kind == _LSTM else active[0])
        for s, new in zip(states, final if kind == _LSTM else (final,), strict=True):
            s[:n] = new[0]
        outputs[t] = out[0]
    return torch.cat(outputs), states


def _run_projected(
    layer: Any, data: torch.Tensor, sizes: list[int], state: State, reverse: bool
) -> tuple[torch.Tensor, State]:
    """An LSTM layer whose state is projected: each step is three products and the gates."""
    inputs, (h, c) = layer["ih"](data).split(sizes), (state[0].clone(), state[1].clone())
    outputs = list(inputs)
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        n = sizes[t]
        i, f, g, o = (inputs[t] + layer["hh"](h[:n])).chunk(4, 1)
        c[:n] = torch.sigmoid(f) * c[:n] + torch.sigmoid(i) * torch.tanh(g)
        h[:n] = layer["hr"](torch.sigmoid(o) * torch.tanh(c[:n]))
        outputs[t] = h[:n].clone()
    return torch.cat(outputs), (h, c)


def _dynamic_linear(weight: torch.Tensor, bias: torch.Tensor | None, qconfig: Any) -> Linear:
    result = Linear(weight.shape[1], weight.shape[0], bias is not None)
    half = float_weight_dtype(qconfig)
    result.set_weight_bias(
        quantize_weight(weight, qconfig.weight()) if half is None else weight.detach().to(half), bias
    )
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
        proj_size: int = 0,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers, self.proj_size = (
            input_size,
            hidden_size,
            num_layers,
            proj_size,
        )
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional
        directions = 2 if bidirectional else 1
        layers = []
        state = proj_size or hidden_size
        for layer in range(num_layers):
            size = input_size if layer == 0 else state * directions
            for _ in range(directions):
                ih, hh = (Linear(n, self._gates * hidden_size, bias) for n in (size, state))
                parts = (
                    {"ih": ih, "hh": hh, "hr": Linear(hidden_size, proj_size, False)}
                    if proj_size
                    else {"ih": ih, "hh": hh}
                )
                layers.append(nn.ModuleDict(parts))
        self.layers = nn.ModuleList(layers)

    def _get_name(self) -> str:
        return f"DynamicQuantized{type(self).__name__}"

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bidirectional={self.bidirectional}"
        )

    def _kind(self) -> int:
        raise NotImplementedError

    def _run(self, data: torch.Tensor, sizes: list[int], states: State) -> tuple[torch.Tensor, State]:
        directions = 2 if self.bidirectional else 1
        finals: list[State] = []
        for index in range(self.num_layers):
            results = []
            for direction in range(directions):
                at = index * directions + direction
                layer: Any = self.layers[at]
                state = tuple(s[at] for s in states)
                if self.proj_size:
                    out, final = _run_projected(layer, data, sizes, state, direction == 1)
                else:
                    out, final = _run_layer(layer["ih"], layer["hh"], data, sizes, state, self._kind(), direction == 1)
                results.append(out)
                finals.append(final)
            data = results[0] if directions == 1 else torch.cat(results, 1)
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
        if not sizes:
            raise QuantizationError(f"{type(self).__name__}: the input must have at least one step")
        dtype, data = data.dtype, float_input(self, data, self.input_size)
        states = self._initial(hx, sizes[0], data, batched, packed)
        out, finals = self._run(data, sizes, states)
        out, finals = out.to(dtype), tuple(f.to(dtype) for f in finals)
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
        shapes = [(len(self.layers), n, size) for size in (self.proj_size or self.hidden_size, self.hidden_size)]
        shapes = shapes[: self._states]
        if hx is None:
            return tuple(data.new_zeros(shape) for shape in shapes)
        states = tuple(hx) if self._states == 2 else (hx,)
        if not batched:
            states = tuple(s.unsqueeze(1) for s in states)
        if packed is not None and packed.sorted_indices is not None:
            states = tuple(s.index_select(1, packed.sorted_indices) for s in states)
        if [tuple(s.shape) for s in states] != shapes:
            raise QuantizationError(
                f"{type(self).__name__}: the initial state must have shape {shapes}, got {[tuple(s.shape) for s in states]}"
            )
        return tuple(s.detach().float() for s in states)

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """From the float layer with a qconfig, projections included; needs no calibration."""
        qconfig = _qconfig_of(cls, mod, cls._FLOAT_MODULE)
        result: Any = cls(
            mod.input_size, mod.hidden_size, mod.num_layers, mod.bias, mod.batch_first, mod.dropout, mod.bidirectional,
            proj_size=mod.proj_size,
        )  # fmt: skip
        suffixes = [
            f"_l{i}{s}" for i in range(mod.num_layers) for s in (("", "_reverse") if mod.bidirectional else ("",))
        ]
        for layer, suffix in zip(result.layers, suffixes, strict=True):
            for side in ("ih", "hh"):
                bias = getattr(mod, f"bias_{side}{suffix}") if mod.bias else None
                layer[side] = _dynamic_linear(getattr(mod, f"weight_{side}{suffix}"), bias, qconfig)
            if mod.proj_size:
                layer["hr"] = _dynamic_linear(getattr(mod, f"weight_hr{suffix}"), None, qconfig)
        result._copy_nonlinearity(mod)
        return result

    def _copy_nonlinearity(self, mod: Any) -> None:
        pass


class LSTM(_DynamicRNNBase):
    """Dynamically quantized ``torch.nn.LSTM``."""

    _FLOAT_MODULE = nn.LSTM
    _gates = 4
    _states = 2

    def _kind(self) -> int:
        return _LSTM


class GRU(_DynamicRNNBase):
    """Dynamically quantized ``torch.nn.GRU``."""

    _FLOAT_MODULE = nn.GRU
    _gates = 3

    def _kind(self) -> int:
        return _GRU


class RNN(_DynamicRNNBase):
    """Dynamically quantized ``torch.nn.RNN``, tanh or relu."""

    _FLOAT_MODULE = nn.RNN
    nonlinearity = "tanh"

    def _kind(self) -> int:
        return _TANH if self.nonlinearity == "tanh" else _RELU

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

    def _next(self, kind: int, input: torch.Tensor, state: State | None, states: int) -> State:
        """[N, F] or [F]; a missing state is 0."""
        batched = input.dim() == 2
        x = float_input(self, input if batched else input.unsqueeze(0), self.input_size)
        if state is None:
            current = tuple(x.new_zeros(x.shape[0], self.hidden_size) for _ in range(states))
        else:
            current = tuple((s if batched else s.unsqueeze(0)).detach().float() for s in state)
        if any(tuple(s.shape) != (x.shape[0], self.hidden_size) for s in current):
            raise QuantizationError(
                f"{type(self).__name__}: the state must have shape {(x.shape[0], self.hidden_size)}, got {[tuple(s.shape) for s in current]}"
            )
        _, new = _run_layer(self.ih, self.hh, x, [x.shape[0]], current, kind, False)
        return tuple((s if batched else s.squeeze(0)).to(input.dtype) for s in new)

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
        return self._next(_LSTM, input, hx, 2)


class GRUCell(_DynamicCellBase):
    """Dynamically quantized ``torch.nn.GRUCell``."""

    _FLOAT_MODULE = nn.GRUCell
    _gates = 3

    def forward(self, input: torch.Tensor, hx: torch.Tensor | None = None) -> torch.Tensor:
        return self._next(_GRU, input, None if hx is None else (hx,), 1)[0]


class RNNCell(_DynamicCellBase):
    """Dynamically quantized ``torch.nn.RNNCell``, tanh or relu."""

    _FLOAT_MODULE = nn.RNNCell

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh", dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: torch.Tensor, hx: torch.Tensor | None = None) -> torch.Tensor:
        kind = _TANH if self.nonlinearity == "tanh" else _RELU
        return self._next(kind, input, None if hx is None else (hx,), 1)[0]
