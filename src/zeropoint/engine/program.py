"""A program: operator calls over numbered values, and the fixed tensors they read (docs/program.md)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from zeropoint.errors import QuantizationError

__all__ = [
    "INTEGERS",
    "Guard",
    "Instruction",
    "Program",
    "ProgramError",
    "Register",
    "Size",
    "Value",
    "fits",
    "gives_list",
    "is_integer",
    "operator_of",
    "refusal",
]


class ProgramError(QuantizationError):
    """Not a valid program, or a graph that cannot become one; the message says what and where."""


class _UnmetError(ProgramError):
    """Inputs of other sizes than the program is for."""


@dataclass(frozen=True)
class Size:
    """A size of an input, both by number."""

    input: int
    dim: int


@dataclass(frozen=True)
class Guard:
    """A condition on the sizes of a program's inputs.

    Attributes:
        operator: ``"int::require_equal"`` or ``"int::require_at_most"``.
        left, right: integers, :class:`Size`, and tuples of an operator of ``INTEGERS`` and two of these.
        text: the condition as one reads it, ``x.shape[2] == 224``.
    """

    operator: str
    left: Any
    right: Any
    text: str


@dataclass(frozen=True)
class Value:
    """A tensor of the program, by number."""

    index: int


@dataclass(frozen=True)
class Register:
    """An integer of the program, by number: a size, or what is computed from sizes."""

    index: int


def _require_equal(left: int, right: int) -> int:
    if left != right:
        raise _UnmetError(f"{left} is not {right}")
    return left


def _require_at_most(left: int, right: int) -> int:
    if left > right:
        raise _UnmetError(f"{left} is more than {right}")
    return left


INTEGERS = {
    "int::add": operator.add,
    "int::sub": operator.sub,
    "int::mul": operator.mul,
    "int::floordiv": operator.floordiv,
    "int::mod": operator.mod,
    "int::min": torch.sym_min,
    "int::max": torch.sym_max,
    "int::require_equal": _require_equal,
    "int::require_at_most": _require_at_most,
}
_INTEGER_NAMES = {function: name for name, function in INTEGERS.items()}


@dataclass
class Instruction:
    """One call.

    Attributes:
        operator: ``"zeropoint::conv2d"``, ``"aten::add.Tensor"``, ``"int::size"`` ...
        arguments: all of the schema's, in order: :class:`Value`, :class:`Register`, numbers, bools, None, dtypes, texts,
            and lists of those.
        results: the number of each result; None where nobody needs it.
        source: the layer of the model it comes from.
    """

    operator: str
    arguments: list[Any]
    results: list[int | None]
    source: str = ""


@dataclass
class Program:
    """Instructions in the order they run.

    Attributes:
        inputs, outputs: numbers of the values that go in and out.
        constants: number to tensor, for fixed tensors.
        prologue: packs weights for the CPU at hand, once, when the program is loaded.
        body: what runs on every call.
        count: how many numbers there are.
        parameters: names of the positional arguments.
        in_spec, out_spec: how arguments and results are nested, as ``torch.utils._pytree.treespec_dumps`` writes it.
        coverage: (layer, operator, "int8" or the reason why it is float) of every operator of the model.
    """

    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    constants: dict[int, torch.Tensor] = field(default_factory=dict)
    prologue: list[Instruction] = field(default_factory=list)
    body: list[Instruction] = field(default_factory=list)
    count: int = 0
    parameters: list[str] = field(default_factory=list)
    in_spec: str = ""
    out_spec: str = ""
    coverage: list[tuple[str, str, str]] = field(default_factory=list)

    def prepared(
        self,
        packed: Callable[[torch.Tensor], None] | None = None,
        place: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> dict[int, torch.Tensor]:
        """The constants and what the prologue makes of them.

        ``packed`` is told of each constant that was just read, and ``place`` gives each packed weight the memory it stays in.
        """
        values: dict[int, Any] = dict(self.constants)
        for instruction, weight in zip(self.prologue, self.packed_weights(), strict=True):
            _call(instruction, bind(instruction), values)
            (result,) = instruction.results
            if place is not None and result is not None:
                values[result] = place(values[result])
            if packed is not None:
                packed(values[weight])
        return values

    def packed_weights(self) -> list[int]:
        """The constant that each instruction of the prologue packs."""
        return [i.arguments[0].index for i in self.prologue]

    def bound(self) -> list[Bound]:
        """What each instruction of the body calls."""
        return [bind(i) for i in self.body]

    def interpret(
        self,
        inputs: Sequence[torch.Tensor],
        prepared: dict[int, torch.Tensor] | None = None,
        bound: list[Bound] | None = None,
    ) -> list[torch.Tensor]:
        """Runs the program operator by operator from Python: the engine's specification, and what torch.compile sees."""
        values: dict[int, Any] = dict(self.prepared() if prepared is None else prepared)
        values.update(zip(self.inputs, inputs, strict=True))
        for instruction, call in zip(self.body, self.bound() if bound is None else bound, strict=True):
            _call(instruction, call, values)
        return [values[index] for index in self.outputs]

    def require(self, guards: Sequence[Guard]) -> None:
        """Puts conditions on the inputs' sizes before everything else."""
        head: list[Instruction] = []
        known: dict[Any, Register] = {}

        def number(expression: Any) -> Any:
            if isinstance(expression, int):
                return expression
            if expression not in known:
                if isinstance(expression, Size):
                    operator, arguments = "int::size", [Value(self.inputs[expression.input]), expression.dim]
                else:
                    operator, arguments = expression[0], [number(e) for e in expression[1:]]
                known[expression] = new(operator, arguments, "")
            return known[expression]

        def new(operator: str, arguments: list[Any], source: str) -> Register:
            head.append(Instruction(operator, arguments, [self.count], source))
            self.count += 1
            return Register(self.count - 1)

        for guard in guards:
            new(guard.operator, [number(guard.left), number(guard.right)], guard.text)
        self.body = head + self.body

    @staticmethod
    def from_graph(module: fx.GraphModule) -> Program:
        """A program of a graph of operators, as :class:`~zeropoint.graph.lower.Lowering` makes it.

        Raises:
            ProgramError: the graph calls something that is no operator.
        """
        return _Builder(module).build()


