"""Schemas, fake kernels and real kernels agree (opcheck); converted models export."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from zeropoint import ops
from zeropoint.quantization import QuantWrapper, convert, get_default_qconfig, prepare

U8 = torch.uint8


def x(*shape):
    return torch.randint(0, 256, shape, dtype=U8)


def nhwc(*shape):
    return x(*shape).contiguous(memory_format=torch.channels_last)


W2, W3, W4, DW, W5, W3D = (
    torch.randint(-128, 128, s, dtype=torch.int8)
    for s in ((5, 8), (69, 8), (6, 4, 3, 3), (4, 1, 3, 3), (5, 5), (6, 4, 2, 3, 3))
)
OUT = (0.02, 3, 0.5, 7, 0, 255, U8)
CASES = {
    "quantize_per_tensor": [(torch.randn(2, 3), 0.1, 3, U8), (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), 0.1, 3, torch.int32)],
    "quantize_per_channel": [(torch.randn(2, 3), torch.ones(3), torch.zeros(3, dtype=torch.int32), 1, -128, 127, torch.int8)],
    "dequantize_per_tensor": [(x(2, 3), 0.1, 3), (nhwc(2, 3, 4, 5), 0.1, 3)],
    "dequantize_per_channel": [(x(2, 3), torch.ones(3), torch.zeros(3, dtype=torch.int32), 1)],
    "requantize": [(torch.randint(-1000, 1000, (3, 4), dtype=torch.int32), 0.1, 3, U8)],
    "linear": [
        (x(2, 7, 8), W2, ops.linear_pack(W2, None), torch.ones(5), None, torch.randn(5), *OUT),
        (x(2, 8), W2, ops.linear_pack(W2, None), torch.ones(1), None, None, 0.02, 3, 1.0, 0, 0, 0, torch.float32),
    ],
    "conv2d": [
        (nhwc(2, 4, 9, 8), W4, ops.conv2d_pack(W4, None, [1, 1], 1), torch.ones(6), None, None, [2, 1], [1, 0], [1, 1], 1, *OUT),
        (x(1, 4, 9, 8), DW, ops.conv2d_pack(DW, None, [1, 1], 4), torch.ones(4), None, None, [1, 1], [1, 1], [1, 1], 4, *OUT),
    ],
    "conv3d": [
        (
            x(2, 4, 5, 9, 8), W3D, ops.conv3d_pack(W3D, None, [1, 1, 1], 1), torch.ones(6), None, None, [1, 2, 1], [1, 1, 0],
            [1, 1, 1], 1, *OUT,
        )
    ],
    "add": [(x(2, 3), 0.1, 3, x(2, 3), 0.2, 4, 0.3, 5, 0, 255, U8)],
    "mul": [
        (nhwc(2, 3, 4, 4), 0.1, 3, nhwc(2, 3, 4, 4), 0.2, 4, 0.3, 5, 0, 255, U8),
        (nhwc(2, 3, 4, 4), 0.1, 3, x(2, 3, 1, 1), 0.2, 4, 0.3, 5, 0, 255, U8),
    ],
    "add_float": [
        (torch.randn(2, 3), torch.randn(3), False),
        (torch.randn(2, 3, 1), torch.randn(3, 4), True),
        (torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),) * 2 + (False,),
    ],
    "matmul": [(x(2, 3, 4), 0.1, 3, x(4, 5), 0.2, 4, 0.3, 5, 0, 255, U8), (x(4), 0.1, 3, x(2, 4, 5), 0.2, 4, 0.3, 5, 0, 255, U8)],
    "normalize": [(x(2, 3, 4), 6, torch.ones(4), None, 1, 0.1, 3, 1e-5, True, 0.3, 5, 0, 255, U8)],
    "cached_attention": [
        (torch.randn(2, 4, 1, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 6), torch.randn(2, 2, 1, 8), torch.randn(2, 2, 1, 6), 0.3, None, True),
        (torch.randn(2, 2, 1, 8), torch.randn(2, 2, 0, 8), torch.randn(2, 2, 0, 6), torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 6), 0.3, torch.rand(2, 1, 1, 3) > 0.5),
    ],
    "rotary": [(torch.randn(2, 3, 4, 8).transpose(1, 2), torch.randn(3, 8), torch.randn(2, 1, 3, 8))],
    "add_integers": [(torch.arange(6).reshape(2, 3), torch.arange(3), True)],
    "arange": [(0, 7, 1), (5, -4, -2), (3, 3, 1)],
    "silu_mul": [(torch.randn(2, 3, 8), torch.randn(2, 3, 8))],
    "add_norm": [
        (torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.ones(8), torch.ones(8), 1e-5, True, True, False, 0.1, 3, U8),
        (torch.randn(2, 8), None, None, None, 1e-5, False, False, True),
    ],
    "softmax": [(x(2, 3, 4), -1, 0.1, 1 / 256, 0, 0, 255, U8)],
    "linear_dynamic": [(torch.randn(2, 7, 8), W2, ops.linear_pack(W2, None), torch.ones(5), None, torch.randn(5), True, False, True)],
    "linear_grouped": [
        (torch.randn(2, 7, 8), W2, ops.linear_grouped_pack(W2, torch.ones(5, 1), None, 32, 8), torch.ones(5, 1), None, torch.randn(5), 32, 8, 15, True),
        (torch.randn(2, 8).bfloat16(), W2, ops.linear_grouped_pack(W2, torch.ones(5, 1), None, 32, 8), torch.ones(5, 1), None, None, 32, 8, 8, False),
        (torch.randn(2, 16), x(5, 8), ops.linear_grouped_pack(x(5, 8), torch.ones(5, 1), None, 32, 4), torch.ones(5, 1), None, None, 32, 4, 8, False),
    ],
    "linear_grouped_split": [
        (torch.randn(2, 7, 8), W3, ops.linear_grouped_pack(W3, torch.ones(69, 1), None, 32, 8), torch.ones(69, 1), None, torch.randn(69), 32, 8, 15, True, [64, 5]),
    ],
    "rnn_dynamic": [
        (
            torch.randn(3, 8), [2, 1], torch.randn(2, 5), torch.empty(0), W2, ops.linear_pack(W2, None), torch.ones(1), None, None,
            W5, ops.linear_pack(W5, None), torch.ones(5), None, torch.randn(5), 2, False, True,
        )
    ],
    "rnn_static": [
        (
            x(3, 2, 8), x(2, 5), torch.empty(0, dtype=U8), W2, ops.linear_pack(W2, None), torch.ones(1), None, None,
            W5, ops.linear_pack(W5, None), torch.ones(5), None, torch.randn(5), x(1, 256), torch.tensor([[0.1, 3.0]] * 6).double(),
            2, True,
        )
    ],
    "attention": [
        (x(2, 3, 5, 8), 0.1, 3, x(2, 3, 7, 8), 0.1, 4, x(2, 3, 7, 6), 0.2, 5, 0.3, 0.1, 7, U8),
        (x(2, 4, 5, 8), 0.1, 3, x(2, 2, 7, 8), 0.1, 4, x(2, 2, 7, 6), 0.2, 5, 0.3, 0.1, 7, U8, torch.randn(5, 7)[None, None]),
        (x(2, 4, 5, 8), 0.1, 3, x(2, 4, 7, 8), 0.1, 4, x(2, 4, 7, 6), 0.2, 5, 0.3, 0.1, 7, U8, None, True),
        (x(2, 5, 3, 8).transpose(1, 2), 0.1, 3, x(2, 7, 3, 8).transpose(1, 2), 0.1, 4, x(2, 3, 7, 6), 0.2, 5, 0.3, 0.1, 7, U8),
    ],
    "lookup": [(x(2, 3), x(256))],
    "interpolate_bilinear2d": [(nhwc(2, 3, 5, 4), [7, 9], False, 0.0, 0.0), (x(2, 3, 5, 4), [], True, 2.0, 1.5)],
    "embedding": [(torch.tensor([[1, 0, 2]]), x(3, 8), torch.ones(3), torch.zeros(3), 8, 8), (torch.tensor([1, 2]), x(3, 4), torch.ones(3), torch.zeros(3), 4, 7)],
    "embedding_bag": [
        (torch.tensor([1, 0, 2]), torch.tensor([0, 2]), x(3, 8), torch.ones(3), torch.zeros(3), 8, 8, 1, False, None, 0),
        (torch.tensor([1, 2]), torch.tensor([0, 2]), x(3, 4), torch.ones(3), torch.zeros(3), 4, 7, 0, True, torch.ones(2)),
    ],
    "max_pool2d": [(nhwc(2, 3, 9, 8), [3, 2], [2, 2], [1, 0], [1, 1], True)],
    "avg_pool2d": [(nhwc(2, 3, 9, 8), 3, [3, 2], [2, 2], [1, 0], False, True, None)],
    "global_avg_pool2d": [(nhwc(2, 3, 9, 8), 0.1, 3, 0.05, 7, 0, 255, U8)],
    "adaptive_avg_pool2d": [(nhwc(2, 3, 9, 8), 3, [2, 3])],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(n, a) for n, cases in CASES.items() for a in cases],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(ops, name), arguments, test_utils=("test_schema", "test_faketensor"))


def test_every_computing_operator_is_checked():
    assert set(CASES) | {"linear_pack", "conv2d_pack", "conv3d_pack", "linear_grouped_pack"} == set(ops.__all__)


def converted():
    model = QuantWrapper(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )
    ).eval()
    model.qconfig = get_default_qconfig()
    prepared = prepare(model)
    example = torch.randn(4, 3, 12, 12)
    prepared(example)
    return convert(prepared), example


def test_export():
    quantized, example = converted()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(quantized, (example,), dynamic_shapes=({0: batch},))
    for n in (4, 7):
        inputs = torch.randn(n, 3, 12, 12)
        assert torch.equal(program.module()(inputs), quantized(inputs))
    assert any("zeropoint.conv2d" in str(node.target) for node in program.graph.nodes)


_COMPILE = """
import torch
from torch import nn
from zeropoint.quantization import QuantWrapper, convert, get_default_qconfig, prepare
torch.manual_seed(0)
model = QuantWrapper(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, 4))).eval()
model.qconfig = get_default_qconfig()
prepared = prepare(model)
x = torch.randn(4, 3, 12, 12)
prepared(x)
quantized = convert(prepared)
compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(x), quantized(x))
"""


def test_compile_without_graph_breaks():
    # In a process of its own: under pytest torch writes its debug log, which cannot print our dtypes.
    process = subprocess.run([sys.executable, "-c", _COMPILE], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


_COMPILE_CALL_SITES = """
import torch
import torch.nn.functional as F
from torch import nn
from zeropoint.quantization import QuantWrapper, convert, get_default_qconfig, prepare
from zeropoint.tensor._callsite import current_frame

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return F.silu(self.conv(x) + x) + x

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), Block(), Block(), nn.Linear(8, 4)

    def forward(self, x):
        y = self.conv(x)
        y = self.b(self.a(y) + y * 2)
        return self.head(torch.cat([y, y], 1)[:, :8].mean((2, 3)))

