"""Single steps of recurrent layers (``nn.GRUCell`` and its like) as layers of one step, which have an int8 form."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import is_constant
from zeropoint.graph.rewrite import Rewriter, replace_node

__all__ = ["cells_to_layers"]

aten = torch.ops.aten

_LAYERS = {
    aten.lstm_cell.default: aten.lstm.input,
    aten.gru_cell.default: aten.gru.input,
    aten.rnn_tanh_cell.default: aten.rnn_tanh.input,
    aten.rnn_relu_cell.default: aten.rnn_relu.input,
}


def _as_layer(module: fx.GraphModule, node: fx.Node) -> None:
    a = arguments(node)
    params: list[Any] = [a["w_ih"], a["w_hh"]]
    biases = [b for b in (a["b_ih"], a["b_hh"]) if b is not None]
    if len(biases) == 1 or not all(is_constant(p) for p in params + biases):
        return
    rewriter = Rewriter(module, node)
    is_lstm = node.target is aten.lstm_cell.default

    def view(target: Any, value: fx.Node) -> fx.Node:
        call = rewriter.call(target, value, 0)
        call.meta["added"] = True
        return call

    states = [view(aten.unsqueeze.default, s) for s in (a["hx"] if is_lstm else [a["hx"]])]
    x = view(aten.unsqueeze.default, a["input"])
    options = (bool(biases), 1, 0.0, False, False, False)  # of one layer in one direction, in eval mode
    with module.graph.inserting_before(node):
        layer = module.graph.call_function(
            _LAYERS[node.target], (x, states if is_lstm else states[0], params + biases, *options)
        )
    # Output and states of one step have the shape of a state; torch's LSTM does not run on shapes alone.
    layer.meta = {**node.meta, "val": tuple(s.meta["val"] for s in (states[0], *states))}

    def final(index: int) -> fx.Node:
        return view(aten.squeeze.dim, rewriter.call(operator.getitem, layer, index))

    if not is_lstm:
        rewriter.replace(final(1))
        return
    for user in list(node.users):
        replace_node(user, final(1 + user.args[1]))
    module.graph.erase_node(node)


def cells_to_layers(module: fx.GraphModule) -> None:
    """Rewrites the cells of ``module`` with fixed weights, in place. The same steps, up to the rounding of float32."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _LAYERS:
            _as_layer(module, node)
    module.recompile()