def operator_of(name: str) -> torch._ops.OpOverload | None:
    """The torch operator of an instruction's name, None if there is none."""
    namespace, _, rest = name.partition("::")
    packet_name, _, overload = rest.partition(".")
    if namespace not in ("aten", "zeropoint"):
        return None
    packet = getattr(getattr(torch.ops, namespace), packet_name, None)
    return getattr(packet, overload or "default", None)


def gives_list(target: torch._ops.OpOverload) -> bool:
    """Whether the operator gives one list of tensors instead of tensors."""
    returns = target._schema.returns
    return len(returns) == 1 and isinstance(returns[0].type, torch.ListType)


Bound = tuple[Callable[..., Any], tuple[str, ...]]
"""A function, and the names of its last arguments where they go by name."""


def _size(x: torch.Tensor, dim: int) -> int:
    return x.shape[dim]


def bind(instruction: Instruction) -> Bound:
    """The function that an instruction calls."""
    if instruction.operator == "int::size":
        return _size, ()
    if instruction.operator in INTEGERS:
        return INTEGERS[instruction.operator], ()
    target = operator_of(instruction.operator)
    if target is None:
        raise ProgramError(f"program: there is no operator {instruction.operator}")
    return target, tuple(a.name for a in target._schema.arguments if a.kwarg_only)


def refusal(instruction: Instruction, found: str) -> str:
    """What is said of inputs that do not meet a condition."""
    return f"the program is for inputs with {instruction.source}, as the example had; {found}"


def _resolve(argument: Any, values: dict[int, Any]) -> Any:
    if isinstance(argument, (Value, Register)):
        return values[argument.index]
    if isinstance(argument, list):
        return [_resolve(a, values) for a in argument]
    return argument


