"""``zeropoint bench RECIPE.py --vs torch,onnxruntime,openvino``: the program against other runtimes, in one interleaved run.

Each runtime gets the recipe's float model and calibration inputs and quantizes by its own tools: onnxruntime by static QDQ
with weights per channel, OpenVINO by NNCF where that is installed (else in float32); torch runs float32. A number is the
median over rounds of a block of calls, the runtimes taking turns; with it stands the SQNR to float.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils._pytree import tree_leaves

from zeropoint import backend
from zeropoint.analysis import sqnr
from zeropoint.errors import QuantizationError
from zeropoint.graph import quantize
from zeropoint.recipe import Recipe, read_recipe

__all__ = ["add_parser", "measure"]

Run = Callable[[], torch.Tensor]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("bench", help="measure a recipe's program against other runtimes", description=__doc__)
    parser.add_argument("recipe", type=Path, help="Python file with load() and calibration()")
    parser.add_argument("--vs", default="torch", help=f"comma-separated: {', '.join(_PEERS)} (default: torch)")
    parser.add_argument("--threads", default="1,2", help="comma-separated thread counts (default: 1,2)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of measurement (default: 7)")
    parser.set_defaults(run=run)


def _first(result: Any) -> torch.Tensor:
    return tree_leaves(result)[0]


def _torch(recipe: Recipe, model: nn.Module, example: tuple[Any, ...], threads: int) -> Run:
    return lambda: _first(model(*example))


def _zeropoint(recipe: Recipe, model: nn.Module, example: tuple[Any, ...], threads: int) -> Run:
    program = quantize(model, recipe.calibration_inputs())
    return lambda: _first(program(*example))


def _to_onnx(model: nn.Module, example: tuple[Any, ...], path: Path) -> list[str]:
    """Writes an ONNX file; the names of its inputs."""
    names = [f"x{i}" for i in range(len(example))]
    batch = {name: {0: "batch"} for name in names}
    torch.onnx.export(model, example, str(path), dynamo=False, opset_version=17, input_names=names, dynamic_axes=batch)
    return names


def _onnxruntime(recipe: Recipe, model: nn.Module, example: tuple[Any, ...], threads: int) -> Run:
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, ready, target = (Path(folder, f"{name}.onnx") for name in ("float", "ready", "int8"))
        names = _to_onnx(model, example, source)

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.batches = iter(recipe.calibration_inputs())

            def get_next(self) -> dict[str, Any] | None:
                batch = next(self.batches, None)
                return None if batch is None else {n: x.numpy() for n, x in zip(names, batch, strict=True)}

        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(target),
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    feed = {n: x.numpy() for n, x in zip(names, example, strict=True)}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _openvino(recipe: Recipe, model: nn.Module, example: tuple[Any, ...], threads: int) -> Run:
    import openvino as ov

    converted = ov.convert_model(model, example_input=example if len(example) > 1 else example[0])
    with contextlib.suppress(ImportError):
        import nncf

        batches = [tuple(x.numpy() for x in batch) for batch in recipe.calibration_inputs()]
        data = nncf.Dataset(batches, lambda batch: batch if len(batch) > 1 else batch[0])
        converted = nncf.quantize(converted, data, subset_size=len(batches), fast_bias_correction=True)
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = ov.Core().compile_model(converted, "CPU", config).create_infer_request()
    inputs = [x.numpy() for x in example]

    def call() -> torch.Tensor:
        request.infer(inputs, share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return call


_PEERS: dict[str, Callable[[Recipe, nn.Module, tuple[Any, ...], int], Run]] = {
    "torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino
}  # fmt: skip


def measure(runs: Mapping[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, float]:
    """Milliseconds of a call: median over rounds of the medians of blocks of about so many seconds, taking turns."""
    blocks: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in random.sample(list(runs), len(runs)):
            time.sleep(0.02)  # the last runtime's threads stop spinning
            runs[name]()
            times: list[float] = []
            end = time.perf_counter() + seconds
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                runs[name]()
                times.append(time.perf_counter() - start)
            blocks[name].append(statistics.median(times))
    return {name: 1e3 * statistics.median(b) for name, b in blocks.items()}


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints. Exit status 0."""
    console = Console()
    recipe = read_recipe(arguments.recipe)
    names = [n for n in arguments.vs.split(",") if n]
    unknown = sorted(set(names) - set(_PEERS))
    if unknown:
        raise QuantizationError(f"bench: --vs knows {', '.join(_PEERS)}, got {', '.join(unknown)}")
    if arguments.rounds < 1 or not all(t.isdecimal() and int(t) for t in arguments.threads.split(",")):
        raise QuantizationError("bench: --rounds and --threads are positive numbers")
    model, example = recipe.plain_model()
    before = torch.get_num_threads()
    table = Table("threads", "runtime", "ms", "SQNR dB", "zeropoint is faster by", title=f"{recipe.path.parent.name}")
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            expected = _first(model(*example))
            for threads in map(int, arguments.threads.split(",")):
                torch.set_num_threads(threads)
                runs = {"zeropoint": _zeropoint(recipe, model, example, threads)}
                for name in names:
                    try:
                        runs[name] = _PEERS[name](recipe, model, example, threads)
                    except ImportError as error:
                        raise QuantizationError(f"bench: {name} is not installed: {error}") from error
                times = measure(runs, arguments.rounds, 0.2)
                for name, call in runs.items():
                    ratio = "" if name == "zeropoint" else f"{times[name] / times['zeropoint']:.2f}x"
                    quality = float(sqnr(expected, call()))
                    shown = "" if quality == float("inf") else f"{quality:.1f}"
                    table.add_row(str(threads), name, f"{times[name]:.3f}", shown, ratio)
    finally:
        logging.disable(logging.NOTSET)
        torch.set_num_threads(before)
    console.print(table)
    console.print(f"instruction set {backend.isa()}, torch {torch.__version__}")
    return 0
