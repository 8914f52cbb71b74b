"""How each sequence of modules fuses into one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from zeropoint.errors import QuantizationError
from zeropoint.nn import intrinsic as nni

__all__ = [
    "fuse_conv_bn",
    "fuse_conv_bn_relu",
    "fuse_convtranspose_bn",
    "fuse_linear_bn",
    "get_fuser_method",
    "get_fuser_method_new",
]

_CONV_BN: dict[type, type] = {nn.Conv1d: nni.ConvBn1d, nn.Conv2d: nni.ConvBn2d, nn.Conv3d: nni.ConvBn3d}
_CONV_RELU: dict[type, type] = {nn.Conv1d: nni.ConvReLU1d, nn.Conv2d: nni.ConvReLU2d, nn.Conv3d: nni.ConvReLU3d}
_CONV_BN_RELU: dict[type, type] = {
    nn.Conv1d: nni.ConvBnReLU1d,
    nn.Conv2d: nni.ConvBnReLU2d,
    nn.Conv3d: nni.ConvBnReLU3d,
}


def _check(operation: str, is_qat: bool, module: nn.Module, bn: Any, channels: int) -> None:
    if module.training != bn.training:
        raise QuantizationError(f"{operation}: the modules must all be in train mode or all in eval mode")
    if is_qat:
        if bn.num_features != channels:
            raise QuantizationError(
                f"{operation}: the batch norm has {bn.num_features} features, the module before it {channels} output channels"
            )
        if not bn.affine or not bn.track_running_stats:
            raise QuantizationError(
                f"{operation}: only a batch norm with affine=True and track_running_stats=True fuses for training"
            )


def fuse_conv_bn(is_qat: bool, conv: Any, bn: Any) -> nn.Module:
    """Conv and BatchNorm: folded into the conv's weights in eval mode, ``ConvBn`` in train mode or for QAT.

    Raises:
        QuantizationError: mixed train and eval modes, or a batch norm that does not fit.
    """
    is_qat = is_qat or conv.training
    _check("fuse_conv_bn", is_qat, conv, bn, conv.out_channels)
    if is_qat:
        return _CONV_BN[type(conv)](conv, bn)
    return fuse_conv_bn_eval(conv, bn)


def fuse_conv_bn_relu(is_qat: bool, conv: Any, bn: Any, relu: nn.Module) -> nn.Module:
    """Conv, BatchNorm and ReLU (or ReLU6); see :func:`fuse_conv_bn`."""
    if conv.training != relu.training:
        raise QuantizationError("fuse_conv_bn_relu: the modules must all be in train mode or all in eval mode")
    is_qat = is_qat or conv.training
    _check("fuse_conv_bn_relu", is_qat, conv, bn, conv.out_channels)
    if is_qat:
        return _CONV_BN_RELU[type(conv)](conv, bn, relu)
    return _CONV_RELU[type(conv)](fuse_conv_bn_eval(conv, bn), relu)


def fuse_linear_bn(is_qat: bool, linear: Any, bn: Any) -> nn.Module:
    """Linear and BatchNorm1d; see :func:`fuse_conv_bn`."""
    is_qat = is_qat or linear.training
    _check("fuse_linear_bn", is_qat, linear, bn, linear.out_features)
    if is_qat:
        return nni.LinearBn1d(linear, bn)
    return fuse_linear_bn_eval(linear, bn)


def fuse_convtranspose_bn(is_qat: bool, convt: Any, bn: Any) -> nn.Module:
    """ConvTranspose and BatchNorm, in eval only."""
    _check("fuse_convtranspose_bn", False, convt, bn, convt.out_channels)
    if is_qat:
        raise QuantizationError(
            "fuse_convtranspose_bn: fusing ConvTranspose and BatchNorm for training is not supported"
        )
    return fuse_conv_bn_eval(convt, bn, transpose=True)


def _wrap(cls: type) -> Callable[..., nn.Module]:
    return lambda is_qat, *modules: cls(*modules)


_FUSERS: dict[tuple[type, ...], Callable[..., nn.Module]] = {
    (nn.Linear, nn.BatchNorm1d): fuse_linear_bn,
    (nn.ConvTranspose1d, nn.BatchNorm1d): fuse_convtranspose_bn,
    (nn.ConvTranspose2d, nn.BatchNorm2d): fuse_convtranspose_bn,
    (nn.ConvTranspose3d, nn.BatchNorm3d): fuse_convtranspose_bn,
}
for _conv, _bn in ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d)):
    _FUSERS[(_conv, _bn)] = fuse_conv_bn
    for _relu in (nn.ReLU, nn.ReLU6):
        _FUSERS[(_conv, _bn, _relu)] = fuse_conv_bn_relu
        _FUSERS[(_conv, _relu)] = _wrap(_CONV_RELU[_conv])
for _relu in (nn.ReLU, nn.ReLU6):
    _FUSERS[(nn.Linear, _relu)] = _wrap(nni.LinearReLU)
    _FUSERS[(nn.BatchNorm2d, _relu)] = _wrap(nni.BNReLU2d)
    _FUSERS[(nn.BatchNorm3d, _relu)] = _wrap(nni.BNReLU3d)


def get_fuser_method(
    op_list: Any, additional_fuser_method_mapping: dict[Any, Any] | None = None
) -> Callable[..., nn.Module]:
    """The function that fuses modules of these types: ``f(is_qat, *modules)``.

    Raises:
        QuantizationError: no such sequence; names the ones there are.
    """
    table = {**_FUSERS, **(additional_fuser_method_mapping or {})}
    method = table.get(tuple(op_list))
    if method is None:
        known = "; ".join(", ".join(t.__name__ for t in key) for key in sorted(table, key=str))
        raise QuantizationError(
            f"did not find fuser method for: {tuple(t.__name__ for t in op_list)}. Known sequences: {known}"
        )
    return method


def get_fuser_method_new(op_pattern: Any, fuser_method_mapping: dict[Any, Any]) -> Callable[..., nn.Module]:
    """The function for a pattern of types in the given table; raises QuantizationError if there is none."""
    patterns = [op_pattern] if not isinstance(op_pattern, tuple) else [op_pattern, op_pattern[::-1]]
    for pattern in patterns:
        if pattern in fuser_method_mapping:
            return fuser_method_mapping[pattern]
    raise QuantizationError(f"did not find fuser method for: {op_pattern}")
