"""Quantized Linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint import ops
from zeropoint.errors import QuantizationError
from zeropoint.nn import intrinsic as nni
from zeropoint.nn.intrinsic import qat as nniqat
from zeropoint.nn.quantized.modules.weighted import (
    WeightedQuantizedModule,
    observed_qparams,
    quantize_weight,
    quantized_input,
    relu_bound,
    weight_observer,
)
from zeropoint.ops.convolution import Packed
from zeropoint.tensor import QTensor, as_qdtype, make_per_tensor_quantized_tensor, qint8

__all__ = ["Linear"]


class Linear(WeightedQuantizedModule):
    """``y = x @ w.T + b`` on int8, requantized to ``scale`` and ``zero_point``.

    Args:
        in_features, out_features: as in ``torch.nn.Linear``.
        bias_: whether there is a bias.
        dtype: weight dtype, qint8.

    Shape: [..., in_features] to [..., out_features]. Replaces ``torch.ao.nn.quantized.Linear``.
    """

    def __init__(self, in_features: int, out_features: int, bias_: bool = True, dtype: Any = qint8) -> None:
        super().__init__()
        if as_qdtype(dtype) != qint8:
            raise QuantizationError(f"Linear: the weight dtype must be qint8, got {dtype!r}")
        self.in_features, self.out_features = in_features, out_features
        weight = make_per_tensor_quantized_tensor(torch.zeros(out_features, in_features, dtype=torch.int8), 1.0, 0)
        self.set_weight_bias(weight, torch.zeros(out_features) if bias_ else None)

    def _get_name(self) -> str:
        return "QuantizedLinear"

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale}, "
            f"zero_point={self.zero_point}, qscheme={self.weight().qscheme()}"
        )

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_features, self.in_features)

    def _pack_weight(self) -> Packed:
        return ops.linear_pack(self._int_weight, self._w_zero_point)

    def forward(self, x: QTensor) -> QTensor:
        packed = self._ready()
        x = quantized_input(self, x)
        low, high = self._clamp()
        return self._output(
            ops.linear(
                x._data, self._int_weight, packed, self._w_scale, self._w_zero_point, self._bias, x._scale, x._zero_point,
                self._scale, self._zero_point, low, high, self._output_dtype.storage,
            )
        )  # fmt: skip

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Linear:
        """From a prepared float or QAT module with a qconfig and an ``activation_post_process``."""
        linear: Any = mod[0] if isinstance(mod, nni._FusedModule) else mod
        # A QAT Linear with batch norm runs with the batch norm folded in.
        float_weight, bias = linear.folded() if isinstance(linear, nniqat.LinearBn1d) else (linear.weight, linear.bias)
        result = cls._like(linear, mod)
        result.set_weight_bias(quantize_weight(float_weight, weight_observer(mod, linear)), bias)
        result.set_output(*observed_qparams(mod))
        result.relu_max = relu_bound(mod)
        return result

    @classmethod
    def _like(cls, linear: Any, mod: nn.Module) -> Any:
        """An empty module of the sizes of a float one."""
        return cls(linear.in_features, linear.out_features, linear.bias is not None)

    @classmethod
    def from_reference(cls, ref_qlinear: Any, output_scale: float, output_zero_point: int) -> Linear:
        """From a float module with ``get_quantized_weight()``."""
        result = cls(ref_qlinear.in_features, ref_qlinear.out_features, ref_qlinear.bias is not None)
        result.set_weight_bias(ref_qlinear.get_quantized_weight(), ref_qlinear.bias)
        result.scale, result.zero_point = float(output_scale), int(output_zero_point)
        return result
