"""Dynamically quantized Linear with a declared block sparsity."""

from __future__ import annotations

from typing import Any

from zeropoint.nn.quantized.dynamic import linear as dense
from zeropoint.nn.sparse.quantized.linear import BlockSize
from zeropoint.tensor import qint8

__all__ = ["Linear"]


class Linear(BlockSize, dense.Linear):
    """:class:`zeropoint.nn.quantized.dynamic.Linear` that declares a block size. Computed densely, with the same result."""

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
        return "SparseQuantizedDynamicLinear"

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """From a float Linear with a qconfig; block sizes from its ``sparse_params`` (1 by 4 without)."""
        plain = dense.Linear.from_float(mod, use_precomputed_fake_quant)
        block = (getattr(mod, "sparse_params", None) or {}).get("sparse_block_shape", (1, 4))
        result = cls(plain.in_features, plain.out_features, block[0], block[1], plain.bias() is not None)
        result.set_weight_bias(plain.weight(), plain.bias())
        return result
