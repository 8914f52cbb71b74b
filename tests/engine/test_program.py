"""Programs by hand, and what the native engine does with code that is none."""

import gc
import operator
import random

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, treespec_dumps

import zeropoint as zp
from zeropoint import _native, ops
from zeropoint.engine import Program, ProgramError, ProgramModule
from zeropoint.engine.bytecode import encode


def program_of(function, *constants):
    """A program of a function over inputs x, y and fixed tensors, written with operators."""
    graph = fx.Graph()
    module = torch.nn.Module()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    fixed = []
    for i, value in enumerate(constants):
        module.register_buffer(f"c{i}", value)
        fixed.append(graph.get_attr(f"c{i}"))
    graph.output(tuple(function(graph, x, y, *fixed)))
    program = Program.from_graph(fx.GraphModule(module, graph))
    program.in_spec = treespec_dumps(tree_flatten(((1, 1), {}))[1])
    program.out_spec = treespec_dumps(tree_flatten((1,) * len(program.outputs))[1])
    return program


WEIGHT = torch.randint(-128, 128, (5, 8), dtype=torch.int8)


def linear(graph, x, bias, weight, scale):
    packed = graph.call_function(ops.linear_pack, (weight, None))
    return [
        graph.call_function(ops.linear, (x, weight, packed, scale, None, bias, 0.1, 3, 1.0, 0, 0, 255, torch.float32))
    ]


def test_a_computed_bias_is_read_in_every_run():
    module = ProgramModule(program_of(linear, WEIGHT, torch.ones(5)))
    assert module.engine == "native"
    x = torch.randint(0, 255, (3, 8), dtype=torch.uint8)
    for _ in range(3):
        bias = torch.randn(5)
        (out,) = module(x, bias)
        assert torch.equal(out, module.program.interpret([x, bias])[0])


def test_fixed_calls_are_computed_once():
    aten = torch.ops.aten
    program = program_of(
        lambda g, x, y, c: [g.call_function(aten.mul.Tensor, (x, g.call_function(aten.neg.default, (c,))))],
        torch.ones(3),
    )
    assert [i.operator for i in program.body] == ["aten::mul.Tensor"]
    assert any(torch.equal(v, -torch.ones(3)) for v in program.constants.values())


def test_packing_is_left_to_loading():
    program = program_of(linear, WEIGHT, torch.ones(5))
    assert [i.operator for i in program.prologue] == ["zeropoint::linear_pack"]
    assert not any(v.dtype == torch.uint8 for v in program.constants.values())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda g, x, y: [g.call_function(torch.sin, (x,))], "is no operator"),
        (lambda g, x, y: [g.call_function(torch.ops.aten.split.Tensor, (x, 2))], "used as a whole"),
        (lambda g, x, y: [3], "an output is no tensor"),
    ],
)
def test_graphs_that_are_no_programs(function, message):
    with pytest.raises(ProgramError, match=message):
        program_of(function)


def test_wrong_inputs_are_errors():
    module = ProgramModule(program_of(linear, WEIGHT, torch.ones(5)))
    with pytest.raises(ValueError, match="8"):
        module(torch.zeros(3, 7, dtype=torch.uint8), torch.zeros(5))
    with pytest.raises(ValueError, match="bias"):
        module(torch.zeros(3, 8, dtype=torch.uint8), torch.zeros(4))
    x, bias = torch.zeros(3, 8, dtype=torch.uint8), torch.zeros(5)
    assert torch.equal(module(x, bias)[0], module.program.interpret([x, bias])[0])  # and it still works


def test_what_torch_refuses_is_named():
    """torch's own message does not reach the engine, so its says the operator and what it was given."""
    program = ProgramModule(
        program_of(
            lambda graph, x, y, table: [graph.call_function(torch.ops.aten.embedding.default, (table, x))],
            WEIGHT.float(),
        )
    )
    assert program.engine == "native"
    indices = torch.tensor([[1, 4]])
    assert torch.equal(program(indices, indices)[0], WEIGHT.float()[indices])
    with pytest.raises(
        RuntimeError, match=r"aten::embedding does not take what it is given: Float \[5, 8\], Float \[1, 2\]"
    ):
        program(indices.float(), indices)


def test_code_that_is_none():
    create = torch.ops.zeropoint.program_create.default
    program = program_of(linear, WEIGHT, torch.ones(5))
    prepared = program.prepared()
    code, names = encode(program, sorted(prepared))
    tensors = [prepared[i] for i in sorted(prepared)]
    choose = random.Random(0)
    for cut in range(len(code)):
        with pytest.raises(ValueError, match="program"):
            create(code[:cut].contiguous(), names, tensors)
    x, bias = torch.zeros(3, 8, dtype=torch.uint8), torch.zeros(5)
    for _ in range(500):
        changed = code.clone()
        changed[choose.randrange(len(code))] = choose.choice([-1, 0, 1, 2, 7, 255, 2**31, 2**62, -(2**63)])
        try:
            number = create(changed, names, tensors)
        except ValueError:
            continue
        try:
            torch.ops.zeropoint.program_run.default(number, [x, bias])
        except (ValueError, RuntimeError):
            pass
        finally:
            _native.release_program(number)
    with pytest.raises(ValueError, match="no program number"):
        torch.ops.zeropoint.program_run.default(10**9, [x, bias])


def test_programs_that_are_collected_while_a_graph_is_traced_leave_no_trace():
    program = zp.quantize(nn.Linear(4, 4).eval(), dynamic=True, example=torch.randn(2, 4))

    def traced(x):
        nonlocal program
        program = None
        gc.collect()
        return x + 1

    graph = make_fx(traced)(torch.randn(2))
    assert [str(n.target) for n in graph.graph.nodes if n.op == "call_function"] == ["aten.add.Tensor"]


def chosen(graph, y, index):
    return graph.call_function(torch.ops.aten.select.int, (y, 0, index))


@pytest.mark.parametrize(
    "function",
    [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, torch.sym_min, torch.sym_max],
)
def test_integers(function):
    """As Python computes them, of both signs."""
    divisors, y = (3, -3), torch.arange(64)

    def integers(g, x, y):
        size = g.call_function(torch.ops.aten.sym_size.int, (x, 0))
        return [chosen(g, y, g.call_function(function, (size, divisor))) for divisor in divisors]

    module = ProgramModule(program_of(integers))
    assert module.engine == "native"
    for n in (1, 6, 8):
        assert [r.item() for r in module(torch.zeros(n), y)] == [function(n, d) % 64 for d in divisors]


@pytest.mark.parametrize("function", [operator.floordiv, operator.mod])
@pytest.mark.parametrize("divisor", [0, -1])
def test_integers_that_trap(function, divisor):
    """-2^63 by -1 and anything by 0 stop a processor, not the program."""

    def trap(g, x, y):
        size = g.call_function(torch.ops.aten.sym_size.int, (x, 0))
        for factor in (2**31, 2**31, -2):
            size = g.call_function(operator.mul, (size, factor))
        return [chosen(g, y, g.call_function(function, (size, divisor)))]

    module = ProgramModule(program_of(trap))
    assert module.engine == "native"
    if divisor == -1 and function is operator.mod:
        assert module(torch.zeros(1), torch.arange(64))[0].item() == 0
    else:
        with pytest.raises((ValueError, RuntimeError), match=r"size by 0|does not take what it is given"):
            module(torch.zeros(1), torch.arange(64))
