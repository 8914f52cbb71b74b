"""Quantized convolutions and transposed convolutions of one to three dimensions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

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
from zeropoint.ops.convolution import Convolution, Packed
from zeropoint.tensor import QTensor, make_per_tensor_quantized_tensor

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_SHAPES = {1: "L", 2: "H, W", 3: "D, H, W"}


def _sizes(module: str, name: str, value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),) * dims
    if len(values) == 1:
        values = values * dims
    if len(values) != dims:
        raise QuantizationError(f"{module}: {name} needs one value or {dims}, got {value!r}")
    return values


class _ConvBase(WeightedQuantizedModule):
    """What all convolutions share. ``_dims`` spatial dimensions."""

    _dims = 2

    def _set_up(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        padding_mode: str,
        transposed: bool,
        output_padding: Any,
    ) -> None:
        name = type(self).__name__
        if padding_mode not in _PADDING_MODES:
            raise QuantizationError(
                f"{name}: padding_mode must be one of {', '.join(_PADDING_MODES)}, got {padding_mode!r}"
            )
        if in_channels % groups or out_channels % groups:
            raise QuantizationError(
                f"{name}: in_channels {in_channels} and out_channels {out_channels} must be divisible by groups {groups}"
            )
        sizes = lambda argument, value: _sizes(name, argument, value, self._dims)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = sizes("kernel_size", kernel_size), sizes("stride", stride)
        self.dilation = sizes("dilation", dilation)
        self.padding_mode = padding_mode
        self.padding: Any = padding if isinstance(padding, str) else sizes("padding", padding)
        self.transposed, self.output_padding = transposed, sizes("output_padding", output_padding)
        self._explicit_padding, kernel_padding = self._resolve_padding()
        self._convolution = Convolution(
            self.stride, kernel_padding, self.dilation, groups, transposed, self.output_padding
        )
        weight = make_per_tensor_quantized_tensor(torch.zeros(self._weight_shape(), dtype=torch.int8), 1.0, 0)
        self.set_weight_bias(weight, torch.zeros(out_channels) if bias else None)

    def _resolve_padding(self) -> tuple[list[int] | None, tuple[int, ...]]:
        """What F.pad has to add (last dimension first), if anything, and what the kernel pads by itself."""
        name, none = type(self).__name__, (0,) * self._dims
        if self.padding == "valid":
            return None, none
        if self.padding == "same":
            if any(s != 1 for s in self.stride):
                raise QuantizationError(f"{name}: padding='same' needs stride 1")
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            if self.padding_mode == "zeros" and not any(t % 2 for t in total):
                return None, tuple(t // 2 for t in total)
            return [side for t in reversed(total) for side in (t // 2, t - t // 2)], none
        if isinstance(self.padding, str):
            raise QuantizationError(f"{name}: padding must be 'same', 'valid' or numbers, got {self.padding!r}")
        if self.padding_mode == "zeros":
            return None, self.padding
        return [p for p in reversed(self.padding) for _ in (0, 1)], none

    def _get_name(self) -> str:
        return f"Quantized{type(self).__name__}"

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, scale={self.scale}, zero_point={self.zero_point}"
        if self.padding != (0,) * self._dims:
            text += f", padding={self.padding}"
        if self.dilation != (1,) * self._dims:
            text += f", dilation={self.dilation}"
        if self.output_padding != (0,) * self._dims:
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias() is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text

    def _weight_shape(self) -> tuple[int, ...]:
        if self.transposed:
            return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def _outputs(self) -> int:
        return self.out_channels

    def _kernel_form(
        self, data: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        spread = self._convolution.per_output_channel
        return self._convolution.kernel_weight(data), spread(scale).contiguous(), spread(zero_point).contiguous()

    def _pack_weight(self) -> Packed:
        return self._convolution.pack(self._int_weight, self._w_zero_point)

    def _check_input(self, data: torch.Tensor) -> None:
        if data.dim() != self._dims + 2 or data.shape[1] != self.in_channels:
            raise QuantizationError(
                f"{self._qualified_name or type(self).__name__}: the input must be [N, {self.in_channels}, {_SHAPES[self._dims]}] "
                f"or [{self.in_channels}, {_SHAPES[self._dims]}], got {tuple(data.shape)}"
            )

    def forward(self, input: QTensor) -> QTensor:
        packed = self._ready()
        x = quantized_input(self, input)
        data = x._data  # plain: questions to a QTensor take the long way through __torch_function__
        if data.dim() == self._dims + 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)  # type: ignore[arg-type, return-value]
        self._check_input(data)
        if self._explicit_padding is not None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            data = F.pad(x, self._explicit_padding, mode)._data  # type: ignore[attr-defined]
        low, high = self._clamp()
        return self._output(
            self._convolution(
                data, self._int_weight, packed, self._w_scale, self._w_zero_point, self._bias, self.kernel_size, x._scale,
                x._zero_point, self._scale, self._zero_point, low, high, self._output_dtype.storage,
            )
        )  # fmt: skip

    @classmethod
    def _like(cls, conv: Any, bias: bool) -> Any:
        """An empty module of the geometry of a float one."""
        arguments = [conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding]
        if conv.transposed:
            arguments += [conv.output_padding, conv.groups, bias, conv.dilation, conv.padding_mode]
        else:
            arguments += [conv.dilation, conv.groups, bias, conv.padding_mode]
        return cls(*arguments)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Any:
        """From a prepared float or QAT module with a qconfig and an ``activation_post_process``."""
        conv: Any = mod[0] if isinstance(mod, nni._FusedModule) else mod
        # A QAT convolution with batch norm runs with the batch norm folded in.
        float_weight, bias = conv.folded() if isinstance(conv, nniqat._ConvBnNd) else (conv.weight, conv.bias)
        weight = quantize_weight(float_weight, weight_observer(mod, conv, cls._weight_axis))
        result = cls._like(conv, bias is not None)
        result.set_weight_bias(weight, bias)
        result.set_output(*observed_qparams(mod))
        result.relu_max = relu_bound(mod)
        return result

    @classmethod
    def from_reference(cls, ref_qconv: Any, output_scale: float, output_zero_point: int) -> Any:
        """From a float module with ``get_quantized_weight()``."""
        result = cls._like(ref_qconv, ref_qconv.bias is not None)
        result.set_weight_bias(ref_qconv.get_quantized_weight(), ref_qconv.bias)
        result.scale, result.zero_point = float(output_scale), int(output_zero_point)
        return result


class _ConvNd(_ConvBase):
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
        self._set_up(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, False, 0
        )


class Conv1d(_ConvNd):
    """1-d convolution on int8, requantized to ``scale`` and ``zero_point``.

    Arguments as in ``torch.nn.Conv1d``, ``padding`` "same" and "valid" and all padding modes included.

    Shape: [N, C, L] or [C, L]. Replaces ``torch.ao.nn.quantized.Conv1d``.
    """

    _dims = 1


class Conv2d(_ConvNd):
    """2-d convolution on int8, requantized to ``scale`` and ``zero_point``.

    Arguments as in ``torch.nn.Conv2d``, ``padding`` "same" and "valid" and all padding modes included.

    Shape: [N, C, H, W] or [C, H, W]; the output is channels_last. Replaces ``torch.ao.nn.quantized.Conv2d``.
    """


class Conv3d(_ConvNd):
    """3-d convolution on int8, requantized to ``scale`` and ``zero_point``.

    Arguments as in ``torch.nn.Conv3d``, ``padding`` "same" and "valid" and all padding modes included.

    Shape: [N, C, D, H, W] or [C, D, H, W]. Replaces ``torch.ao.nn.quantized.Conv3d``.
    """

    _dims = 3


class _ConvTransposeNd(_ConvBase):
    _weight_axis = 1  # of [in, out / groups, *kernel]; groups share the scales of their channels

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if padding_mode != "zeros":
            raise QuantizationError(f'Only "zeros" padding mode is supported for {name}, got {padding_mode!r}')
        if isinstance(padding, str):
            raise QuantizationError(f"{name}: padding must be numbers, got {padding!r}")
        self._set_up(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            True,
            output_padding,
        )

    def forward(self, input: QTensor, output_size: Any = None) -> QTensor:
        if output_size is None:
            return super().forward(input)
        raise QuantizationError(
            f"{self._qualified_name or type(self).__name__}: output_size is not supported; set output_padding"
        )


class ConvTranspose1d(_ConvTransposeNd):
    """1-d transposed convolution on int8; arguments as in ``torch.nn.ConvTranspose1d``.

    Weights per channel are per output channel within a group (axis 1), which torch did not support.
    """

    _dims = 1


class ConvTranspose2d(_ConvTransposeNd):
    """2-d transposed convolution on int8; see :class:`ConvTranspose1d`."""


class ConvTranspose3d(_ConvTransposeNd):
    """3-d transposed convolution on int8; see :class:`ConvTranspose1d`."""

    _dims = 3
