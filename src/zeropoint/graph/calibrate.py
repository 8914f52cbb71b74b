"""Ranges of the values that become int8, from inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from zeropoint.errors import QuantizationError, UncalibratedError
from zeropoint.graph.annotate import Annotation, Form
from zeropoint.graph.recurrent import RECURRENT
from zeropoint.nn.quantized.modules.weighted import observer_qparams
from zeropoint.tensor import QDtype, qint8, quint8

__all__ = ["Calibration"]


aten = torch.ops.aten
_RECURRENT_RUNS = 4  # batches that recurrent layers keep, to compare their int8 form with

# Beyond these a function is level to within what 8 bits tell apart; 255 steps are better spent between.
_LEVEL: dict[Any, tuple[float | None, float | None]] = {
    aten.hardswish.default: (-3.0, None),
    aten.hardsigmoid.default: (-3.0, 3.0),
    aten.gelu.default: (-4.0, None),
    aten.silu.default: (-8.0, None),
    aten.mish.default: (-8.0, None),
    aten.elu.default: (-6.0, None),
    aten.sigmoid.default: (-8.0, 8.0),
    aten.tanh.default: (-5.0, 5.0),
}


def useful_range(node: fx.Node) -> tuple[float | None, float | None] | None:
    """The part of a value's range that its only user, a function that is level outside, can tell apart."""
    users = list(node.users)
    return _LEVEL.get(users[0].target) if len(users) == 1 else None


class Calibration(fx.Interpreter):
    """Observers of a graph's values; calling it runs the graph in float and lets them see.

    Values that share qparams share an observer. Inputs can come in pieces: call it as often as there are batches.
    """

    def __init__(self, module: fx.GraphModule, annotation: Annotation) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.annotation = annotation
        self.batches = 0
        self.observers: dict[fx.Node, Any] = {}
        self._observer_of: dict[fx.Node, Any] = {}
        self.recurrent_runs: dict[fx.Node, list[tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]]] = {}
        self.channel_sums: dict[fx.Node, tuple[torch.Tensor, int]] = {}
        self._layer_inputs = {
            inputs[0]: -1 if node.target is aten.linear.default else 1
            for node, inputs in annotation.inputs.items()
            if annotation.forms[node] is Form.LAYER
        }
        observed = annotation.observed()
        ranges = {n: useful_range(n) for n in observed}
        self._useful = {n: found for n, found in ranges.items() if found is not None}
        for node in observed:
            key = annotation.representative(node)
            if key not in self.observers:
                self.observers[key] = self._new_observer(node)
            self._observer_of[node] = self.observers[key]

    def _new_observer(self, node: fx.Node) -> Any:
        qconfig = self.annotation.qconfigs.get(node)
        if qconfig is None:  # a float value: as its first int8 user has it
            qconfig = next(self.annotation.qconfigs[u] for u in node.users if u in self.annotation.qconfigs)
        return qconfig.activation()

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node and shows its value to its observer."""
        value = super().run_node(n)
        if n in self.annotation.by_weight and n.target in RECURRENT:
            runs = self.recurrent_runs.setdefault(n, [])
            if len(runs) < _RECURRENT_RUNS:
                runs.append((self.fetch_args_kwargs_from_env(n)[0][:2], value))
        if n in self._layer_inputs:
            self._add_channels(n, value)
        observer = self._observer_of.get(n)
        if observer is not None:
            low, high = self._useful.get(n, (None, None))
            observer(value.float() if low is None else value.float().clamp(low, high))
        return value

    def _add_channels(self, node: fx.Node, value: torch.Tensor) -> None:
        channels = value.float().movedim(self._layer_inputs[node], 0).flatten(1)
        total, count = self.channel_sums.get(node, (torch.zeros(channels.shape[0], dtype=torch.float64), 0))
        self.channel_sums[node] = (total + channels.sum(1, dtype=torch.float64), count + channels.shape[1])

    def channel_means(self, node: fx.Node) -> torch.Tensor:
        """Mean over the calibration inputs of each channel of a layer's input, float64."""
        total, count = self.channel_sums[node]
        return total / max(count, 1)

    def feed(self, batches: Iterable[list[torch.Tensor]]) -> None:
        """Runs flat inputs through the graph."""
        with torch.inference_mode():
            for inputs in batches:
                self.run(*inputs)
                self.batches += 1

    def qparams(self, node: fx.Node) -> tuple[float, int, QDtype]:
        """Scale, zero point and dtype of a value.

        Raises:
            UncalibratedError: no inputs came by.
            QuantizationError: an observer of another kind than 8 bits per tensor.
        """
        observer = self.observers[self.annotation.representative(node)]
        if not self.batches:
            raise UncalibratedError("quantize: no calibration inputs ran through the model")
        scale, zero_point, dtype, _ = observer_qparams(observer)
        if dtype not in (quint8, qint8):
            raise QuantizationError(f"quantize: activations are quint8 or qint8, the qconfig's observer has {dtype!r}")
        return scale, zero_point, dtype
