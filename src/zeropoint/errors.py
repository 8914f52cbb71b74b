"""The exceptions zeropoint raises on wrong use."""

from __future__ import annotations

__all__ = ["QuantizationError", "UncalibratedError"]


class QuantizationError(ValueError, RuntimeError):
    """A wrong argument or a wrong state.

    It is a ``ValueError``, and a ``RuntimeError`` too because that is what torch's quantized
    operators raised: ``except`` clauses of code written for them keep working.
    """


class UncalibratedError(QuantizationError):
    """A quantized module ran before calibration or a state_dict gave it scale and zero point."""
