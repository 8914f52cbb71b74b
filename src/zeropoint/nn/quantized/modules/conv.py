"""Quantized Conv2d."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
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
from zeropoint.tensor import QTensor, make_per_tensor_quantized_tensor

__all__ = ["Conv2d"]

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def _pair(name: str, value: Any) -> tuple[int, int]:
    values = tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value), int(value))
    if len(values) == 1:
        values = values * 2
    if len(values) != 2:
        raise QuantizationError(f"Conv2d: {name} needs one or two values, got {value!r}")
    return values


class Conv2d(WeightedQuantizedModule):
    """2-d convolution on int8, requantized to ``scale`` and ``zero_point``.

    Arguments as in ``torch.nn.Conv2d``, ``padding`` "same" and "valid" and all padding modes included.

    Shape: [N, C, H, W] or [C, H, W]; the output is channels_last. Replaces ``torch.ao.nn.quantized.Conv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if padding_mode not in _PADDING_MODES:
            raise QuantizationError(
                f"Conv2d: padding_mode must be one of {', '.join(_PADDING_MODES)}, got {padding_mode!r}"
            )
        if in_channels % groups or out_channels % groups:
            raise QuantizationError(
                f"Conv2d: in_channels {in_channels} and out_channels {out_channels} must be divisible by groups {groups}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair("kernel_size", kernel_size), _pair("stride", stride)
        self.dilation = _pair("dilation", dilation)
        self.padding_mode = padding_mode
        self.padding: Any = padding if isinstance(padding, str) else _pair("padding", padding)
        self.transposed, self.output_padding = False, (0, 0)
        self._explicit_padding, self._kernel_padding = self._resolve_padding()
        weight = make_per_tensor_quantized_tensor(torch.zeros(self._weight_shape(), dtype=torch.int8), 1.0, 0)
        self.set_weight_bias(weight, torch.zeros(out_channels) if bias else None)

    def _resolve_padding(self) -> tuple[list[int] | None, list[int]]:
        """What F.pad has to add (left, right, top, bottom), if anything, and what the kernel pads by itself."""
        if self.padding == "valid":
            return None, [0, 0]
        if self.padding == "same":
            if self.stride != (1, 1):
                raise QuantizationError("Conv2d: padding='same' needs stride 1")
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            if self.padding_mode == "zeros" and not any(t % 2 for t in total):
                return None, [t // 2 for t in total]
            return [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2], [0, 0]
        if isinstance(self.padding, str):
            raise QuantizationError(f"Conv2d: padding must be 'same', 'valid' or numbers, got {self.padding!r}")
        if self.padding_mode == "zeros":
            return None, list(self.padding)
        return [self.padding[1], self.padding[1], self.padding[0], self.padding[0]], [0, 0]

    def _get_name(self) -> str:
        return "QuantizedConv2d"

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, scale={self.scale}, zero_point={self.zero_point}"
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias() is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def _pack_weight(self) -> torch.Tensor:
        return ops.conv2d_pack(self._int_weight, self._w_zero_point, self.dilation, self.groups)

    def forward(self, input: QTensor) -> QTensor:
        packed = self._ready()
        x = quantized_input(self, input)
        data = x._data  # plain: questions to a QTensor take the long way through __torch_function__
        if data.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)  # type: ignore[arg-type, return-value]
        if data.dim() != 4 or data.shape[1] != self.in_channels:
            raise QuantizationError(
                f"{self._qualified_name or 'Conv2d'}: the input must be [N, {self.in_channels}, H, W], got {tuple(data.shape)}"
            )
        if self._explicit_padding is not None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            data = F.pad(x, self._explicit_padding, mode)._data  # type: ignore[attr-defined]
        low, high = self._clamp()
        return self._output(
            ops.conv2d(
                data, self._int_weight, packed, self._w_scale, self._w_zero_point, self._bias, self.stride, self._kernel_padding,
                self.dilation, self.groups, x._scale, x._zero_point, self._scale, self._zero_point, low, high, self._output_dtype.storage,
            )
        )  # fmt: skip

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Conv2d:
        """From a prepared float or QAT module with a qconfig and an ``activation_post_process``."""
        conv: Any = mod[0] if isinstance(mod, nni.ConvReLU2d) else mod
        # A QAT convolution with batch norm runs with the batch norm folded in.
        float_weight, bias = conv.folded() if isinstance(conv, nniqat.ConvBn2d) else (conv.weight, conv.bias)
        weight = quantize_weight(float_weight, weight_observer(mod, conv))
        result = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias is not None,
            conv.padding_mode,
        )
        result.set_weight_bias(weight, bias)
        result.set_output(*observed_qparams(mod))
        result.relu_max = relu_bound(mod)
        return result

    @classmethod
    def from_reference(cls, ref_qconv: Any, output_scale: float, output_zero_point: int) -> Conv2d:
        """From a float module with ``get_quantized_weight()``."""
        result = cls(
            ref_qconv.in_channels,
            ref_qconv.out_channels,
            ref_qconv.kernel_size,
            ref_qconv.stride,
            ref_qconv.padding,
            ref_qconv.dilation,
            ref_qconv.groups,
            ref_qconv.bias is not None,
            ref_qconv.padding_mode,
        )
        result.set_weight_bias(ref_qconv.get_quantized_weight(), ref_qconv.bias)
        result.scale, result.zero_point = float(output_scale), int(output_zero_point)
        return result
