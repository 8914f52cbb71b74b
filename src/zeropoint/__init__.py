"""zeropoint: int8 quantization for PyTorch on CPUs, with torch.quantization's names.

>>> import torch, zeropoint as zp
>>> q = zp.quantize_per_tensor(torch.tensor([-1.0, 0.0, 2.5]), 0.02, 50, zp.quint8)
>>> q.int_repr()
tensor([  0,  50, 175], dtype=torch.uint8)
"""

from zeropoint import backend, backends, ops
from zeropoint.errors import QuantizationError, UncalibratedError
from zeropoint.tensor import (
    QDtype,
    QScheme,
    QTensor,
    choose_qparams,
    dequantize,
    make_per_channel_quantized_tensor,
    make_per_tensor_quantized_tensor,
    per_channel_affine,
    per_channel_affine_float_qparams,
    per_channel_symmetric,
    per_tensor_affine,
    per_tensor_symmetric,
    qint4,
    qint8,
    qint32,
    quantize_per_channel,
    quantize_per_tensor,
    quint2x4,
    quint4x2,
    quint8,
)

backend.check_environment()

from zeropoint import analysis, compat, engine, graph, nn, ns, quantization
from zeropoint.analysis import report, verify
from zeropoint.engine import load, save
from zeropoint.graph.flow import compile_program as compile
from zeropoint.graph.flow import quantize
from zeropoint.quantization.fake_quantize import (
    fake_quantize_per_channel_affine,
    fake_quantize_per_tensor_affine,
)

__version__ = "0.1.0"

__all__ = [
    "QDtype",
    "QScheme",
    "QTensor",
    "QuantizationError",
    "UncalibratedError",
    "analysis",
    "backend",
    "backends",
    "choose_qparams",
    "compat",
    "compile",
    "dequantize",
    "engine",
    "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine",
    "graph",
    "load",
    "make_per_channel_quantized_tensor",
    "make_per_tensor_quantized_tensor",
    "nn",
    "ns",
    "ops",
    "per_channel_affine",
    "per_channel_affine_float_qparams",
    "per_channel_symmetric",
    "per_tensor_affine",
    "per_tensor_symmetric",
    "qint4",
    "qint8",
    "qint32",
    "quantization",
    "quantize",
    "quantize_per_channel",
    "quantize_per_tensor",
    "quint2x4",
    "quint4x2",
    "quint8",
    "report",
    "save",
    "verify",
]
