"""From a float model, or a converted one, to a program: the passes in their order."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, treespec_dumps

from zeropoint.engine import Program, ProgramError, ProgramModule
from zeropoint.errors import QuantizationError
from zeropoint.graph.annotate import Annotation, annotate
from zeropoint.graph.builder import source_name
from zeropoint.graph.calibrate import Calibration
from zeropoint.graph.canonicalize import canonicalize
from zeropoint.graph.capture import Captured, CaptureError, capture
from zeropoint.graph.cells import cells_to_layers
from zeropoint.graph.decoder import fuse_decoder
from zeropoint.graph.dynamic import DynamicLowering, WeightOnlyLowering
from zeropoint.graph.fold import fold_constants, products_to_linear
from zeropoint.graph.fuse import fuse
from zeropoint.graph.guards import check_sizes
from zeropoint.graph.lower import Lowering
from zeropoint.graph.norms import fuse_norms
from zeropoint.graph.numbers_to_tensors import numbers_to_tensors
from zeropoint.graph.pairs import pair_weights
from zeropoint.graph.precision import in_float32
from zeropoint.graph.siblings import join_siblings
from zeropoint.graph.simplify import simplify
from zeropoint.nn.quantized.dynamic.weight_only import check_weight_only
from zeropoint.quantization.one_call import QuantizedModel, as_call, quantize_modules
from zeropoint.quantization.qconfig import QConfig
from zeropoint.quantization.qconfig_mapping import QConfigMapping, get_default_qconfig_mapping
from zeropoint.quantization.quantize import quantize_dynamic
from zeropoint.quantization.weight_only import quantize_weight_only

__all__ = ["GraphCalibration", "compile_program", "prepare_program", "quantize"]

Lowered = tuple[fx.GraphModule, list[tuple[str, str, str]]]  # a graph of operators, and its coverage


def _mapping(qconfig: QConfig | QConfigMapping | None) -> QConfigMapping:
    if qconfig is None:
        return get_default_qconfig_mapping("zeropoint")
    return qconfig if isinstance(qconfig, QConfigMapping) else QConfigMapping().set_global(qconfig)


def _program(
    captured: Captured, module: fx.GraphModule, coverage: list[tuple[str, str, str]], same_bits: bool = False
) -> ProgramModule:
    """With ``same_bits`` nothing is rewritten that moves a rounding of float32."""
    for node in module.graph.nodes:
        node.meta["source"] = source_name(node)
    fuse(module)
    numbers_to_tensors(module)
    join_siblings(module)
    pair_weights(module)
    if not same_bits:
        fuse_norms(module)
        fuse_decoder(module)
    program = Program.from_graph(module)
    # The model may be trained on. Here, since graphs are built to be checked, too.
    program.constants = {index: value.clone() for index, value in program.constants.items()}
    program.in_spec, program.out_spec = treespec_dumps(captured.in_spec), treespec_dumps(captured.out_spec)
    program.parameters, program.coverage = captured.parameters, coverage
    program.require(captured.guards)
    return ProgramModule(program)


def _simplify(module: fx.GraphModule) -> None:
    """What float models write in many ways, in one; up to the rounding of float32."""
    canonicalize(module)
    cells_to_layers(module)
    fold_constants(module)
    products_to_linear(module)
    simplify(module)


class GraphCalibration:
    """A captured model that gathers ranges; calibration can run in pieces.

    >>> import torch, zeropoint as zp
    >>> prepared = zp.graph.prepare_program(torch.nn.Linear(4, 2), torch.zeros(2, 4))
    >>> for _ in range(3):
    ...     prepared.feed([torch.randn(2, 4)])
    >>> prepared.convert()(torch.randn(5, 4)).shape
    torch.Size([5, 2])
    """

    def __init__(self, model: nn.Module, captured: Captured, mapping: QConfigMapping) -> None:
        self.model, self.captured = model, captured
        _simplify(captured.graph_module)
        Program.from_graph(
            captured.graph_module
        )  # what cannot become a program is refused before inputs are spent on it
        self.annotation: Annotation = annotate(captured.graph_module, mapping)
        self.calibration = Calibration(captured.graph_module, self.annotation)

    def feed(self, batches: Iterable[Any]) -> None:
        """Runs calibration inputs: tensors, tuples of arguments, or mappings of arguments by name."""
        self.calibration.feed(self._inputs(batch) for batch in batches)

    def _inputs(self, batch: Any) -> list[torch.Tensor]:
        inputs = tree_leaves(as_call(self.model, batch))
        check_sizes(self.captured.guards, inputs)
        return inputs

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, to be resumed by :meth:`load_state_dict` of another one of the same model."""
        calibration = self.calibration
        return {
            "batches": calibration.batches,
            "observers": {n.name: o.state_dict() for n, o in calibration.observers.items()},
            "channels": {n.name: value for n, value in calibration.channel_sums.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state.

        Raises:
            QuantizationError: it is of another model.
        """
        observers = {n.name: o for n, o in self.calibration.observers.items()}
        if set(state["observers"]) != set(observers):
            raise QuantizationError("GraphCalibration.load_state_dict: the state is of another model or other qconfigs")
        for name, observer in observers.items():
            observer.load_state_dict(state["observers"][name])
        self.calibration.batches = state["batches"]
        by_name = {n.name: n for n in self.captured.graph_module.graph.nodes}
        self.calibration.channel_sums = {by_name[name]: value for name, value in state["channels"].items()}

    def convert(self) -> ProgramModule:
        """The int8 program, with the ranges seen so far.

        Raises:
            UncalibratedError: nothing was fed.
        """
        lowering = Lowering(self.captured.graph_module, self.annotation, self.calibration)
        return _program(self.captured, lowering.run(), lowering.coverage)


def prepare_program(
    model: nn.Module, example: Any, qconfig: QConfig | QConfigMapping | None = None
) -> GraphCalibration:
    """Captures ``model`` and decides what becomes int8; feed it calibration inputs, then ``convert``.

    Args:
        example: one batch, as calibration has them.
        qconfig: for all operators, or a mapping by operator, module type, pattern and name; None leaves them float.

    Raises:
        CaptureError: torch.export cannot take the model as one graph.
        ProgramError: the graph has calls that no program can have.
    """
    args, kwargs = as_call(model, example)
    model = in_float32(model, args, kwargs)
    return GraphCalibration(model, capture(model, args, kwargs), _mapping(qconfig))


def _first(calibration: Iterable[Any]) -> tuple[Any, Iterator[Any]]:
    batches = iter(calibration)
    try:
        first = next(batches)
    except StopIteration:
        raise QuantizationError("quantize: calibration gave no inputs") from None
    return first, itertools.chain([first], batches)


def quantize(
    model: nn.Module,
    calibration: Iterable[Any] | None = None,
    *,
    dynamic: bool = False,
    weight_bits: int | None = None,
    example: Any = None,
    qconfig: QConfig | QConfigMapping | None = None,
    group_size: int | None = 128,
    eager: bool = False,
) -> nn.Module:
    """An int8 model from an unmodified float one, in one call; the float model is left as it is.

    The model is captured as a graph, its layers are fused, and it becomes a program that runs without Python between
    layers. Models that torch.export cannot take run module by module instead, with a warning that says why.

    * Static (``calibration`` given): ranges of activations come from the calibration inputs. Layers with fixed weights
      run in int8, and everything between them that has an int8 form; the rest stays float and is listed by
      ``zeropoint.report``.
    * Dynamic: Linear and recurrent layers, with ranges taken at run time per row, and per ``group_size`` inputs of a
      Linear; needs no data. With ``example`` inputs the result is a program, without them a model of modules.
    * Weights only (``weight_bits``): weights of Linear layers in 4 or 8 bits, activations as good as float; needs no data,
      and ``example`` does the same. For its other options give the result of
      :func:`~zeropoint.quantization.quantize_weight_only`, with ``dynamic=True``: its layers stay as they are.

    Args:
        calibration: inputs like those to come: tensors, tuples of arguments, or mappings of arguments by name.
        weight_bits: 4 or 8, for weights only.
        example: of ``dynamic`` and ``weight_bits``: one batch, to capture the model with.
        qconfig: of static quantization: one for all, or a :class:`QConfigMapping`; None in it leaves layers float. By default
            ``get_default_qconfig("zeropoint")``.
        group_size: of ``dynamic``; None for whole rows. Of ``weight_bits``: inputs that share a scale.
        eager: run module by module in any case.

    Returns:
        A module that takes and gives ordinary tensors, as ``model`` does: a :class:`~zeropoint.engine.ProgramModule`
        unless it runs module by module.

    Raises:
        QuantizationError: not one of ``calibration``, ``dynamic`` and ``weight_bits``, or no calibration inputs.
    """
    if not isinstance(model, nn.Module):
        raise QuantizationError(f"quantize: the model must be an nn.Module, got {type(model).__name__}")
    chosen = {"calibration": calibration is not None, "dynamic": dynamic, "weight_bits": weight_bits is not None}
    if sum(chosen.values()) != 1:
        given = " and ".join(name for name, there in chosen.items() if there)
        raise QuantizationError(
            f"quantize: got {given or 'none of them'}; give one: calibration inputs for static quantization, dynamic=True for ranges "
            "at run time (with example= inputs for a program), or weight_bits=4 or 8 for weights only"
        )
    if calibration is None:
        if qconfig is not None:
            raise QuantizationError("quantize: qconfig belongs to static quantization; use quantize_dynamic for others")
        if weight_bits is not None:
            return _weight_only(model, example, weight_bits, group_size, eager)
        return _dynamic(model, example, group_size, eager)
    if example is not None:
        raise QuantizationError(
            "quantize: example belongs to dynamic=True and weight_bits; static quantization has the calibration inputs"
        )
    first, batches = _first(calibration)
    if eager:
        return quantize_modules(model, batches, _one_qconfig(qconfig))
    try:
        prepared = prepare_program(model, first, qconfig)
    except (CaptureError, ProgramError) as error:
        warnings.warn(f"quantize: runs module by module: {error}", UserWarning, stacklevel=2)
        converted = quantize_modules(model, batches, _one_qconfig(qconfig))
        converted.engine = str(error)
        return converted
    prepared.feed(batches)
    return prepared.convert()


def _one_qconfig(qconfig: QConfig | QConfigMapping | None) -> Any:
    if isinstance(qconfig, QConfigMapping):
        raise QuantizationError(
            "quantize: a QConfigMapping needs the model as a graph; module by module, use prepare and convert"
        )
    return qconfig


def _without_data(
    model: nn.Module, example: Any, lower: Callable[[Captured], Lowered], modules: Callable[[], nn.Module]
) -> nn.Module:
    """A program of what ``lower`` makes of the graph; where there is no graph, ``modules()``, and a warning."""
    args, kwargs = as_call(model, example)
    try:
        captured = capture(in_float32(model, args, kwargs), args, kwargs)
        _simplify(captured.graph_module)
        return _program(captured, *lower(captured))
    except (CaptureError, ProgramError) as error:
        warnings.warn(f"quantize: runs module by module: {error}", UserWarning, stacklevel=4)
        return QuantizedModel(modules(), str(error))


def _dynamic(model: nn.Module, example: Any, group_size: int | None, eager: bool) -> nn.Module:
    def modules() -> nn.Module:
        return quantize_dynamic(model, per_row=True, group_size=group_size)

    def lower(captured: Captured) -> Lowered:
        lowering = DynamicLowering(captured.graph_module, group_size)
        return lowering.run(), lowering.coverage

    return modules() if example is None or eager else _without_data(model, example, lower, modules)


def _weight_only(model: nn.Module, example: Any, bits: int, group_size: int | None, eager: bool) -> nn.Module:
    if group_size is None:
        raise QuantizationError("quantize: weights only have a scale per group; give group_size, 32 to 256")
    check_weight_only("quantize", bits, group_size, 15)

    def modules() -> nn.Module:
        return quantize_weight_only(model, bits=bits, group_size=group_size).eval()

    def lower(captured: Captured) -> Lowered:
        lowering = WeightOnlyLowering(captured.graph_module, group_size, bits)
        lowered = lowering.run()
        if not any(why == "int8" for _, _, why in lowering.coverage):
            raise QuantizationError("quantize: weight_bits is for the weights of Linear layers, and the model has none")
        return lowered, lowering.coverage

    return modules() if example is None or eager else _without_data(model, example, lower, modules)


def _coverage(captured: Captured, why: str) -> list[tuple[str, str, str]]:
    """Of a graph that keeps its operators; ``why`` those of ATen are as they are."""
    return [
        (source_name(node), str(node.target), "int8" if node.target.namespace == "zeropoint" else why)
        for node in captured.graph_module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and not node.target._opname.endswith("_pack")
    ]


def compile_program(model: nn.Module, example: Any) -> ProgramModule:
    """A model that was converted module by module (``convert``, ``quantize_dynamic``) as a program with the same bits.

    Args:
        example: one batch: a tensor, a tuple of arguments, or a mapping of arguments by name.

    Raises:
        CaptureError: torch.export cannot take the model as one graph.
        ProgramError: the graph has calls that no program can have.
    """
    args, kwargs = as_call(model, example)
    captured = capture(model, args, kwargs)
    canonicalize(captured.graph_module)
    return _program(captured, captured.graph_module, _coverage(captured, "as in the model"), same_bits=True)
