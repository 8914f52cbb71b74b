"""Call sites under torch.compile.

Dynamo replays its graph without the hooks of _callsite.py. So while it traces a converted model, they put two calls
into that graph, which push and pop the frame wherever the graph is traced again; the qparams are constants in
it, guarded as any attribute of a module. Imported when Dynamo gets there: registering functions loads all of it.
"""

from __future__ import annotations

from typing import Any

import torch

from zeropoint.tensor._callsite import Frame, pop, push
from zeropoint.tensor._dtype import QDtype
from zeropoint.tensor._qtensor import quantize_per_tensor

__all__ = ["enter_in_graph", "leave_in_graph"]


class TracedSite:
    """A call site in a graph of Dynamo: its qparams, as ``CallSite.constants`` gave them."""

    def __init__(self, scale: float, zero_point: int, dtype: QDtype) -> None:
        self._scale, self._zero_point, self._output_dtype = scale, zero_point, dtype
        self.table_key: Any = None  # as CallSite's, for backends that run the graph itself
        self.table: torch.Tensor | None = None

    def quantize(self, value: torch.Tensor) -> Any:
        return quantize_per_tensor(value, self._scale, self._zero_point, self._output_dtype)


# Results are tensors because Dynamo keeps only calls with such results.
@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def enter_in_graph(sites: tuple[tuple[str, float, int, str], ...]) -> torch.Tensor:
    # What Dynamo saw change between models it takes for variables: as numbers they are constants of this graph again.
    named = {key: TracedSite(float(scale), int(zero_point), QDtype[dtype]) for key, scale, zero_point, dtype in sites}
    push(Frame(None, None, named))
    return torch.empty(0)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def leave_in_graph() -> torch.Tensor:
    pop()
    return torch.empty(0)
