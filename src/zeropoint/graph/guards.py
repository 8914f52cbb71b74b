"""What a captured graph takes for granted about the sizes of its inputs.

torch.export follows the one way through a model that the example takes: a size that the model uses as a number is fixed
(the positions of a ViT), a branch on a size holds on its side of the comparison, and a view of whole windows needs sizes
that the window divides. Elsewhere the graph would compute something else than the model, without an error.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import keystr, tree_flatten_with_path

from zeropoint.engine.program import INTEGERS, Guard, ProgramError, Size
from zeropoint.errors import QuantizationError

__all__ = ["UnreadableGuardError", "check_sizes", "input_guards", "unmet"]

_OPERATORS = {
    ast.Add: "int::add",
    ast.Sub: "int::sub",
    ast.Mult: "int::mul",
    ast.FloorDiv: "int::floordiv",
    ast.Mod: "int::mod",
}
_MOST = 1 << 31  # no size is as large
_FUNCTIONS = {"max": "int::max", "min": "int::min"}


class UnreadableGuardError(QuantizationError):
    """A condition on sizes that no program can check; the message is the condition."""


class _UnknownError(Exception):
    """Something else than integers of sizes."""


@dataclass
class _Reader:
    """Reads conditions as torch writes them, ``(L['x'].size()[2] % 4) == 0``; ``inputs`` numbers the tensors by path."""

    inputs: dict[str, int]

    def guards(self, text: str) -> list[Guard]:
        """The conditions to check, none of most.

        "Not equal", "at least 2" and alternatives are left out: torch asks that of every open size, and programs serve 0
        and 1. So are those between values that are no integers, as the sizes of a rescaled image, and between numbers of
        elements, which decide about strides, or which views check themselves.

        Raises:
            UnreadableGuardError: a value that is no integer of sizes is fixed or bounded.
        """
        tree = ast.parse(text, mode="eval").body
        if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
            return [guard for value in tree.values for guard in self.guards(ast.unparse(value))]
        if not isinstance(tree, ast.Compare) or len(tree.ops) != 1:
            return []
        sides = (tree.left, tree.comparators[0])
        if isinstance(tree.ops[0], (ast.Gt, ast.GtE)):
            sides = sides[::-1]
        try:
            left, right = map(self.expression, sides)
        except _UnknownError:
            least, most = (side.value if isinstance(side, ast.Constant) else None for side in sides)
            is_fixed = isinstance(tree.ops[0], ast.Eq) and (least is not None or most is not None)
            is_bounded = not isinstance(tree.ops[0], (ast.Eq, ast.NotEq)) and (most is not None or (least or 0) > 2)
            if not is_fixed and not is_bounded:
                return []
            raise UnreadableGuardError(_readable(text)) from None
        match tree.ops[0]:
            case ast.Eq():
                operator = "int::require_equal"
            case ast.LtE() | ast.GtE():
                operator = "int::require_at_most"
            case ast.Lt() | ast.Gt():
                operator = "int::require_at_most"
                left = left + 1 if isinstance(left, int) else ("int::add", left, 1)
            case _:
                return []
        if left == right or (isinstance(tree.ops[0], ast.Eq) and _factors(left) & _factors(right)):
            return []
        if operator == "int::require_at_most" and isinstance(left, int) and left <= 2:
            return []
        return [Guard(operator, left, right, _readable(text))]

    def expression(self, tree: ast.expr) -> Any:
        match tree:
            case ast.Constant(value=int()):
                return tree.value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return ("int::sub", 0, self.expression(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return (_OPERATORS[type(op)], self.expression(left), self.expression(right))
            case ast.Call(func=ast.Name(id="max"), args=[ast.Constant(value=1), size]):  # torch's, for strides
                return self.expression(size)
            case ast.Call(func=ast.Name(id=name), args=[first, *rest]) if name in _FUNCTIONS:
                result = self.expression(first)
                for one in rest:
                    result = (_FUNCTIONS[name], result, self.expression(one))
                return result
            case ast.Call(func=ast.Attribute(value=ast.Name(id="math"), attr="trunc"), args=[ast.BinOp() as product]):
                return self.part(product)
            case ast.Subscript(
                value=ast.Call(func=ast.Attribute(value=path, attr="size"), args=[]), slice=ast.Constant(value=dim)
            ) if ast.unparse(path) in self.inputs:
                return Size(self.inputs[ast.unparse(path)], dim)
        raise _UnknownError

    def part(self, tree: ast.BinOp) -> Any:
        """The whole part of a size by an integer, or of its product with a float that has few bits."""
        match tree:
            case ast.BinOp(left=size, op=ast.Div(), right=ast.Constant(value=int() as divisor)) if divisor > 0:
                return ("int::floordiv", self.expression(size), divisor)
            case ast.BinOp(
                left=ast.Constant(value=float() as factor),
                op=ast.Mult(),
                right=ast.Call(func=ast.Attribute(attr="sym_float"), args=[size]),
            ) if factor > 0 and factor.as_integer_ratio()[1] <= 64:
                numerator, denominator = factor.as_integer_ratio()
                return ("int::floordiv", ("int::mul", self.expression(size), numerator), denominator)
        raise _UnknownError


def _factors(expression: Any) -> set[Any]:
    """The sizes that a number of elements is the product of; none of anything else."""
    if not isinstance(expression, tuple) or expression[0] != "int::mul":
        return set()
    return {
        factor
        for side in expression[1:]
        for factor in (_factors(side) or ({side} if isinstance(side, Size) else set()))
    }


def _readable(text: str) -> str:
    """``x.shape[2] % 4 == 0`` of ``(L['x'].size()[2] % 4) == 0``."""
    return re.sub(r"L\['(\w+)'\]", r"\1", text).replace(".size()[", ".shape[")


def _of_single_sizes(exported: torch.export.ExportedProgram, paths: Sequence[str]) -> list[str]:
    """A size is a number, the same as another one, or in a range."""
    texts: list[str] = []
    first: dict[Any, str] = {}
    nodes = {node.name: node for node in exported.graph.nodes}
    for path, name in zip(paths, exported.graph_signature.user_inputs, strict=True):
        for d, size in enumerate(nodes[str(name)].meta["val"].shape):
            here = f"{path}.size()[{d}]"
            if isinstance(size, int):
                texts.append(f"{here} == {size}")
                continue
            expression = size.node.expr
            if expression in first:
                texts.append(f"{here} == {first[expression]}")
                continue
            first[expression] = here
            known = exported.range_constraints.get(expression)
            if known is not None and known.lower > 2:
                texts.append(f"{here} >= {int(known.lower)}")
            if known is not None and known.upper < _MOST:
                texts.append(f"{here} <= {int(known.upper)}")
    return texts


def input_guards(
    exported: torch.export.ExportedProgram, arguments: dict[str, Any], flat: Sequence[torch.Tensor]
) -> list[Guard]:
    """The conditions that inputs of ``exported`` have to meet.

    Args:
        arguments: those of the example by the names of the model's parameters.
        flat: its tensors in the order of the graph's inputs.

    Raises:
        UnreadableGuardError: a condition that no program can check.
    """
    by_leaf = {id(leaf): "L" + keystr(path) for path, leaf in tree_flatten_with_path(arguments)[0]}
    paths = [by_leaf[id(leaf)] for leaf in flat]
    reader = _Reader({ast.unparse(ast.parse(path, mode="eval")): i for i, path in enumerate(paths)})
    # How torch.export keeps what it found out on its way; without it conditions on several sizes are not known.
    found = getattr(exported, "_guards_code", None) or []
    texts = dict.fromkeys([*_of_single_sizes(exported, paths), *found])
    return list({(g.operator, g.left, g.right): g for text in texts for g in reader.guards(text)}.values())


def _value(expression: Any, shapes: Sequence[Sequence[int]]) -> int:
    if isinstance(expression, Size):
        return shapes[expression.input][expression.dim]
    if isinstance(expression, int):
        return expression
    operator, left, right = expression
    result: int = INTEGERS[operator](_value(left, shapes), _value(right, shapes))
    return result


def unmet(guard: Guard, shapes: Sequence[Sequence[int]]) -> bool:
    """Whether inputs of these shapes are none that the graph was captured for."""
    try:
        _value((guard.operator, guard.left, guard.right), shapes)
    except (ProgramError, ZeroDivisionError, IndexError):
        return True
    return False


def check_sizes(guards: Sequence[Guard], inputs: Sequence[torch.Tensor]) -> None:
    """Refuses inputs that the graph computes something else for than the model.

    Raises:
        QuantizationError: a size is not one that the model was captured for.
    """
    shapes = [tuple(x.shape) for x in inputs]
    for guard in guards:
        if unmet(guard, shapes):
            given = ", ".join(str(list(shape)) for shape in shapes)
            raise QuantizationError(f"quantize: the model was captured for inputs with {guard.text}, got {given}")
