"""Statically quantized recurrent layers and attention: what ``convert`` makes of :mod:`zeropoint.nn.quantizable`.

Their parts are int8 modules; these classes add the name and the way there.
"""

from __future__ import annotations

import warnings
from typing import Any

from zeropoint.errors import QuantizationError
from zeropoint.nn.quantizable import activation as quantizable_activation
from zeropoint.nn.quantizable import rnn as quantizable

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "MultiheadAttention", "RNNCell"]


def _converted(cls: type, other: Any, accepted: type) -> Any:
    from zeropoint.quantization import convert  # the workflow stands above this floor

    given: Any = type(other)
    if given is not accepted:
        raise QuantizationError(
            f"quantized {cls.__name__}.from_observed works for the quantizable one, got {type(other).__name__}"
        )
    with warnings.catch_warnings():
        # Hooks, call sites and what was never calibrated are settled with the whole model.
        warnings.filterwarnings("ignore", message="convert: these modules were never calibrated")
        for name, child in list(other.named_children()):
            setattr(other, name, convert(child, inplace=True, remove_qconfig=False))
    other.__class__ = cls
    return other


class _FromObserved:
    @classmethod
    def from_float(cls, other: Any, *unused: Any) -> Any:
        raise NotImplementedError(
            "from_float of a statically quantized layer: prepare the float layer and calibrate, then convert (from_observed)"
        )

    @classmethod
    def from_observed(cls, other: Any) -> Any:
        """From the prepared and calibrated quantizable layer, which it becomes."""
        return _converted(cls, other, cls.__mro__[2])

    def _get_name(self) -> str:
        return f"Quantized{type(self).__name__}"


class LSTM(_FromObserved, quantizable.LSTM):
    """Static int8 LSTM. Replaces ``torch.ao.nn.quantized.LSTM``."""


class GRU(_FromObserved, quantizable.GRU):
    """Static int8 GRU; torch had none."""


class RNN(_FromObserved, quantizable.RNN):
    """Static int8 RNN; torch had none."""


class LSTMCell(_FromObserved, quantizable.LSTMCell):
    """Static int8 LSTM cell; torch had none."""


class GRUCell(_FromObserved, quantizable.GRUCell):
    """Static int8 GRU cell; torch had none."""


class RNNCell(_FromObserved, quantizable.RNNCell):
    """Static int8 RNN cell; torch had none."""


class MultiheadAttention(_FromObserved, quantizable_activation.MultiheadAttention):
    """Static int8 attention. Replaces ``torch.ao.nn.quantized.MultiheadAttention``."""
