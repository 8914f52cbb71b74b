"""A model as one flat graph of aten operators, by torch.export."""

from __future__ import annotations

import enum
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from zeropoint.engine.program import INTEGERS, Guard
from zeropoint.errors import QuantizationError
from zeropoint.graph.canonicalize import is_check, is_power
from zeropoint.graph.contexts import inline_contexts
from zeropoint.graph.guards import input_guards, unmet

__all__ = ["CaptureError", "Captured", "capture", "in_eval_mode", "is_inplace"]


class CaptureError(QuantizationError):
    """torch.export cannot take the model as one graph; the message says why."""


@dataclass
class Captured:
    """A graph of aten calls over flat inputs, and how arguments and results are nested.

    ``graph_module`` has one placeholder per tensor of the arguments, reads weights by ``get_attr``, and returns a flat
    tuple. ``parameters`` are the names of the positional arguments. ``guards`` are what its inputs' sizes have to meet.
    """

    graph_module: fx.GraphModule
    in_spec: TreeSpec
    out_spec: TreeSpec
    parameters: list[str]
    guards: list[Guard]


def is_inplace(node: fx.Node) -> bool:
    """Whether the node's operator writes into its first argument."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


class _SimpleSizes(TorchFunctionMode):
    """Ends a trace whose open sizes grow into long expressions.

    Every stage of a network that pads by ``(w - H % w) % w`` makes them longer, and what torch.export spends on them
    grows faster still, to hours. Sizes of plain convolutional networks have up to 10 operations, of sound encoders 20.
    """

    LIMIT = 40  # operations in one size

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            for size in result.shape:
                if isinstance(size, torch.SymInt) and size.node.expr.count_ops() > self.LIMIT:
                    raise CaptureError(f"capture: a size has more than {self.LIMIT} operations: {size}")
        return result


def _unknown_size(graph: fx.Graph) -> Any:
    """A size that is computed in a way that programs do not know, and that something needs."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        computes = not is_check(node) and isinstance(node.meta.get("val"), (torch.Tensor, list, tuple))
        if node in needed or computes or node.op == "output":
            needed.update(node.all_input_nodes)
    for node in graph.nodes:
        size = node.op == "call_function" and isinstance(
            node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool)
        )
        known = isinstance(node.target, torch._ops.OpOverload) or node.target in INTEGERS.values() or is_power(node)
        if size and node in needed and not known:
            return node.meta["val"]
    return None


def _doubled(leaf: Any) -> Any:
    return torch.cat([leaf, leaf]) if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == 1 else leaf


