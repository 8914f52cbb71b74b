"""Linear with 8- or 4-bit weights in groups and float activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint import ops
from zeropoint._reference.grouped import check_group_size
from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.dynamic.linear import float_input
from zeropoint.nn.quantized.modules.weighted import PackedOnUse

__all__ = ["WeightOnlyLinear", "check_weight_only", "quantize_in_groups"]

_SMALLEST = 2.0**-100


def check_weight_only(operation: str, bits: int, group_size: int, activation_bits: int) -> None:
    """Raises QuantizationError for what the product of ``operation`` does not have."""
    if bits not in (4, 8):
        raise QuantizationError(f"{operation}: bits must be 4 or 8, got {bits}")
    check_group_size(operation, group_size)
    if activation_bits not in (8, 15):
        raise QuantizationError(f"{operation}: activation_bits must be 8 or 15, got {activation_bits}")


def quantize_in_groups(
    operation: str, weight: torch.Tensor, bits: int, group_size: int, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A float weight [N, K] as int8 [N, K] of ``bits`` bits, scales [N, groups] and zero points (None if symmetric).

    Raises:
        QuantizationError: NaN or infinity.
    """
    if not bool(torch.isfinite(weight).all()):
        raise QuantizationError(f"{operation}: the weight has NaN or infinite values")
    outputs, inputs = weight.shape
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    groups = -(-inputs // group_size)
    weight = weight.detach().float()
    # A short last group is filled with a value of its own, which does not widen its range.
    filling = weight[:, -1:].expand(-1, groups * group_size - inputs)
    grouped = torch.cat([weight, filling], 1).reshape(outputs, groups, group_size)
    smallest, largest = grouped.amin(2, keepdim=True), grouped.amax(2, keepdim=True)
    widest = torch.maximum(-smallest, largest) * 2 if symmetric else largest - smallest
    scale = (widest / (high - low)).clamp(min=_SMALLEST)
    zero_point = torch.zeros_like(scale) if symmetric else low - smallest / scale
    q = torch.round(grouped / scale + zero_point).clamp(low, high).to(torch.int8)
    q = q.reshape(outputs, -1)[:, :inputs].contiguous()
    return q, scale.squeeze(2).contiguous(), None if symmetric else zero_point.squeeze(2).contiguous()


class WeightOnlyLinear(PackedOnUse):
    """Float in, float out; weights of 8 or 4 bits with a scale (and zero point) per group of inputs.

    With ``activation_bits`` 15 the activations count as float: they enter the integer product with 15 bits per
    group, more than bfloat16 has. With 8 the product is twice as fast and the input is rounded as in
    :class:`~zeropoint.nn.quantized.dynamic.Linear`, per group. Results are the same bits on every CPU. NaN in the
    input is real 0 in the product; infinities are an error.

    Shape: [..., in_features] to [..., out_features], of the input's dtype (float32, bfloat16, float16).

    State: ``weight`` (int8 [N, K]; for 4 bits uint8 [N, ceil(K / 2)], the even input in the low half, each plus
    8), ``weight_scale`` (float32 [N, groups]), ``weight_zero_point`` (float32, same shape, if affine: a weight is
    ``scale * (q - zero_point)``, and the zero point need not be an integer), ``bias``,
    ``group_size``, ``activation_bits``.

    Args:
        group_size: inputs that share a scale, a multiple of 32 up to 256; the last group may be shorter.
    """

    _weight: torch.Tensor  # int8 [N, K], whatever the bits
    _scale: torch.Tensor
    _zero_point: torch.Tensor | None
    _bias: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        bits: int = 4,
        group_size: int = 64,
        activation_bits: int = 15,
    ) -> None:
        super().__init__()
        check_weight_only("WeightOnlyLinear", bits, group_size, activation_bits)
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size, self.activation_bits = bits, group_size, activation_bits
        self.set_weight_bias(torch.zeros(out_features, in_features), torch.zeros(out_features) if bias else None)

    def _get_name(self) -> str:
        return "WeightOnlyQuantizedLinear"

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, "
        text += f"group_size={self.group_size}, activation_bits={self.activation_bits}"
        return text + (", affine" if self._zero_point is not None else "")

    def set_weight_bias(self, weight: torch.Tensor, bias: torch.Tensor | None, symmetric: bool = True) -> None:
        """Quantizes a float weight [out_features, in_features].

        Raises:
            QuantizationError: another shape, NaN or infinity.
        """
        shape = (self.out_features, self.in_features)
        if tuple(weight.shape) != shape:
            raise QuantizationError(
                f"WeightOnlyLinear.set_weight_bias: the weight must have shape {shape}, got {tuple(weight.shape)}"
            )
        self._weight, self._scale, self._zero_point = quantize_in_groups(
            "WeightOnlyLinear.set_weight_bias", weight, self.bits, self.group_size, symmetric
        )
        self._bias = None if bias is None else bias.detach().float().contiguous()
        self._packed = None

    def dequantized_weight(self) -> torch.Tensor:
        """float32 [out_features, in_features]: the weight as the product sees it."""
        spread = lambda t: t.repeat_interleave(self.group_size, 1)[:, : self.in_features].float()
        q = self._weight.float() if self._zero_point is None else self._weight.float() - spread(self._zero_point)
        return q * spread(self._scale)

    def bias(self) -> torch.Tensor | None:
        return self._bias

    def _pack_weight(self) -> torch.Tensor:
        return ops.linear_grouped_pack(self._weight, self._scale, self._zero_point, self.group_size, self.bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (
            type(x) is torch.Tensor
            and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
            and x.shape[-1:] == (self.in_features,)
        ):
            x = float_input(self, x, self.in_features)
        return ops.linear_grouped(
            x.detach(), self._weight, self.pack(), self._scale, self._zero_point, self._bias, self.group_size, self.bits,
            self.activation_bits, False,
        )  # fmt: skip

    @classmethod
    def from_float(
        cls, mod: nn.Linear, bits: int = 4, group_size: int = 64, symmetric: bool = False, activation_bits: int = 15
    ) -> WeightOnlyLinear:
        """From a float Linear; needs no calibration and no qconfig."""
        if not isinstance(mod, nn.Linear):
            raise QuantizationError(f"WeightOnlyLinear.from_float works for Linear, got {type(mod).__name__}")
        result = cls(mod.in_features, mod.out_features, mod.bias is not None, bits, group_size, activation_bits)
        result.set_weight_bias(mod.weight, mod.bias, symmetric)
        return result

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight = self._weight
        if self.bits == 4:
            shifted = nn.functional.pad((weight + 8).to(torch.uint8), (0, self.in_features % 2))
            weight = shifted[:, ::2] | shifted[:, 1::2] << 4
        destination[prefix + "weight"] = weight
        destination[prefix + "weight_scale"] = self._scale
        if self._zero_point is not None:
            destination[prefix + "weight_zero_point"] = self._zero_point
        if self._bias is not None:
            destination[prefix + "bias"] = self._bias
        destination[prefix + "group_size"] = torch.tensor(self.group_size)
        destination[prefix + "activation_bits"] = torch.tensor(self.activation_bits)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        required, optional = (
            ("weight", "weight_scale", "group_size", "activation_bits"),
            ("weight_zero_point", "bias"),
        )
        values = {name: state_dict.get(prefix + name) for name in required + optional}
        missing_keys.extend(prefix + name for name in required if values[name] is None)
        own = {prefix + name for name in values}
        rest = {k: v for k, v in state_dict.items() if k not in own}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if all(values[name] is not None for name in required):
            try:
                self._load(values)
            except QuantizationError as error:
                error_msgs.append(f"{prefix}weight: {error}")

    def _load(self, values: dict[str, Any]) -> None:
        weight, scale, zero_point, bias = (values[n] for n in ("weight", "weight_scale", "weight_zero_point", "bias"))
        group_size, activation_bits = int(values["group_size"]), int(values["activation_bits"])
        bits = 4 if weight.dtype == torch.uint8 else 8
        check_weight_only("WeightOnlyLinear", bits, group_size, activation_bits)
        shape = (self.out_features, -(-self.in_features // 2) if bits == 4 else self.in_features)
        groups = (self.out_features, -(-self.in_features // group_size))
        if tuple(weight.shape) != shape or weight.dtype not in (torch.uint8, torch.int8):
            raise QuantizationError(
                f"expected int8 {(self.out_features, self.in_features)} or uint8 of half as many columns, got {weight.dtype} {tuple(weight.shape)}"
            )
        if tuple(scale.shape) != groups or not bool(torch.isfinite(scale).all() & (scale > 0).all()):
            raise QuantizationError(f"weight_scale must be finite, above 0 and of shape {groups}")
        if zero_point is not None and (tuple(zero_point.shape) != groups or not bool(torch.isfinite(zero_point).all())):
            raise QuantizationError(f"weight_zero_point must be finite and of shape {groups}")
        zero_point = None if zero_point is None else zero_point.float().contiguous()
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise QuantizationError(f"bias must have shape {(self.out_features,)}, got {tuple(bias.shape)}")
        if bits == 4:
            weight = torch.stack([weight & 15, weight >> 4], 2).reshape(self.out_features, -1)[:, : self.in_features]
            weight = weight.to(torch.int8) - 8
        self.bits, self.group_size, self.activation_bits = bits, group_size, activation_bits
        self._weight, self._scale, self._zero_point = weight.contiguous(), scale.float().contiguous(), zero_point
        self._bias = None if bias is None else bias.float().contiguous()
        self._packed = None
