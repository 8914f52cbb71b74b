"""Float activations by 8- and 4-bit weights in groups, against torch's and onnxruntime's operators in the same run.

    python benchmarks/kernels/weight_only.py [--threads 1 2] [--rounds 9]

Symmetric weights in groups of 64. "DRAM" rows take turns among copies of the weight that together exceed the last
cache, as the layers of a large model do; the others find it in the cache. GB/s counts the bytes of the integers
alone. Peers: aten::_weight_int8pack_mm (per channel) and _weight_int4pack_mm_for_cpu on bfloat16, and onnxruntime's
MatMulNBits with int8 products (accuracy_level 4) on float32.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import torch
from run import cpu_model, measure

from zeropoint import backend, ops

GROUP = 64
# M, N, K, copies of the weight
SHAPES = [(1, 768, 768, 1), (1, 4096, 4096, 1), (1, 4096, 4096, 8), (8, 4096, 4096, 1), (128, 4096, 4096, 1)]
Call = Callable[[], Any]


def zeropoint(bits: int, x_bits: int) -> Callable[[torch.Tensor, int, int], Call]:
    def make(x: torch.Tensor, n: int, copies: int) -> Call:
        k = x.shape[1]
        weights = [torch.randint(-(1 << bits - 1), 1 << bits - 1, (n, k)).to(torch.int8) for _ in range(copies)]
        scale = torch.rand(n, k // GROUP) * 0.01
        packed = [ops.linear_grouped_pack(w, scale, None, GROUP, bits) for w in weights]
        turn = itertools.cycle(zip(weights, packed, strict=True))

        def call() -> Any:
            weight, blob = next(turn)
            return ops.linear_grouped(x, weight, blob, scale, None, None, GROUP, bits, x_bits, False)

        return call

    return make


def torch_int8(x: torch.Tensor, n: int, copies: int) -> Call | None:
    if not hasattr(torch.ops.aten, "_weight_int8pack_mm"):
        return None
    value, scale = x.bfloat16(), torch.rand(n).bfloat16()
    turn = itertools.cycle([torch.randint(-128, 128, (n, x.shape[1])).to(torch.int8) for _ in range(copies)])
    return lambda: torch.ops.aten._weight_int8pack_mm(value, next(turn), scale)


def torch_int4(x: torch.Tensor, n: int, copies: int) -> Call | None:
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return None
    value, k = x.bfloat16(), x.shape[1]
    qparams = torch.rand(k // GROUP, n, 2).bfloat16()
    weights = [torch.randint(0, 16, (n, k), dtype=torch.int32) for _ in range(copies)]
    turn = itertools.cycle([torch.ops.aten._convert_weight_to_int4pack_for_cpu(w, 1) for w in weights])
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(value, next(turn), GROUP, qparams)


def onnxruntime(bits: int) -> Callable[[torch.Tensor, int, int], Call | None]:
    def make(x: torch.Tensor, n: int, copies: int) -> Call | None:
        if not (importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx")):
            return None
        import numpy as np
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper

        k = x.shape[1]

        def session() -> Any:
            weight = torch.randint(0, 256, (n, k // GROUP, GROUP * bits // 8), dtype=torch.uint8).numpy()
            scale = np.random.rand(n * k // GROUP).astype(np.float32)
            node = helper.make_node(
                "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=GROUP,
                accuracy_level=4,
            )  # fmt: skip
            graph = helper.make_graph(
                [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [x.shape[0], k])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[0], n])],
                [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(scale, "s")],
            )  # fmt: skip
            model = helper.make_model(
                graph,
                opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
                ir_version=9,
            )
            options = ort.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
            return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

        turn, feed = itertools.cycle([session() for _ in range(copies)]), {"x": x.numpy()}
        return lambda: next(turn).run(None, feed)

    return make


STACKS: dict[str, Callable[[torch.Tensor, int, int], Call | None]] = {
    "8 bits, activations 15": zeropoint(8, 15),
    "8 bits, activations 8": zeropoint(8, 8),
    "torch int8": torch_int8,
    "onnxruntime 8 bits": onnxruntime(8),
    "4 bits, activations 15": zeropoint(4, 15),
    "4 bits, activations 8": zeropoint(4, 8),
    "torch int4": torch_int4,
    "onnxruntime 4 bits": onnxruntime(4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"\n{cpu_model()}, {backend.isa()}, microseconds, GB/s of weights in brackets:\n")
        print(f"| {threads} thread{'s' * (threads > 1)}, M x N x K | {' | '.join(STACKS)} |")
        print("|---" * (len(STACKS) + 1) + "|", flush=True)
        for m, n, k, copies in SHAPES:
            torch.manual_seed(0)
            x = torch.randn(m, k)
            calls = {name: call for name, make in STACKS.items() if (call := make(x, n, copies)) is not None}
            seconds = measure(calls, arguments.rounds)
            size = {name: n * k * (0.5 if "4" in name.split(",")[0] else 1) for name in calls}
            cells = [
                f"{seconds[s] * 1e6:.0f} ({size[s] / seconds[s] / 1e9:.0f})" if s in seconds else "-" for s in STACKS
            ]
            print(f"| {m}x{n}x{k}{', DRAM' * (copies > 1)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