torch.manual_seed(0)
model = QuantWrapper(Net()).eval()
model.qconfig = get_default_qconfig()
prepared = prepare(model)
prepared(torch.randn(4, 3, 12, 12))
quantized = convert(prepared)
for backend in ("eager", "aot_eager"):
    torch._dynamo.reset()
    compiled = torch.compile(quantized, fullgraph=True, backend=backend)
    for shape in ((4, 3, 12, 12), (2, 3, 9, 9)):
        x = torch.randn(shape)
        assert torch.equal(compiled(x), quantized(x)), (backend, shape)
    assert current_frame() is None

from zeropoint.quantization import DeQuantStub, QuantStub

class Root(nn.Module):  # functions in the forward of what is compiled, and a recurrent layer in both directions
    def __init__(self):
        super().__init__()
        self.quant, self.fc, self.dequant = QuantStub(), nn.Linear(6, 6), DeQuantStub()
        self.rnn = nn.LSTM(6, 4, bidirectional=True)

    def forward(self, x):
        y = self.quant(x)
        return self.dequant(self.rnn(self.fc(y) + y)[0])

for seed in range(2):  # other scales in the same code
    root = Root().eval()
    root.qconfig = get_default_qconfig()
    prepared, x = prepare(root), torch.randn(3, 2, 6) * (1 + seed)
    prepared(x)
    root = convert(prepared)
    expected = root(x)
    with torch._dynamo.config.patch(wrap_top_frame=True):
        assert torch.equal(torch.compile(root, fullgraph=True, backend="aot_eager")(x), expected), seed

from zeropoint import quint8
from zeropoint.nn.quantized import Quantize
quantize = Quantize(0.1, 3, quint8)
torch._dynamo.reset()
try:
    torch.compile(lambda x: quantize(x) + quantize(x), fullgraph=True, backend="aot_eager")(torch.randn(3))
except Exception as error:
    assert "sees no converted module" in str(error), error
else:
    raise AssertionError("a function outside any converted module took a scale")
"""


def test_compile_follows_call_sites():
    process = subprocess.run([sys.executable, "-c", _COMPILE_CALL_SITES], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
