"""Reference of zeropoint::linear_dynamic and rnn_dynamic: activations quantized to their own range at run time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zeropoint._reference.linear import without_zero_point
from zeropoint._reference.quantize import exp32, fma32
from zeropoint.errors import QuantizationError

__all__ = ["linear_dynamic", "rnn_dynamic"]

_EPS = torch.finfo(torch.float32).eps


def _product(
    operation: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    per_row: bool,
    levels: float,
) -> torch.Tensor:
    """x [M, K] float32 -> [M, N]: ``(float32(acc) * s) * w_scale[n] + bias[n]``, each operation rounded to float32."""
    known = torch.where(torch.isnan(x), 0.0, x)
    if not bool(torch.isfinite(known).all()):
        raise QuantizationError(f"{operation}: the input has infinite values, which leave no range to quantize to")
    rows = known if per_row else known.reshape(1, -1)
    zero = torch.zeros(1, device=x.device)
    low = torch.minimum(rows.amin(1), zero) if rows.numel() else zero
    high = torch.maximum(rows.amax(1), zero) if rows.numel() else zero
    scale = torch.clamp((high - low) / levels, min=_EPS)
    if not bool(torch.isfinite(scale).all()):
        raise QuantizationError(f"{operation}: the range of the input overflows float32")
    zero_point = torch.clamp(0.0 - torch.round(low / scale), 0.0, levels)
    scale, zero_point = scale.unsqueeze(1), zero_point.unsqueeze(1)
    inverse = 1.0 / scale
    value = fma32(x, inverse.expand_as(x).double(), zero_point.expand_as(x).double())
    q = torch.clamp(torch.round(value.double()), 0, 255)
    q = torch.where(torch.isnan(value), zero_point.double(), q)
    acc = (q - zero_point.double()) @ without_zero_point(weight, w_zero_point).double().t()
    # By way of integers: a float64 sum of products can be -0.
    out = (torch.round(acc).to(torch.int64).float() * scale) * w_scale.reshape(1, -1)
    return out if bias is None else out + bias


def linear_dynamic(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    per_row: bool,
    reduce_range: bool,
    relu: bool,
) -> torch.Tensor:
    """x float32 [..., K], weight int8 [N, K] -> float32 [..., N].

    ``x`` is quantized to uint8 over its own range together with 0 (``choose_qparams``), per tensor or per
    row of K; ``reduce_range`` uses 7 bits. NaN is real 0.

    Raises:
        QuantizationError: infinite values.
    """
    flat = x.reshape(-1, x.shape[-1])
    levels = 127.0 if reduce_range else 255.0
    out = _product("linear_dynamic", flat, weight, w_scale, w_zero_point, bias, per_row, levels)
    if relu:
        out = torch.where(out > 0, out, 0.0)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def _tanh(x: torch.Tensor) -> torch.Tensor:
    e = exp32(2.0 * x)
    return (e - 1.0) / (e + 1.0)


def _lstm(a: torch.Tensor, b: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``sigmoid(f) * c + sigmoid(i) * tanh(g)``, ``sigmoid(o) * tanh(c)``; factors share a division."""
    i, f, g, o = (a + b).chunk(4, 1)
    in_, forget, cell, out = exp32(-i), exp32(-f), exp32(2.0 * g), exp32(-o)
    c = c / (1.0 + forget) + (cell - 1.0) / ((1.0 + in_) * (cell + 1.0))
    state = exp32(2.0 * c)
    return (state - 1.0) / ((1.0 + out) * (state + 1.0)), c


def _gru(a: torch.Tensor, b: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``n = tanh(an + sigmoid(r) * bn)``, ``n + sigmoid(z) * (h - n)``."""
    (ra, za, na), (rb, zb, nb) = a.chunk(3, 1), b.chunk(3, 1)
    fresh = _tanh(na + nb / (1.0 + exp32(-(ra + rb))))
    return fresh + (h - fresh) / (1.0 + exp32(-(za + zb))), c


def _rnn_tanh(a: torch.Tensor, b: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _tanh(a + b), c


def _rnn_relu(a: torch.Tensor, b: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total = a + b
    return torch.where(total > 0, total, 0.0), c


_STEPS = (_lstm, _gru, _rnn_tanh, _rnn_relu)


def rnn_dynamic(
    x: torch.Tensor,
    batch_sizes: Sequence[int],
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
    kind: int,
    per_row: bool,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One layer of an LSTM (``kind`` 0), GRU (1), tanh (2) or relu (3) RNN in one direction.

    x float32 [sum of batch_sizes, F], time after time as in a PackedSequence, or [steps, batch, F] without batch_sizes;
    h and c [batch, H] (c empty but for an LSTM). Gives the outputs [sum of batch_sizes, H] or [steps, batch, H], and the
    last states; sequences that have ended keep theirs.
    """
    if x.dim() == 3 and not batch_sizes:
        rest = (h, c, ih, ih_packed, ih_scale, ih_zero_point, ih_bias, hh, hh_packed, hh_scale, hh_zero_point, hh_bias)
        out, h, c = rnn_dynamic(x.flatten(0, 1), [x.shape[1]] * x.shape[0], *rest, kind, per_row, reverse)
        return out.unflatten(0, x.shape[:2]), h, c
    sizes = list(batch_sizes)
    if sum(sizes) != x.shape[0]:
        raise QuantizationError(f"rnn_dynamic: the batch sizes sum to {sum(sizes)}, x has {x.shape[0]} rows")
    inputs = _product("rnn_dynamic", x, ih, ih_scale, ih_zero_point, ih_bias, per_row, 255.0).split(sizes)
    h, c = h.clone(), c.clone()
    outputs: list[torch.Tensor] = [x] * len(sizes)
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        n = sizes[t]
        b = _product("rnn_dynamic", h[:n], hh, hh_scale, hh_zero_point, hh_bias, per_row, 255.0)
        new_h, new_c = _STEPS[kind](inputs[t], b, h[:n], c[:n])
        h[:n] = new_h
        if kind == 0:
            c[:n] = new_c
        outputs[t] = new_h
    return torch.cat(outputs) if outputs else x.new_empty(0, h.shape[1]), h, c
