"""Linear that trains for ``quantize_dynamic``."""

from __future__ import annotations

from typing import Any

from zeropoint.errors import QuantizationError
from zeropoint.nn.qat import linear as _linear

__all__ = ["Linear"]


class Linear(_linear.Linear):
    """QAT Linear whose qconfig quantizes activations dynamically (``default_dynamic_qat_qconfig``).

    Raises:
        QuantizationError: the qconfig's activations are not dynamic.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        qconfig: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, qconfig, device, dtype)
        if not getattr(qconfig.activation(), "is_dynamic", False):
            raise QuantizationError(
                "Dynamic QAT requires a memoryless observer: the qconfig's activation must have is_dynamic=True"
            )