@contextmanager
def _quiet() -> Any:
    loggers = [logging.getLogger(name) for name in ("torch._export", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Open(enum.Enum):
    """Which dimensions of the inputs a graph leaves open."""

    ALL = "all"
    FIRST = "first"
    NONE = "none"


def _dynamic(tree: Any, opened: _Open) -> Any:
    if opened is _Open.NONE:
        return None
    dims = lambda leaf: range(leaf.dim() if opened is _Open.ALL else min(leaf.dim(), 1))
    return torch.utils._pytree.tree_map(
        lambda leaf: dict.fromkeys(dims(leaf), Dim.AUTO) if isinstance(leaf, torch.Tensor) else None, tree
    )


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.export.ExportedProgram, list[Guard]]:
    """With every dimension that the model leaves open, or the first ones alone where sizes become too complicated.

    A batch of 1 is doubled, since export takes 1 for a constant.
    """
    named, flat = inspect.signature(model.forward).bind(*args, **kwargs).arguments, tree_leaves((args, kwargs))
    reasons = []
    doubled = torch.utils._pytree.tree_map(_doubled, (args, kwargs))
    given = (args, kwargs)
    for (a, k), opened in ((doubled, _Open.ALL), (doubled, _Open.FIRST), (given, _Open.ALL), (given, _Open.NONE)):
        try:
            with _SimpleSizes():
                shapes = _dynamic(dict(named), opened)  # doubling adds no dimension
                exported = torch.export.export(model, a, k, dynamic_shapes=shapes, strict=False)
            guards = input_guards(exported, named, flat)
            unknown = _unknown_size(exported.graph)
            narrow = [guard.text for guard in guards if unmet(guard, [x.shape for x in flat])]  # of the doubled batch
            if unknown is None and not narrow:
                return exported, guards
            reasons.append(narrow[0] if narrow else f"a size is {unknown}, which programs cannot compute")
        except Exception as error:  # whatever stops export, the model can still run module by module
            reasons.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
    raise CaptureError(f"capture: torch.export failed: {reasons[-1]}")


def _written_values_are_fresh(graph: fx.Graph) -> bool:
    """Whether every in-place operator writes to a value that nothing before it has a view of and no later node needs."""
    for node in graph.nodes:
        if node.op != "call_function" or not is_inplace(node):
            continue
        target = node.args[0]
        if not isinstance(target, fx.Node) or target.op != "call_function":
            return False
        written = target.target._schema.returns if isinstance(target.target, torch._ops.OpOverload) else ()
        if not written or any(r.alias_info is not None and not is_inplace(target) for r in written):
            return False
        for user in target.users:
            if user is not node and not isinstance(user.target, torch._ops.OpOverload):
                return False
            if user is not node and user < node and any(r.alias_info is not None for r in user.target._schema.returns):
                return False
    return True


def _functional(node: fx.Node) -> torch._ops.OpOverload | None:
    """The operator that returns what ``node`` writes."""
    packet = getattr(torch.ops.aten, node.target._schema.name.split("::")[1].removesuffix("_"), None)
    overload = node.target._overloadname
    return getattr(packet, overload, None) if packet is not None else None


def _flat(exported: torch.export.ExportedProgram) -> fx.GraphModule:
    module = exported.module(check_guards=False)
    inline_contexts(module)
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            found = f"{node.target} of {', '.join(str(a) for a in node.args if not isinstance(a, fx.Node))}"
            raise CaptureError(f"capture: the model has a part that runs apart, and programs have none: {found}")
    return module


def _functionalize(exported: torch.export.ExportedProgram) -> fx.GraphModule:
    module = _flat(exported)
    graph = module.graph
    for node in list(graph.nodes):
        if node.target in (torch.ops.aten.dropout_.default, torch.ops.aten.feature_dropout_.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    simple = not exported.graph_signature.buffers_to_mutate and _written_values_are_fresh(graph)
    if simple and all(_functional(n) for n in graph.nodes if n.op == "call_function" and is_inplace(n)):
        for node in graph.nodes:
            if node.op == "call_function" and is_inplace(node):
                target = node.args[0]
                node.target = _functional(node)
                target.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: node < user)
        return module
    with _quiet():
        exported = exported.run_decompositions({})
    if exported.graph_signature.buffers_to_mutate or exported.graph_signature.user_inputs_to_mutate:
        changed = [
            *exported.graph_signature.buffers_to_mutate.values(),
            *exported.graph_signature.user_inputs_to_mutate.values(),
        ]
        raise CaptureError(f"capture: the model writes to its state or inputs ({', '.join(changed)})")
    return _flat(exported)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module as it was, after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for one in training:
            one.training = True


def capture(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Captured:
    """``model`` in eval mode as a graph of functional aten operators; batch and sequence stay open where the model does.

    Raises:
        CaptureError: torch.export cannot follow the model, an argument is no tensor, the model is not float32 on the CPU, or
            it changes its state.
    """
    kwargs = kwargs or {}
    others = [type(leaf).__name__ for leaf in tree_leaves((args, kwargs)) if not isinstance(leaf, torch.Tensor)]
    if others:
        raise CaptureError(f"capture: arguments must be tensors, got {', '.join(sorted(set(others)))}")
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    devices = {p.device.type for p in model.parameters()}
    if dtypes - {torch.float32} or devices - {"cpu"}:
        found = ", ".join(sorted(map(str, (dtypes - {torch.float32}) | (devices - {"cpu"}))))
        raise CaptureError(
            f"capture: programs are made of float32 models on the CPU, this one has {found}; try model.float()"
        )
    with _quiet(), torch.no_grad(), in_eval_mode(model):
        exported, guards = _export(model, args, kwargs)
        module = _functionalize(exported)
    assert exported.call_spec.in_spec is not None
    assert exported.call_spec.out_spec is not None
    graph = module.graph
    graph.set_codegen(fx.graph.CodeGen())
    output = next(n for n in graph.nodes if n.op == "output")
    output.args = (tuple(tree_flatten(output.args[0])[0]),)
    for node in [n for n in graph.nodes if n.op == "call_module"]:
        graph.erase_node(node)  # guards on the example's shapes
    module.recompile()
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    parameters = [name for name in bound.arguments if name not in kwargs][: len(args)]
    return Captured(module, exported.call_spec.in_spec, exported.call_spec.out_spec, parameters, guards)
