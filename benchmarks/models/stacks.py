"""What runs the networks: zeropoint and its peers, each quantized by its own tools to int8 (weights per channel).

A stack takes a network, example inputs, calibration inputs and the number of threads, and gives a function that binds
inputs: what it returns runs them and returns the first output. None where a stack does not apply.
"""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import Network

import zeropoint as zp
from zeropoint.quantization import quantize_weight_only

Inputs = tuple[torch.Tensor, ...]
Run = Callable[[], torch.Tensor]
Bind = Callable[[Inputs], Run]


def _calls(module: Callable[..., torch.Tensor]) -> Bind:
    return lambda inputs: lambda: module(*inputs)


def float32(network: Network, example: Inputs, calibration: list[Inputs], threads: int) -> Bind:
    return _calls(network.model)


def zeropoint_program(network: Network, example: Inputs, calibration: list[Inputs]) -> Any:
    """Static for CNNs and transformers, dynamic for recurrent layers, 4-bit weights for the decoder."""
    if network.kind == "rnn":
        return zp.quantize(network.model, dynamic=True, example=example)
    if network.kind == "decoder":
        weights = quantize_weight_only(network.model, bits=4, group_size=128, symmetric=True, activation_bits=8)
        return zp.quantize(weights, dynamic=True, example=example)
    return zp.quantize(network.model, calibration)


def zeropoint(network: Network, example: Inputs, calibration: list[Inputs], threads: int) -> Bind:
    return _calls(zeropoint_program(network, example, calibration))


def zeropoint_dynamic(network: Network, example: Inputs, calibration: list[Inputs], threads: int) -> Bind | None:
    if network.kind in ("cnn", "rnn"):
        return None
    return _calls(zp.quantize(network.model, dynamic=True, example=example, group_size=None))


def _onnx(network: Network, example: Inputs, path: Path) -> list[str]:
    names = [f"x{i}" for i in range(len(example))]
    buffer = io.BytesIO()
    torch.onnx.export(
        copy.deepcopy(network.model), example, buffer, dynamo=False, opset_version=17, input_names=names
    )  # fmt: skip
    path.write_bytes(buffer.getvalue())
    return names


def onnxruntime_model(network: Network, example: Inputs, calibration: list[Inputs], path: Path) -> list[str]:
    """Static QDQ u8s8 for CNNs and transformers, dynamic for recurrent layers, 4-bit blocks of 128 for the decoder."""
    import onnx
    from onnxruntime import quantization as quantize
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, ready = (str(Path(folder, f"{name}.onnx")) for name in ("float", "ready"))
        target = str(path)
        names = _onnx(network, example, Path(source))

        class Reader(quantize.CalibrationDataReader):
            def __init__(self) -> None:
                self.batches = iter(calibration)

            def get_next(self) -> dict[str, Any] | None:
                batch = next(self.batches, None)
                return None if batch is None else {n: x.numpy() for n, x in zip(names, batch, strict=True)}

        if network.kind == "decoder":
            quant_pre_process(source, ready, skip_symbolic_shape=True)
            model = MatMulNBitsQuantizer(onnx.load(ready), block_size=128, is_symmetric=True, accuracy_level=4)
            model.process()
            model.model.save_model_to_file(target)
        elif network.kind == "rnn":
            quantize.quantize_dynamic(source, target, per_channel=True, weight_type=quantize.QuantType.QInt8)
        else:
            quant_pre_process(source, ready, skip_symbolic_shape=True)
            quantize.quantize_static(
                ready, target, Reader(), per_channel=True, activation_type=quantize.QuantType.QUInt8,
                weight_type=quantize.QuantType.QInt8,
            )  # fmt: skip
    return names


def onnxruntime(network: Network, example: Inputs, calibration: list[Inputs], threads: int) -> Bind:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        names = onnxruntime_model(network, example, calibration, Path(folder, "int8.onnx"))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(str(Path(folder, "int8.onnx")), options, providers=["CPUExecutionProvider"])

    def bind(inputs: Inputs) -> Run:
        feed = {n: x.numpy() for n, x in zip(names, inputs, strict=True)}
        return lambda: torch.from_numpy(session.run(None, feed)[0])

    return bind


def openvino_model(network: Network, example: Inputs, calibration: list[Inputs]) -> Any:
    """NNCF's post-training quantization (its model type for transformers), bfloat16 beside int8; 4-bit weights for the decoder."""
    import nncf
    import openvino as ov

    if network.kind == "rnn":
        return None  # NNCF leaves it in float
    with tempfile.TemporaryDirectory() as folder:
        _onnx(network, example, Path(folder, "float.onnx"))
        model = ov.convert_model(str(Path(folder, "float.onnx")))
    if network.kind == "decoder":
        model = nncf.compress_weights(
            model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=128, ratio=1.0, all_layers=True
        )
    else:
        data = nncf.Dataset([b[0].numpy() for b in calibration])
        kind = nncf.ModelType.TRANSFORMER if network.kind == "transformer" else None
        model = nncf.quantize(
            model, data, subset_size=len(calibration), model_type=kind, preset=nncf.QuantizationPreset.PERFORMANCE
        )
    return model


def openvino(network: Network, example: Inputs, calibration: list[Inputs], threads: int) -> Bind | None:
    import openvino as ov

    model = openvino_model(network, example, calibration)
    if model is None:
        return None
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if network.kind != "decoder":  # which picks what suits its 4-bit kernels
        config["INFERENCE_PRECISION_HINT"] = "bf16" if network.kind == "transformer" else "f32"
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()

    def bind(inputs: Inputs) -> Run:
        arrays = [x.numpy() for x in inputs]

        def run() -> torch.Tensor:
            request.infer(arrays, share_inputs=True, share_outputs=True)
            return torch.from_numpy(request.get_output_tensor(0).data.copy())

        return run

    return bind


def torch_ao(network: Network, example: Inputs, calibration: list[Inputs], threads: int) -> Bind:
    """FX graph mode with oneDNN for CNNs; dynamic for the others."""
    import torch.ao.quantization as taq
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if network.kind != "cnn":
            torch.backends.quantized.engine = "x86"
            dynamic = taq.quantize_dynamic(
                copy.deepcopy(network.model), {torch.nn.Linear, torch.nn.LSTM}, dtype=torch.qint8
            )  # fmt: skip
            return _calls(dynamic)
        torch.backends.quantized.engine = "onednn"
        mapping = taq.get_default_qconfig_mapping("onednn")
        prepared = prepare_fx(copy.deepcopy(network.model), mapping, example)
        for batch in calibration:
            prepared(*batch)
        static = convert_fx(prepared)
    return _calls(static)


STACKS: dict[str, Callable[[Network, Inputs, list[Inputs], int], Bind | None]] = {
    "float32": float32,
    "zeropoint": zeropoint,
    "zeropoint dynamic": zeropoint_dynamic,
    "torch.ao": torch_ao,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}
