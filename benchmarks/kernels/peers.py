"""The operators of other int8 stacks on the same shapes, for benchmarks only.

Each function gives a callable that runs the bare operator on quantized input, or None where the stack is
not installed or does not offer it. Bit widths and schemes match ours: uint8 activations, int8 weights per
output channel, requantized uint8 output.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["PEERS", "Problem"]


@dataclass
class Problem:
    """A convolution [N, C, H, W] or, with `kernel` None, a linear layer [M, K] x [N, K]."""

    x: torch.Tensor  # uint8, channels_last
    weight: torch.Tensor  # int8
    w_scale: torch.Tensor
    bias: torch.Tensor
    stride: int = 1
    padding: int = 0
    groups: int = 1
    x_scale: float = 0.02
    x_zero_point: int = 128
    y_scale: float = 0.5
    y_zero_point: int = 3

    @property
    def is_conv(self) -> bool:
        return self.weight.dim() == 4


def _theirs(p: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    zero_points = torch.zeros(len(p.w_scale), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch._make_per_tensor_quantized_tensor(p.x, p.x_scale, p.x_zero_point)
        w = torch._make_per_channel_quantized_tensor(p.weight, p.w_scale.double(), zero_points, 0)
    return x.contiguous(memory_format=torch.channels_last) if p.is_conv else x, w


def torch_quantized(p: Problem) -> Callable[[], Any] | None:
    """torch.ops.quantized with the x86 engine (FBGEMM or oneDNN, whichever it picks)."""
    if not hasattr(torch.ops.quantized, "conv2d"):
        return None
    torch.backends.quantized.engine = "x86"
    x, w = _theirs(p)
    if p.is_conv:
        two = lambda v: [v, v]
        packed = torch.ops.quantized.conv2d_prepack(w, p.bias, two(p.stride), two(p.padding), [1, 1], p.groups)
        return lambda: torch.ops.quantized.conv2d(x, packed, p.y_scale, p.y_zero_point)
    packed = torch.ops.quantized.linear_prepack(w, p.bias)
    return lambda: torch.ops.quantized.linear(x, packed, p.y_scale, p.y_zero_point)


def torch_onednn(p: Problem) -> Callable[[], Any] | None:
    """torch.ops.onednn.q*_pointwise on plain tensors."""
    if not hasattr(torch.ops.onednn, "qconv_pointwise"):
        return None
    zero_points = torch.zeros(len(p.w_scale), dtype=torch.int32)
    if p.is_conv:
        two = lambda v: [v, v]
        packed = torch.ops.onednn.qconv_prepack(
            p.weight,
            p.w_scale,
            p.x_scale,
            p.x_zero_point,
            two(p.stride),
            two(p.padding),
            [1, 1],
            p.groups,
            list(p.x.shape),
        )
        return lambda: torch.ops.onednn.qconv_pointwise(
            p.x, p.x_scale, p.x_zero_point, packed, p.w_scale, zero_points, p.bias, two(p.stride), two(p.padding), [1, 1],
            p.groups, p.y_scale, p.y_zero_point, torch.uint8, "none", [], "",
        )  # fmt: skip
    packed = torch.ops.onednn.qlinear_prepack(p.weight, list(p.x.shape))
    return lambda: torch.ops.onednn.qlinear_pointwise(
        p.x, p.x_scale, p.x_zero_point, packed, p.w_scale, zero_points, p.bias, p.y_scale, p.y_zero_point, torch.uint8,
        "none", [], "",
    )  # fmt: skip


def _onnx_model(p: Problem) -> Any:
    """DequantizeLinear, Conv or Gemm, QuantizeLinear: the form that runtimes fuse into an int8 operator."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "x_scale": np.float32(p.x_scale), "x_zero": np.uint8(p.x_zero_point), "y_scale": np.float32(p.y_scale),
        "y_zero": np.uint8(p.y_zero_point), "w": p.weight.numpy(), "w_scale": p.w_scale.numpy(),
        "w_zero": np.zeros(len(p.w_scale), np.int8),
        "b": np.round(p.bias.numpy() / (p.x_scale * p.w_scale.numpy())).astype(np.int32),
        "b_scale": (p.x_scale * p.w_scale.numpy()).astype(np.float32), "b_zero": np.zeros(len(p.w_scale), np.int32),
    }  # fmt: skip
    body = (
        helper.make_node(
            "Conv", ["xf", "wf", "bf"], ["yf"], strides=[p.stride] * 2, pads=[p.padding] * 4, group=p.groups
        )
        if p.is_conv
        else helper.make_node("Gemm", ["xf", "wf", "bf"], ["yf"], transB=1)
    )
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "b_scale", "b_zero"], ["bf"], axis=0),
        body,
        helper.make_node("QuantizeLinear", ["yf", "y_scale", "y_zero"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, list(p.x.shape))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.UINT8, None)]
    graph = helper.make_graph(
        nodes, "problem", inputs, outputs, [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def onnxruntime(p: Problem) -> Callable[[], Any] | None:
    """One QDQ operator in onnxruntime, all optimizations, torch's thread count."""
    if not (importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx")):
        return None
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = ort.InferenceSession(_onnx_model(p).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": p.x.contiguous().numpy()}
    return lambda: session.run(None, feed)


def openvino(p: Problem) -> Callable[[], Any] | None:
    """The same QDQ operator in OpenVINO, latency hint, torch's thread count."""
    if not (importlib.util.find_spec("openvino") and importlib.util.find_spec("onnx")):
        return None
    import io

    import openvino as ov

    core = ov.Core()
    model = core.read_model(io.BytesIO(_onnx_model(p).SerializeToString()))
    threads = torch.get_num_threads()
    # Without pinning: it would bind the calling thread, which the other stacks use too.
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    request = core.compile_model(model, "CPU", config).create_infer_request()
    request.set_input_tensor(ov.Tensor(p.x.contiguous().numpy()))
    return request.infer


PEERS: dict[str, Callable[[Problem], Callable[[], Any] | None]] = {
    "torch.quantized": torch_quantized,
    "torch.onednn": torch_onednn,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}
