"""``.zp`` files: one safetensors file whose metadata is the program as JSON (docs/program.md).

Reading runs no code from the file. Everything is checked before it is used: names of operators, number and kind of
arguments, every index, and that a packed weight is packed from the weight it stands for.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils._pytree import treespec_loads

from zeropoint.engine.allowed import ALLOWED
from zeropoint.engine.mapped import MappedFile
from zeropoint.engine.program import (
    INTEGERS,
    Instruction,
    Program,
    ProgramError,
    Register,
    Value,
    fits,
    gives_list,
    is_integer,
    operator_of,
)

if TYPE_CHECKING:
    from zeropoint.engine.runtime import ProgramModule

__all__ = ["VERSION", "load", "save"]

VERSION = 1
_KEY = "zeropoint.program"
_MOST = 1 << 20  # values, instructions, arguments, list items
# By which operator the weight of another one is packed, where it is not linear_pack.
_PACKING = {
    "conv2d": "conv2d_pack",
    "conv3d": "conv3d_pack",
    "linear_grouped": "linear_grouped_pack",
    "linear_grouped_split": "linear_grouped_pack",
}
_GEOMETRY = 1 << 16  # strides, paddings and kernel sizes of zeropoint's operators


def save(module: ProgramModule, path: str | os.PathLike[str]) -> None:
    """Writes the module's program.

    Raises:
        ProgramError: it has something that :func:`load` would refuse, as an operator that programs of files may not call.
    """
    program = module.program
    document = {
        "version": VERSION,
        "count": program.count,
        "parameters": program.parameters,
        "inputs": program.inputs,
        "outputs": program.outputs,
        "in_spec": program.in_spec,
        "out_spec": program.out_spec,
        "prologue": [_instruction_to_json(i) for i in program.prologue],
        "body": [_instruction_to_json(i) for i in program.body],
        "coverage": program.coverage,
    }
    # Contiguous, and none sharing memory: what safetensors takes.
    tensors = {str(index): value.detach().contiguous().clone() for index, value in program.constants.items()}
    text = json.dumps(document, allow_nan=False)
    try:
        _Reader(json.loads(text), tensors).read()
    except ProgramError as error:
        raise ProgramError(f"save: the file could not be loaded again: {error}") from error
    # Written beside and moved into place: a program that was loaded from `path` still looks at the old file.
    written = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        save_file(tensors, written, metadata={_KEY: text})
        os.replace(written, path)
    finally:
        Path(written).unlink(missing_ok=True)


def _instruction_to_json(instruction: Instruction) -> list[Any]:
    arguments = [_to_json(a) for a in instruction.arguments]
    return [instruction.operator, arguments, instruction.results, instruction.source]


def _to_json(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Value):
        return {"value": value.index}
    if isinstance(value, Register):
        return {"integer": value.index}
    if isinstance(value, list):
        return [_to_json(v) for v in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    raise ProgramError(f"save: an argument of type {type(value).__name__} has no form in a file")


def load(path: str | os.PathLike[str]) -> ProgramModule:
    """The program of a ``.zp`` file, ready to run.

    Raises:
        ProgramError: not such a file, or damaged; the message says where.
        FileNotFoundError: there is no file.
    """
    from zeropoint.engine.runtime import ProgramModule

    if not Path(path).is_file():
        raise FileNotFoundError(f"load: {os.fspath(path)}: no such file")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise ProgramError(f"load: {path} is a safetensors file without a zeropoint program")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            mapped = MappedFile(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise ProgramError(f"load: {path} is no safetensors file: {error}") from error
    try:
        program = _Reader(json.loads(text, parse_constant=_no_constant), tensors).read()
        return ProgramModule(program, mapped.release)
    except ProgramError as error:
        raise ProgramError(f"load: {path}: {error}") from error
    except (RecursionError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, MemoryError) as error:
        raise ProgramError(f"load: {path}: the program is damaged: {error}") from error


def _no_constant(text: str) -> float:
    raise ProgramError(f"the program has {text} for a number")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProgramError(message)


class _Reader:
    def __init__(self, document: Any, tensors: dict[str, torch.Tensor]) -> None:
        _require(isinstance(document, dict), "the program is no JSON object")
        self.document, self.tensors = document, tensors
        version = document.get("version")
        _require(
            version == VERSION and is_integer(version), f"the program's version is {version!r}, this reads {VERSION}"
        )
        self.count = self._field("count", int)
        _require(0 <= self.count <= _MOST, f"count is {self.count}, at most {_MOST}")
        self.kinds: dict[int, type] = {}  # of what is defined so far
        self.packed: dict[int, Instruction] = {}  # packed weights, by the instruction that packs them

    def _field(self, name: str, kind: type) -> Any:
        value = self.document.get(name)
        _require(
            isinstance(value, kind) and not (kind is int and isinstance(value, bool)), f"{name} is no {kind.__name__}"
        )
        return value

    def _list(self, value: Any, what: str) -> list[Any]:
        _require(isinstance(value, list) and len(value) <= _MOST, f"{what} is no list of up to {_MOST}")
        return list(value)

    def read(self) -> Program:
        program = Program(count=self.count, in_spec=self._field("in_spec", str), out_spec=self._field("out_spec", str))
        for name, tensor in self.tensors.items():
            _require(name.isdecimal() and len(name) < 8, f"a tensor is called {name!r}, not by a number")
            program.constants[self._define(int(name), Value)] = tensor
        for instruction in self._list(self.document.get("prologue"), "prologue"):
            program.prologue.append(self._instruction(instruction))
            last = program.prologue[-1]
            _require(
                last.operator.startswith("zeropoint::") and last.operator.endswith("_pack") and len(last.results) == 1,
                f"the prologue packs weights, {last.operator} does not",
            )
            _require(
                isinstance(last.arguments[0], Value) and last.arguments[0].index in program.constants,
                f"{last.operator} packs what is no tensor of the file",
            )
            if last.results[0] is not None:
                self.packed[last.results[0]] = last
        for index in self._list(self.document.get("inputs"), "inputs"):
            program.inputs.append(self._define(index, Value))
        program.body = [self._instruction(i) for i in self._list(self.document.get("body"), "body")]
        for index in self._list(self.document.get("outputs"), "outputs"):
            _require(is_integer(index) and self.kinds.get(index) is Value, f"output {index!r} is no value")
            program.outputs.append(index)
        for name, spec, numbers in (
            ("in_spec", program.in_spec, program.inputs),
            ("out_spec", program.out_spec, program.outputs),
        ):
            leaves = treespec_loads(spec).num_leaves
            _require(leaves == len(numbers), f"{name} has {leaves} leaves for {len(numbers)} values")
        program.parameters = self._list(self.document.get("parameters"), "parameters")
        _require(all(isinstance(name, str) for name in program.parameters), "parameters are no names")
        for row in self._list(self.document.get("coverage"), "coverage"):
            _require(
                isinstance(row, list) and len(row) == 3 and all(isinstance(t, str) for t in row), "coverage is damaged"
            )
            program.coverage.append((row[0], row[1], row[2]))
        return program

    def _define(self, index: Any, kind: type) -> int:
        _require(is_integer(index) and 0 <= index < self.count, f"number {index!r} is outside 0..{self.count - 1}")
        _require(index not in self.kinds, f"number {index} is defined twice")
        self.kinds[index] = kind
        return int(index)

    def _instruction(self, entry: Any) -> Instruction:
        _require(
            isinstance(entry, list) and len(entry) == 4 and isinstance(entry[0], str) and isinstance(entry[3], str),
            "an instruction is no [operator, arguments, results, source]",
        )
        name, source = entry[0], entry[3]
        arguments = [self._argument(a, 0) for a in self._list(entry[1], "arguments")]
        if name == "int::size" or name in INTEGERS:
            first = Value if name == "int::size" else (int, Register)
            fits = len(arguments) == 2 and isinstance(arguments[0], first) and isinstance(arguments[1], (int, Register))
            _require(fits, f"{name} has the wrong arguments")
            kind: type = Register
        else:
            self._check_operator(name, arguments)
            kind = Value
        results = self._list(entry[2], "results")
        _require(kind is Value or (len(results) == 1 and results[0] is not None), f"{name} has one result")
        if name.startswith("zeropoint::"):
            target = operator_of(name)
            assert target is not None
            fits = gives_list(target) or len(results) <= len(target._schema.returns)
            _require(fits, f"{name} has too many results")
        return Instruction(name, arguments, [None if r is None else self._define(r, kind) for r in results], source)

    def _check_operator(self, name: str, arguments: list[Any]) -> None:
        namespace, _, rest = name.partition("::")
        base = rest.split(".")[0]
        known = namespace == "zeropoint" or (namespace == "aten" and base in ALLOWED)
        target = operator_of(name) if known and rest.replace(".", "_").isidentifier() else None
        forbidden = base.startswith(("program_", "isa_"))
        _require(
            isinstance(target, torch._ops.OpOverload) and not forbidden, f"{name!r} is no operator that programs call"
        )
        assert target is not None
        _require(not target._schema.is_mutable, f"{name} changes its arguments")
        schema = target._schema.arguments
        missing = schema[len(arguments) :]
        if all(a.has_default_value() for a in missing):  # a file may be older than an operator's last arguments
            arguments.extend(a.default_value for a in missing)
        _require(len(schema) == len(arguments), f"{name} takes {len(schema)} arguments, got {len(arguments)}")
        by_name = dict(zip((a.name for a in schema), arguments, strict=True))
        for a in schema:
            _require(fits(by_name[a.name], a.type), f"{name}: argument {a.name} is no {a.type}")
        if namespace != "zeropoint":
            return
        for key, value in by_name.items():
            if isinstance(value, list):
                _require(
                    all(not isinstance(v, int) or abs(v) <= _GEOMETRY for v in value), f"{name}: {key} is out of range"
                )
            elif is_integer(value):
                _require(abs(value) < 1 << 31, f"{name}: {key} is out of range")
            if key.endswith("packed"):
                self._check_packed(name, key, by_name)

    def _check_packed(self, name: str, key: str, arguments: dict[str, Any]) -> None:
        """A packed weight is read by its own header: it must come from the prologue, and from this very weight."""
        weight = {"packed": "weight", "ih_packed": "ih", "hh_packed": "hh"}[key]
        packing = self.packed.get(arguments[key].index)
        if packing is None:
            raise ProgramError(f"{name}: {key} is not packed by the prologue")
        _require(packing.arguments[0] == arguments[weight], f"{name}: {key} is packed from another weight")
        operator = name.split("::")[1]
        kind = _PACKING.get(operator, "linear_pack")
        _require(packing.operator == f"zeropoint::{kind}", f"{name}: {key} is packed for another operator")

    def _argument(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, (bool, str, float)):
            return value
        if isinstance(value, int):
            _require(-(1 << 63) <= value < 1 << 63, f"{value} does not fit 64 bits")
            return value
        if isinstance(value, list) and depth == 0:
            return [self._argument(v, 1) for v in self._list(value, "an argument")]
        if isinstance(value, dict) and len(value) == 1:
            ((key, content),) = value.items()
            if key in ("value", "integer") and is_integer(content):
                kind = Value if key == "value" else Register
                _require(self.kinds.get(content) is kind, f"{key} {content} is not defined before it is used")
                return kind(content)
            if key == "float" and content in ("inf", "-inf", "nan"):
                return float(content)
            if key in ("dtype", "memory_format") and isinstance(content, str) and content.isidentifier():
                found = getattr(torch, content, None)
                if isinstance(found, torch.dtype if key == "dtype" else torch.memory_format):
                    return found
        raise ProgramError(f"an argument is {str(value)[:60]!r}")
