"""Does what was trained (or calibrated) run? The prepared model beside the converted one, in integer steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zeropoint import ops
from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.modules.weighted import QuantizedOutput
from zeropoint.quantization.fake_quantize import FakeQuantizeBase
from zeropoint.tensor import QTensor, unmark

__all__ = ["LayerVerification", "Verification", "verify"]


@dataclass(frozen=True)
class LayerVerification:
    """One layer: the largest difference in integer steps, and the share of values that differ.

    Both models saw the same integers at the layer's input, so that each layer answers for itself.
    """

    name: str
    type: str
    max_steps: int
    share: float


@dataclass(frozen=True)
class Verification:
    """``layers`` in order of execution; ``max_difference`` of the final outputs, as real numbers."""

    layers: list[LayerVerification]
    max_difference: float

    @property
    def max_steps(self) -> int:
        return max((layer.max_steps for layer in self.layers), default=0)

    @property
    def exact(self) -> bool:
        """Whether every layer gave the same integers."""
        return self.max_steps == 0

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"  {layer.name:{width}s}  {layer.type:24s} at most {layer.max_steps} steps, {100 * layer.share:.3f} % of the values"
            for layer in self.layers
        ]
        return "\n".join([f"{len(self.layers)} layers, outputs differ by at most {self.max_difference:.3g}", *lines])


def _record(model: nn.Module, names: set[str], inputs: tuple[Any, ...]) -> tuple[dict[str, Any], Any]:
    """First input and output of the named modules when the model runs."""
    seen: dict[str, Any] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            if args and isinstance(output, torch.Tensor) and name not in seen:
                seen[name] = (args[0], output)

        return record

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if n in names]
    try:
        with torch.no_grad():
            result = model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen, result


def verify(prepared: nn.Module, converted: nn.Module, *inputs: Any) -> Verification:
    """Runs a prepared model (fake quantization on, observers off) and its converted form on ``inputs``.

    Each quantized layer is given the prepared layer's own input, as integers, and its output compared with the
    prepared one's, as integers. The float simulation rounds its sums otherwise than the integer kernels: a
    difference of one step on a small share of values is what to expect; more is a fault.

    Args:
        prepared: a model of ``prepare_qat`` (its layers fake-quantize their outputs). Its switches are restored.

    Raises:
        QuantizationError: ``prepared`` has no fake quantization, or the models share no layer.
    """
    fakes = [m for m in prepared.modules() if isinstance(m, FakeQuantizeBase)]
    if not fakes:
        raise QuantizationError("verify: the prepared model has no fake quantization; prepare it with prepare_qat")
    names = {n for n, m in converted.named_modules() if isinstance(m, QuantizedOutput)}
    before = [(m, m.observer_enabled.clone(), m.fake_quant_enabled.clone()) for m in fakes]
    training = {m: m.training for m in prepared.modules()}
    try:
        prepared.eval()
        for fake in fakes:
            fake.disable_observer()
            fake.enable_fake_quant()
        simulated, expected = _record(prepared, names, inputs)
    finally:
        for fake, observing, quantizing in before:
            fake.observer_enabled.copy_(observing)
            fake.fake_quant_enabled.copy_(quantizing)
        for module, mode in training.items():
            module.training = mode
    ran, actual = _record(converted, names, inputs)
    layers = []
    modules = dict(converted.named_modules())
    for name, (given, out) in ran.items():
        if name not in simulated or not isinstance(given, QTensor) or not isinstance(out, QTensor):
            continue
        source, target = (unmark(t) for t in simulated[name])
        x = QTensor(_integers(source, given), given._scale, given._zero_point, given._qdtype)
        with torch.no_grad():
            mine = modules[name](x)._data.to(torch.int32)
        steps = (mine - _integers(target, out).to(torch.int32)).abs()
        layers.append(
            LayerVerification(name, modules[name]._get_name(), int(steps.max()), float((steps > 0).float().mean()))
        )
    if not layers:
        raise QuantizationError("verify: the two models share no quantized layer")
    reals = [t.dequantize() if isinstance(t, QTensor) else unmark(t) for t in (expected, actual)]
    return Verification(layers, float((reals[0] - reals[1]).abs().max()))


def _integers(values: torch.Tensor, like: QTensor) -> torch.Tensor:
    return ops.quantize_per_tensor(values.detach().float(), like._scale, like._zero_point, like._qdtype.storage)
