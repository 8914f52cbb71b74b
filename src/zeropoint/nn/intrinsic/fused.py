"""Sequences of float modules that quantize as one. Wherever torch takes a ReLU, a ReLU6 serves too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zeropoint.errors import QuantizationError

_Types = type | tuple[type, ...]
_RELU = (nn.ReLU, nn.ReLU6)


class _FusedModule(nn.Sequential):
    """Base of the fused modules: a Sequential whose members' types are fixed."""

    _members: tuple[_Types, ...] = ()

    def __init__(self, *modules: nn.Module) -> None:
        for position, (module, types) in enumerate(zip(modules, self._members, strict=True)):
            if not isinstance(module, types):
                accepted = " or ".join(t.__name__ for t in (types if isinstance(types, tuple) else (types,)))
                raise QuantizationError(
                    f"{type(self).__name__}: module {position} must be {accepted}, got {type(module).__name__}"
                )
        super().__init__(*modules)


class ConvReLU1d(_FusedModule):
    """Conv1d, ReLU."""

    _members = (nn.Conv1d, _RELU)

    def __init__(self, conv: nn.Conv1d, relu: nn.Module) -> None:
        super().__init__(conv, relu)


class ConvReLU2d(_FusedModule):
    """Conv2d, ReLU."""

    _members = (nn.Conv2d, _RELU)

    def __init__(self, conv: nn.Conv2d, relu: nn.Module) -> None:
        super().__init__(conv, relu)


class ConvReLU3d(_FusedModule):
    """Conv3d, ReLU."""

    _members = (nn.Conv3d, _RELU)

    def __init__(self, conv: nn.Conv3d, relu: nn.Module) -> None:
        super().__init__(conv, relu)


class LinearReLU(_FusedModule):
    """Linear, ReLU."""

    _members = (nn.Linear, _RELU)

    def __init__(self, linear: nn.Linear, relu: nn.Module) -> None:
        super().__init__(linear, relu)


class ConvBn1d(_FusedModule):
    """Conv1d, BatchNorm1d (training)."""

    _members = (nn.Conv1d, nn.BatchNorm1d)

    def __init__(self, conv: nn.Conv1d, bn: nn.BatchNorm1d) -> None:
        super().__init__(conv, bn)


class ConvBn2d(_FusedModule):
    """Conv2d, BatchNorm2d (training)."""

    _members = (nn.Conv2d, nn.BatchNorm2d)

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
        super().__init__(conv, bn)


class ConvBn3d(_FusedModule):
    """Conv3d, BatchNorm3d (training)."""

    _members = (nn.Conv3d, nn.BatchNorm3d)

    def __init__(self, conv: nn.Conv3d, bn: nn.BatchNorm3d) -> None:
        super().__init__(conv, bn)


class ConvBnReLU1d(_FusedModule):
    """Conv1d, BatchNorm1d, ReLU (training)."""

    _members = (nn.Conv1d, nn.BatchNorm1d, _RELU)

    def __init__(self, conv: nn.Conv1d, bn: nn.BatchNorm1d, relu: nn.Module) -> None:
        super().__init__(conv, bn, relu)


class ConvBnReLU2d(_FusedModule):
    """Conv2d, BatchNorm2d, ReLU (training)."""

    _members = (nn.Conv2d, nn.BatchNorm2d, _RELU)

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, relu: nn.Module) -> None:
        super().__init__(conv, bn, relu)


class ConvBnReLU3d(_FusedModule):
    """Conv3d, BatchNorm3d, ReLU (training)."""

    _members = (nn.Conv3d, nn.BatchNorm3d, _RELU)

    def __init__(self, conv: nn.Conv3d, bn: nn.BatchNorm3d, relu: nn.Module) -> None:
        super().__init__(conv, bn, relu)


class BNReLU2d(_FusedModule):
    """BatchNorm2d, ReLU."""

    _members = (nn.BatchNorm2d, _RELU)

    def __init__(self, batch_norm: nn.BatchNorm2d, relu: nn.Module) -> None:
        super().__init__(batch_norm, relu)


class BNReLU3d(_FusedModule):
    """BatchNorm3d, ReLU."""

    _members = (nn.BatchNorm3d, _RELU)

    def __init__(self, batch_norm: nn.BatchNorm3d, relu: nn.Module) -> None:
        super().__init__(batch_norm, relu)


class LinearBn1d(_FusedModule):
    """Linear, BatchNorm1d (training)."""

    _members = (nn.Linear, nn.BatchNorm1d)

    def __init__(self, linear: nn.Linear, bn: nn.BatchNorm1d) -> None:
        super().__init__(linear, bn)


class LinearLeakyReLU(_FusedModule):
    """Linear, LeakyReLU."""

    _members = (nn.Linear, nn.LeakyReLU)

    def __init__(self, linear: nn.Linear, leaky_relu: nn.LeakyReLU) -> None:
        super().__init__(linear, leaky_relu)


class LinearTanh(_FusedModule):
    """Linear, Tanh."""

    _members = (nn.Linear, nn.Tanh)

    def __init__(self, linear: nn.Linear, tanh: nn.Tanh) -> None:
        super().__init__(linear, tanh)


class ConvAdd2d(_FusedModule):
    """``add(conv(x1), x2)``; ``add`` is a function of two tensors or a module."""

    def __init__(self, conv: nn.Conv2d, add: Callable[..., torch.Tensor]) -> None:
        nn.Sequential.__init__(self, conv)
        self.add: Any = add

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.add(self[0](x1), x2)


class ConvAddReLU2d(_FusedModule):
    """``relu(add(conv(x1), x2))``."""

    def __init__(self, conv: nn.Conv2d, add: Callable[..., torch.Tensor], relu: nn.Module) -> None:
        nn.Sequential.__init__(self, conv)
        self.add: Any = add
        self.relu = relu

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.relu(self.add(self[0](x1), x2))
