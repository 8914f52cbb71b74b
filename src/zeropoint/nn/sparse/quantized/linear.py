"""Statically quantized Linear with a declared block sparsity."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.modules import linear as dense
from zeropoint.tensor import QTensor, qint8

__all__ = ["BlockSize", "Linear", "LinearPackedParams"]


class LinearPackedParams(nn.Module):
    """Weight, bias and block size of a sparse Linear."""

    def __init__(self, row_block_size: int = 1, col_block_size: int = 4, dtype: Any = qint8) -> None:
        super().__init__()
        self.row_block_size, self.col_block_size = row_block_size, col_block_size
        self._weight: QTensor | None = None
        self._bias: torch.Tensor | None = None

    def set_weight_bias(
        self, weight: QTensor, bias: torch.Tensor | None, row_block_size: int | None, col_block_size: int | None
    ) -> None:
        if row_block_size is None or col_block_size is None:
            raise QuantizationError("LinearPackedParams: row_block_size and col_block_size are needed")
        self._weight, self._bias = weight, bias
        self.row_block_size, self.col_block_size = row_block_size, col_block_size

    def _weight_bias(self) -> tuple[Any, Any, int, int]:
        return self._weight, self._bias, self.row_block_size, self.col_block_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class BlockSize(nn.Module):
    """Mixed into a dense quantized Linear, before it: the block size it declares."""

    row_block_size: int
    col_block_size: int

    def set_block_size(self, row_block_size: int | None, col_block_size: int | None) -> None:
        if not row_block_size or not col_block_size:
            raise QuantizationError(f"{type(self).__name__}: row_block_size and col_block_size must be positive")
        self.row_block_size, self.col_block_size = row_block_size, col_block_size

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, row_block_size={self.row_block_size}, col_block_size={self.col_block_size}"

    def set_weight_bias(
        self, w: Any, b: torch.Tensor | None, row_block_size: int | None = None, col_block_size: int | None = None
    ) -> None:
        """As the dense module's, and the block size if one is given."""
        dense_module: Any = super()
        dense_module.set_weight_bias(w, b)
        if row_block_size is not None or col_block_size is not None:
            self.set_block_size(row_block_size, col_block_size)


class Linear(BlockSize, dense.Linear):
    """:class:`zeropoint.nn.quantized.Linear` that declares a block size. Computed densely, with the same result."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        row_block_size: int,
        col_block_size: int,
        bias: bool = True,
        dtype: Any = qint8,
    ) -> None:
        dense.Linear.__init__(self, in_features, out_features, bias, dtype)
        self.set_block_size(row_block_size, col_block_size)

    def _get_name(self) -> str:
        return "SparseQuantizedLinear"

    @classmethod
    def _like(cls, linear: Any, mod: nn.Module) -> Any:
        sparse: Any = getattr(mod, "sparse_params", None) or {}
        block = sparse.get("sparse_block_shape", (1, 4))
        return cls(linear.in_features, linear.out_features, block[0], block[1], linear.bias is not None)