def _call(instruction: Instruction, bound: Bound, values: dict[int, Any]) -> None:
    arguments = [_resolve(a, values) for a in instruction.arguments]
    function, keywords = bound
    positional = len(arguments) - len(keywords)
    try:
        result = function(*arguments[:positional], **dict(zip(keywords, arguments[positional:], strict=True)))
    except _UnmetError as error:
        raise ProgramError(refusal(instruction, str(error))) from None
    results = list(result) if isinstance(result, (list, tuple)) else [result]
    for index, value in zip(instruction.results, results, strict=False):
        if index is not None:
            values[index] = value


def _content(value: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, in the order of its elements."""
    return value.contiguous().reshape(-1).view(torch.uint8)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def fits(value: Any, kind: Any) -> bool:
    """Whether an argument can stand for a parameter of this type of the operator's schema."""
    if isinstance(kind, torch.OptionalType):
        return value is None or fits(value, kind.getElementType())
    if isinstance(kind, torch.ListType):
        return isinstance(value, list) and all(fits(v, kind.getElementType()) for v in value)
    if isinstance(kind, torch.TensorType):
        return isinstance(value, Value)
    if isinstance(kind, torch.BoolType):
        return isinstance(value, bool)
    if isinstance(kind, torch.StringType):
        return isinstance(value, str)
    if isinstance(kind, torch.FloatType):
        return isinstance(value, float) or is_integer(value)
    if isinstance(kind, torch.NumberType):
        return isinstance(value, (int, float))
    if isinstance(kind, (torch.IntType, torch.SymIntType)):
        return is_integer(value) or isinstance(value, (Register, torch.dtype, torch.memory_format))
    return value is None


class _Builder:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.program = Program()
        self.values: dict[fx.Node, Any] = {}
        self.constants: dict[str, Value] = {}
        self.by_content: dict[tuple[object, ...], list[int]] = {}
        self.fixed: set[int] = set()
        self.folded: dict[str, Value] = {}  # results of calls on fixed tensors alone

    def build(self) -> Program:
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = Value(self._new())
                self.program.inputs.append(self.values[node].index)
            elif node.op == "get_attr":
                self.values[node] = self._constant(str(node.target))
            elif node.op == "output":
                self._outputs(node)
            elif node.op == "call_function":
                self._call_function(node)
            else:
                raise ProgramError(f"program: {node.op} {node.target} is no operator")
        return self.program

    def _new(self) -> int:
        self.program.count += 1
        return self.program.count - 1

    def _constant(self, name: str) -> Value:
        if name not in self.constants:
            value = operator.attrgetter(name)(self.module)
            if not isinstance(value, torch.Tensor):
                raise ProgramError(f"program: {name} is no tensor")
            self.constants[name] = self._fixed(value.detach())
        return self.constants[name]

    def _fixed(self, value: torch.Tensor) -> Value:
        """A constant; one that has the same bits already serves for both, as the weight of a layer that is called again."""
        content = _content(value)
        sample = content[:: max(1, content.numel() // 64)].tolist()
        alike = self.by_content.setdefault((value.dtype, value.shape, value.stride(), *sample), [])
        for index in alike:
            if torch.equal(_content(self.program.constants[index]), content):
                return Value(index)
        index = self._new()
        alike.append(index)
        self.program.constants[index] = value
        self.fixed.add(index)
        return Value(index)

    def _outputs(self, node: fx.Node) -> None:
        for value in node.args[0]:  # type: ignore[union-attr]
            known = self.values.get(value) if isinstance(value, fx.Node) else None
            if not isinstance(known, Value):
                raise ProgramError(f"program: an output is no tensor: {value}")
            index = known.index
            if index in self.fixed:  # callers own what they get, and may write to it
                index = self._new()
                self.program.body.append(Instruction("aten::clone", [known, None], [index], str(value)))
            self.program.outputs.append(index)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.values[value]
        if isinstance(value, (list, tuple)):
            return [self._argument(v) for v in value]
        if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.memory_format)):
            return value
        if isinstance(value, (torch.device, torch.layout)):
            return None
        raise ProgramError(f"program: an argument of type {type(value).__name__} has no form")

    def _call_function(self, node: fx.Node) -> None:
        target: Any = node.target
        source = str(node.meta.get("source", node.name))
        if target is operator.getitem:
            parts = self.values[node.args[0]]  # type: ignore[index]
            self.values[node] = parts[node.args[1]]
            return
        if target is torch.ops.aten.sym_size.int:
            name, arguments = "int::size", list(node.args)
        elif target in _INTEGER_NAMES:
            name, arguments = _INTEGER_NAMES[target], list(node.args)
        elif isinstance(target, torch._ops.OpOverload) and target.namespace in ("aten", "zeropoint"):
            self._operator(node, target, source)
            return
        else:
            raise ProgramError(f"program: {target} ({source}) is no operator")
        result = Register(self._new())
        self.values[node] = result
        self.program.body.append(Instruction(name, [self._argument(a) for a in arguments], [result.index], source))

    def _operator(self, node: fx.Node, target: torch._ops.OpOverload, source: str) -> None:
        schema = target._schema.arguments
        given = dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
        arguments = []
        for a in schema:
            value = given.get(a.name, a.default_value)
            if isinstance(a.type, torch.TensorType) and isinstance(value, (int, float)):
                arguments.append(self._fixed(torch.tensor(value)))
            else:
                arguments.append(self._argument(value))
        name = f"{target.namespace}::{target._opname}" + (
            "" if target._overloadname == "default" else f".{target._overloadname}"
        )
        instruction = Instruction(name, arguments, [], source)
        fixed = all(v.index in self.fixed for v in _values(arguments)) and not _registers(arguments)
        fixed = fixed and torch.Tag.nondeterministic_seeded not in target.tags
        if isinstance(target._schema.returns[0].type, torch.TensorType) and len(target._schema.returns) == 1:
            # What is computed twice of the same is one tensor: a weight that is packed is the one that is multiplied.
            key = f"{name} {arguments}"
            if key in self.folded:
                self.values[node] = self.folded[key]
                return
            instruction.results = [self._new()]
            self.values[node] = Value(instruction.results[0])  # type: ignore[arg-type]
            if fixed and _values(arguments):
                self.folded[key] = self.values[node]
        else:
            used = {user.args[1]: None for user in node.users if user.target is operator.getitem}
            if len(used) < len({*node.users}) and any(u.target is not operator.getitem for u in node.users):
                raise ProgramError(f"program: the list that {target} ({source}) gives is used as a whole")
            count = max((int(i) for i in used), default=-1) + 1  # type: ignore[arg-type]
            instruction.results = [self._new() if i in used else None for i in range(count)]
            self.values[node] = [None if r is None else Value(r) for r in instruction.results]
        if fixed:
            self._fold(node, target, instruction)
        else:
            self.program.body.append(instruction)

    def _fold(self, node: fx.Node, target: torch._ops.OpOverload, instruction: Instruction) -> None:
        """A call on fixed tensors alone: packing is left to loading, anything else is computed here."""
        results = {r for r in instruction.results if r is not None}
        if target._opname.endswith("_pack"):
            self.program.prologue.append(instruction)
        else:
            values: dict[int, Any] = dict(self.program.constants)
            if any(v.index not in values for v in _values(instruction.arguments)):
                self.program.body.append(instruction)
                return
            _call(instruction, bind(instruction), values)
            self.program.constants.update({r: values[r].contiguous() for r in results})
        self.fixed |= results


def _values(arguments: Any) -> list[Value]:
    if isinstance(arguments, Value):
        return [arguments]
    return [v for a in arguments for v in _values(a)] if isinstance(arguments, list) else []


def _registers(arguments: Any) -> list[Register]:
    if isinstance(arguments, Register):
        return [arguments]
    return [r for a in arguments for r in _registers(a)] if isinstance(arguments, list) else []
