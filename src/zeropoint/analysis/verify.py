"""Does what was trained (or calibrated) run? The prepared model beside the converted one, in integer steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zeropoint import ops
from zeropoint._reference.epilogue import epilogue
from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.modules.weighted import QuantizedOutput, WeightedQuantizedModule
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
    exact: bool | None
    """Whether the layer equals the prepared one evaluated in exact integers; None for layers without weights."""


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
        """Whether every layer with weights equals its prepared one evaluated in exact integers, bit for bit."""
        return all(layer.exact is not False for layer in self.layers)

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"  {layer.name:{width}s}  {layer.type:24s} at most {layer.max_steps} steps, {100 * layer.share:.3f} % of the values"
            + ("" if layer.exact is None else "; integers exact" if layer.exact else "; INTEGERS DIFFER")
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

    Layers with weights are also compared with the prepared layer in its integer-exact form: the integers that its
    fake-quantized weights stand for, summed in float64, and the contract's requantization. These are equal bit for
    bit (``exact``).

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
    modules: dict[str, Any] = dict(converted.named_modules())
    prepared_modules = dict(prepared.named_modules())
    for name, (given, out) in ran.items():
        if name not in simulated or not isinstance(given, QTensor) or not isinstance(out, QTensor):
            continue
        source, target = (unmark(t) for t in simulated[name])
        x = QTensor(_integers(source, given), given._scale, given._zero_point, given._qdtype)
        with torch.no_grad():
            mine = modules[name](x)._data.to(torch.int32)
            predicted = _in_integers(prepared_modules[name], modules[name], x)
        steps = (mine - _integers(target, out).to(torch.int32)).abs()
        layers.append(
            LayerVerification(
                name,
                modules[name]._get_name(),
                int(steps.max()),
                float((steps > 0).float().mean()),
                None if predicted is None else torch.equal(predicted.to(torch.int32), mine),
            )
        )
    if not layers:
        raise QuantizationError("verify: the two models share no quantized layer")
    reals = [t.dequantize() if isinstance(t, QTensor) else unmark(t) for t in (expected, actual)]
    return Verification(layers, float((reals[0] - reals[1]).abs().max()))


def _in_integers(prepared: Any, converted: Any, x: QTensor) -> torch.Tensor | None:
    """The prepared layer on integers: from its own fake-quantized weight, independent of the converted one's."""
    fake_quant = getattr(prepared, "weight_fake_quant", None)
    if fake_quant is None or not isinstance(converted, WeightedQuantizedModule):
        return None
    weight, bias = prepared.folded() if hasattr(prepared, "folded") else (prepared.weight, prepared.bias)
    scale, zero_point = fake_quant.calculate_qparams()
    shape = [1] * weight.dim()
    axis = fake_quant.ch_axis if fake_quant.is_per_channel else 0
    shape[axis] = -1
    if bool((zero_point != 0).any()):
        return None  # weights with zero points: the symmetric schemes are what QAT uses
    integers = torch.round(fake_quant.round_to_grid(weight.detach().float()).double() / scale.double().reshape(shape))
    centered = x._data.double() - x._zero_point
    scale = scale.float()
    if isinstance(prepared, nn.Linear):
        acc, channels = nn.functional.linear(centered, integers), centered.dim() - 1
    elif isinstance(prepared, nn.modules.conv._ConvTransposeNd):
        function = getattr(nn.functional, f"conv_transpose{len(prepared.kernel_size)}d")
        acc = function(
            centered,
            integers,
            None,
            prepared.stride,
            prepared.padding,
            prepared.output_padding,
            prepared.groups,
            prepared.dilation,
        )
        scale, channels = scale.repeat(prepared.groups) if scale.numel() > 1 else scale, 1
    else:
        acc, channels = prepared._conv_forward(centered, integers, None), 1
    low, high = converted._clamp()
    return epilogue(
        torch.round(acc), channels, scale, None if bias is None else bias.detach().float(), x._scale, converted._scale,
        converted._zero_point, low, high, converted._output_dtype.storage,
    )  # fmt: skip


def _integers(values: torch.Tensor, like: QTensor) -> torch.Tensor:
    return ops.quantize_per_tensor(values.detach().float(), like._scale, like._zero_point, like._qdtype.storage)
