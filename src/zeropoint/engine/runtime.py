"""A program as an nn.Module: native where it can be, operator by operator from Python where torch traces it."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from zeropoint import _native
from zeropoint.engine.bytecode import encode
from zeropoint.engine.program import Program, ProgramError, refusal
from zeropoint.engine.shelf import Shelf
from zeropoint.errors import QuantizationError

__all__ = ["ProgramModule"]

_create = torch.ops.zeropoint.program_create.default
_run = torch.ops.zeropoint.program_run.default
_PLAIN = treespec_dumps(tree_flatten(((torch.empty(0),), {}))[1])
_LEAF = treespec_dumps(tree_flatten(torch.empty(0))[1])


class ProgramModule(nn.Module):
    """A quantized model that runs as a program, with no Python between its layers.

    Takes and gives the tensors that the float model does. Any number of threads may call it at once. Under
    ``torch.compile`` and ``torch.export`` it is a graph of ``zeropoint`` and ``aten`` operators with the same results.

    Attributes:
        program: what it runs.
        engine: ``"native"``, or the reason why the program runs from Python.
    """

    def __init__(self, program: Program, packed: Callable[[torch.Tensor], None] | None = None) -> None:
        super().__init__()
        self.program = program
        for index, value in program.constants.items():
            self.register_buffer(f"constant_{index}", value)
        self._start(packed)

    def _start(self, packed: Callable[[torch.Tensor], None] | None = None) -> None:
        self._in_spec: TreeSpec = treespec_loads(self.program.in_spec)
        self._out_spec: TreeSpec = treespec_loads(self.program.out_spec)
        self._one_tensor = self.program.in_spec == _PLAIN
        self._one_result = self.program.out_spec == _LEAF
        self._bound = self.program.bound()
        self._prepared: dict[int, torch.Tensor] | None = None
        self._number = 0
        self._release: weakref.finalize[..., Any] | None = None
        self.engine = "not built yet"
        self._build(packed)

    def _build(self, packed: Callable[[torch.Tensor], None] | None = None) -> None:
        """Packs the weights for the instruction set in use and hands the program to the engine."""
        for index in self.program.constants:
            self.program.constants[index] = getattr(self, f"constant_{index}")
        shelf = Shelf(sum(self.program.constants[i].nbytes for i in self.program.packed_weights()))
        self._prepared = self.program.prepared(packed, shelf.put)
        if self._release is not None:
            self._release()
        self._number, self._release = 0, None
        if not _native.loaded():
            self.engine = "the native library is missing"
            return
        used = sorted(self._prepared)
        try:
            code, names = encode(self.program, used)
        except ProgramError as error:
            self.engine = str(error)
            return
        self._number = _create(code, names, [self._prepared[i] for i in used])
        self.engine = "native"
        self._release = weakref.finalize(self, _native.release_program, self._number)
        self._release.atexit = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the float model."""
        if self._one_tensor and len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
            inputs = list(args)
        else:
            inputs = self._flat(args, kwargs)
        outputs = self._run_flat(inputs)
        return outputs[0] if self._one_result else tree_unflatten(outputs, self._out_spec)

    def _flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        inputs, spec = tree_flatten((args, kwargs))
        names = self.program.parameters[len(args) :]
        if kwargs and spec != self._in_spec and set(names) <= set(kwargs):  # by name what was captured by position
            args = (*args, *(kwargs[name] for name in names))
            inputs, spec = tree_flatten((args, {k: v for k, v in kwargs.items() if k not in names}))
        if spec != self._in_spec:
            raise QuantizationError(f"the model was captured with arguments {self._in_spec}, got {spec}")
        return inputs

    def _run_flat(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        if torch.compiler.is_exporting():
            return self.program.interpret(inputs, None, self._bound)  # packs inside: the CPU may be another
        if torch.compiler.is_compiling():
            return self.program.interpret(inputs, self._prepared, self._bound)
        for i, x in enumerate(inputs):
            if not isinstance(x, torch.Tensor):
                raise QuantizationError(f"input {i} must be a tensor, got {type(x).__name__}")
            if x.requires_grad or type(x) is not torch.Tensor:
                inputs = [torch.Tensor.detach(x).as_subclass(torch.Tensor) for x in inputs]
                break
        if not self._number:
            with torch.no_grad():
                return self.program.interpret(inputs, self._prepared, self._bound)
        try:
            return _run(self._number, inputs)
        except ValueError as error:
            unmet = re.match(r"program: instruction (\d+): (.*)", str(error))
            if unmet:
                raise QuantizationError(refusal(self.program.body[int(unmet[1])], unmet[2])) from None
            if "another instruction set" not in str(error):
                raise
        self._build()  # the instruction set was changed since
        return _run(self._number, inputs)

    def profile(self, *args: Any, repeats: int = 20, **kwargs: Any) -> list[dict[str, Any]]:
        """Times of the instructions for these inputs: layer, operator, milliseconds (median), share of the whole."""
        if not self._number:
            raise QuantizationError(f"profile: this program does not run in the engine: {self.engine}")
        inputs = self._flat(args, kwargs)
        self._run_flat(inputs)  # what a call refuses is refused in its words; packs if the instruction set was changed
        runs = [torch.ops.zeropoint.program_profile.default(self._number, inputs) for _ in range(repeats)]
        seconds = torch.stack(runs).median(0).values.tolist()
        total = sum(seconds) or 1.0
        return [
            {"layer": i.source, "operator": i.operator, "ms": 1e3 * s, "share": s / total}
            for i, s in zip(self.program.body, seconds, strict=True)
            if not i.operator.startswith("int::")
        ]

    def planned_bytes(self) -> int:
        """Memory for intermediate values, of all shapes and concurrent callers so far."""
        return int(torch.ops.zeropoint.program_bytes.default(self._number)) if self._number else 0

    def layer_coverage(self) -> list[tuple[str, str, str, str]]:
        """Layer, operator, "int8" or "float", and why float, of every operator of the model: ``zeropoint.report`` shows it."""
        return [
            (name, operator, "int8" if why == "int8" else "float", "" if why == "int8" else why)
            for name, operator, why in self.program.coverage
        ]

    def report(self) -> str:
        """What runs in int8, and what in float and why."""
        layers = self.layer_coverage()
        in_float = [layer for layer in layers if layer[2] == "float"]
        lines = [f"{len(layers) - len(in_float)} of {len(layers)} operators in int8; engine: {self.engine}"]
        lines += [f"  float: {name}: {operator}: {why}" for name, operator, _, why in in_float]
        return "\n".join(lines)

    def save(self, path: Any) -> None:
        """Writes a ``.zp`` file; :func:`zeropoint.load` reads it."""
        from zeropoint.engine.file import save

        save(self, path)

    def extra_repr(self) -> str:
        return f"{len(self.program.body)} instructions, engine: {self.engine}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._build()

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_in_spec", "_out_spec", "_bound", "_prepared", "_number", "_release")
        return {k: v for k, v in self.__dict__.items() if k not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()
