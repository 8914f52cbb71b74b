"""Dynamic int8: Linear, LSTM and GRU against torch.ao and onnxruntime in the same run.

    python benchmarks/kernels/dynamic.py [--rounds 15] [--markdown]

Every stack runs the same float module, quantized by its own dynamic int8. Rounds are interleaved in shuffled
order; a number is the median of the rounds' best calls. zeropoint runs three times: one range per
tensor, per row, and per row as a program.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zeropoint as zp
from zeropoint.quantization import quantize_dynamic

Run = Callable[[], Any]


def cases() -> list[tuple[str, nn.Module, torch.Tensor]]:
    found: list[tuple[str, nn.Module, torch.Tensor]] = []
    for n, k in ((768, 768), (3072, 768), (768, 3072), (4096, 4096)):
        for batch in (1, 8, 128):
            found.append((f"Linear {k}->{n}, batch {batch}", nn.Linear(k, n), torch.randn(batch, k)))
    for name, layers in (("LSTM", 2), ("GRU", 1)):
        for hidden in (256, 1024):
            for batch in (1, 8):
                module = getattr(nn, name)(hidden, hidden, layers)
                found.append(
                    (f"{name} {hidden} x {layers}, 50 steps, batch {batch}", module, torch.randn(50, batch, hidden))
                )
    return found


def torch_ao(module: nn.Module, x: torch.Tensor) -> Run | None:
    try:
        import torch.ao.quantization as taq
    except ImportError:
        return None
    torch.backends.quantized.engine = "x86"
    model = taq.quantize_dynamic(nn.Sequential(copy.deepcopy(module)), {type(module)}, dtype=torch.qint8)
    return lambda: model(x)


def onnxruntime(module: nn.Module, x: torch.Tensor) -> Run | None:
    """onnxruntime's own dynamic quantization, per channel; GRU stays float there, so it is left out."""
    if isinstance(module, nn.GRU) or not all(map(importlib.util.find_spec, ("onnxruntime", "onnx"))):
        return None
    import onnxruntime as ort
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as ort_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        buffer = io.BytesIO()
        torch.onnx.export(module, (x,), buffer, dynamo=False, opset_version=17)
        source.write_bytes(buffer.getvalue())
        ort_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        session = ort.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    name, value = session.get_inputs()[0].name, x.numpy()
    return lambda: session.run(None, {name: value})


def zeropoint(per_row: bool) -> Callable[[nn.Module, torch.Tensor], Run]:
    def make(module: nn.Module, x: torch.Tensor) -> Run:
        model = quantize_dynamic(nn.Sequential(copy.deepcopy(module)), {type(module)}, per_row=per_row)
        return lambda: model(x)

    return make


def program(module: nn.Module, x: torch.Tensor) -> Run:
    model = zp.quantize(nn.Sequential(copy.deepcopy(module)), dynamic=True, example=x, group_size=None)
    return lambda: model(x)


STACKS: dict[str, Callable[[nn.Module, torch.Tensor], Run | None]] = {
    "zeropoint": zeropoint(False),
    "zeropoint per row": zeropoint(True),
    "zeropoint program": program,
    "torch.ao": torch_ao,
    "onnxruntime": onnxruntime,
}


def measure(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median over rounds, in microseconds, of the best of a few calls."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    calls = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        calls[name] = max(3, min(200, int(0.01 / max(time.perf_counter() - start, 1e-6))))
    for _ in range(rounds):
        for name in random.sample(list(runs), len(runs)):
            time.sleep(0.005)  # the last stack's threads stop spinning
            runs[name]()
            best = min(_timed(runs[name]) for _ in range(calls[name]))
            times[name].append(best)
    return {name: 1e6 * statistics.median(t) for name, t in times.items()}


def _timed(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="part of the name of the cases to run")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # onnxruntime's advice about pre-processing
    torch.manual_seed(0)
    print(f"instruction set {zp.backend.isa()}, torch {torch.__version__}, times in microseconds\n")
    names = list(STACKS)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"| {threads} thread{'s' if threads > 1 else ''} | {' | '.join(names)} | best peer / program |")
        print("|---" * (len(names) + 2) + "|", flush=True)
        ratios = []
        for title, module, x in cases():
            if arguments.only not in title:
                continue
            with torch.inference_mode():
                runs = {name: run for name, make in STACKS.items() if (run := make(module.eval(), x)) is not None}
                times = measure(runs, arguments.rounds)
            ratio = min(t for n, t in times.items() if not n.startswith("zeropoint")) / times["zeropoint program"]
            ratios.append(ratio)
            cells = [f"{times[n]:.1f}" if n in times else "" for n in names]
            print(f"| {title} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)
        if ratios:
            print(f"| geometric mean | {' | '.join('' for _ in names)} | {statistics.geometric_mean(ratios):.2f} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
