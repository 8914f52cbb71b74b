"""A program as the integers that the native engine reads (csrc/engine/program.cpp)."""

from __future__ import annotations

import struct
from typing import Any

import torch

from zeropoint.engine.program import Instruction, Program, ProgramError, Register, Value, fits, gives_list, operator_of

__all__ = ["encode"]

_MAGIC, _VERSION = 0x50505A, 1
_NONE, _VALUE, _INT, _FLOAT, _BOOL, _DTYPE, _INTS, _VALUES, _REGISTER, _STRING, _OPTIONAL_VALUES = range(11)
_OPTIONAL = 16
_DTYPES = {
    torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4, torch.float16: 5, torch.float32: 6,
    torch.float64: 7, torch.bool: 11, torch.bfloat16: 15,
}  # fmt: skip


class _Encoder:
    def __init__(self) -> None:
        self.code: list[int] = []
        self.names: dict[str, int] = {}

    def name(self, text: str) -> int:
        if "\n" in text:
            raise ProgramError(f"engine: a text argument with a line break: {text!r}")
        return self.names.setdefault(text, len(self.names))

    def instruction(self, instruction: Instruction) -> None:
        target = operator_of(instruction.operator)
        returns_list = False
        kinds: list[Any] = [None] * len(instruction.arguments)
        if target is not None:
            kinds = [a.type for a in target._schema.arguments]
            returns_list = gives_list(target)
        self.code += [self.name(instruction.operator), int(returns_list), len(instruction.arguments)]
        for argument, kind in zip(instruction.arguments, kinds, strict=True):
            self.argument(argument, kind, instruction)
        results = instruction.results
        if target is not None and not returns_list:  # all of them: the engine takes each off the stack
            results = results + [None] * (len(target._schema.returns) - len(results))
        self.code += [len(results), *(-1 if r is None else r for r in results)]

    def argument(self, value: Any, kind: Any, instruction: Instruction) -> None:
        optional = isinstance(kind, torch.OptionalType)
        inner = kind.getElementType() if optional else kind
        flag = _OPTIONAL if optional else 0
        if inner is not None and isinstance(inner, torch.NumberType) and value is not None:
            raise ProgramError(f"{instruction.operator} takes a Scalar, which native code cannot hand to ATen")
        if kind is not None and not fits(value, kind):  # the engine takes arguments at their word
            raise ProgramError(f"{instruction.operator}: {value!r} does not fit {kind}")
        if value is None:
            self.code.append(_NONE + flag)
        elif isinstance(value, Value):
            self.code += [_VALUE + flag, value.index]
        elif isinstance(value, Register):
            self.code += [_REGISTER + flag, value.index]
        elif isinstance(value, bool):
            self.code += [_BOOL + flag, int(value)]
        elif isinstance(value, int) and not isinstance(inner, torch.FloatType):
            self.code += [_INT + flag, value]
        elif isinstance(value, (int, float)):
            self.code += [_FLOAT + flag, *struct.unpack("<q", struct.pack("<d", float(value)))]
        elif isinstance(value, torch.dtype):
            if value not in _DTYPES:
                raise ProgramError(f"{instruction.operator}: dtype {value} has no form in the engine")
            self.code += [_DTYPE + flag, _DTYPES[value]]
        elif isinstance(value, str):
            self.code += [_STRING + flag, self.name(value)]
        elif isinstance(value, list):
            self.list(value, inner, flag, instruction)
        else:
            raise ProgramError(f"{instruction.operator}: {value!r} has no form in the engine")

    def list(self, values: list[Any], inner: Any, flag: int, instruction: Instruction) -> None:
        item = inner.getElementType() if isinstance(inner, torch.ListType) else None
        if isinstance(item, torch.OptionalType) and all(v is None or isinstance(v, Value) for v in values):
            self.code += [_OPTIONAL_VALUES + flag, len(values), *(0 if v is None else v.index + 1 for v in values)]
            return
        tensors = isinstance(item, torch.TensorType)
        if tensors and all(isinstance(v, Value) for v in values):
            self.code += [_VALUES + flag, len(values)]
            for v in values:
                self.code += [0, v.index]
        elif not tensors and all(isinstance(v, (int, Register)) and not isinstance(v, bool) for v in values):
            self.code += [_INTS + flag, len(values)]
            for v in values:
                self.code += [1, v.index] if isinstance(v, Register) else [0, v]
        else:
            raise ProgramError(f"{instruction.operator}: a list with {values!r} has no form in the engine")


def encode(program: Program, constants: list[int]) -> tuple[torch.Tensor, str]:
    """int64 code and the names it refers to, for ``ops.program_create``; ``constants`` are the numbers of its tensors.

    Raises:
        ProgramError: something that only Python can run.
    """
    encoder = _Encoder()
    for instruction in program.body:
        encoder.instruction(instruction)
    head = [_MAGIC, _VERSION, program.count]
    for numbers in (program.inputs, constants, program.outputs):
        head += [len(numbers), *numbers]
    code = torch.tensor([*head, len(program.body), *encoder.code], dtype=torch.int64)
    return code, "\n".join(encoder.names)
