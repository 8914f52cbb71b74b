"""Memory of a quantized network while it runs, each runtime alone in a process of its own, from the file it would ship.

    python benchmarks/models/memory.py resnet50 mobilenet_v2 bert_base ... [--threads 1]

Megabytes: the file; what the process has after the runtime's import; how much more it has at its peak, from loading the
file to the tenth run with a batch of 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any


def peak() -> float:
    """Of this process alone: getrusage's begins with what the parent had."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def run_alone(kind: str, path: str, inputs: str, threads: int) -> None:
    """In the child process: prints megabytes after import, and at the peak over that."""
    import numpy as np

    arrays = list(np.load(inputs).values())
    if kind == "zeropoint":
        import torch

        import zeropoint as zp

        torch.set_num_threads(threads)
        before = peak()
        program = zp.load(path)
        tensors = [torch.from_numpy(a) for a in arrays]
        for _ in range(10):
            program(*tensors)
    elif kind == "onnxruntime":
        import onnxruntime as ort

        before = peak()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {i.name: a for i, a in zip(session.get_inputs(), arrays, strict=True)}
        for _ in range(10):
            session.run(None, feed)
    else:
        import openvino as ov

        before = peak()
        config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = ov.Core().compile_model(path, "CPU", config).create_infer_request()
        for _ in range(10):
            request.infer(arrays)
    print(json.dumps([before, peak() - before]))


def files(name: str, folder: Path) -> dict[str, Path]:
    """The network quantized by each stack, as its file; and its inputs."""
    import numpy as np
    import stacks
    from networks import make

    network = make(name)
    example = network.inputs(1, 0)
    calibration = [network.inputs(1, seed) for seed in range(1, 9)]
    np.savez(folder / "inputs.npz", *(x.numpy() for x in example))
    found: dict[str, Any] = {}
    stacks.zeropoint_program(network, example, calibration).save(folder / "zeropoint.zp")
    found["zeropoint"] = folder / "zeropoint.zp"
    stacks.onnxruntime_model(network, example, calibration, folder / "onnxruntime.onnx")
    found["onnxruntime"] = folder / "onnxruntime.onnx"
    model = stacks.openvino_model(network, example, calibration)
    if model is not None:
        import openvino as ov

        ov.save_model(model, folder / "openvino.xml", compress_to_fp16=False)
        found["openvino"] = folder / "openvino.xml"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet50", "mobilenet_v2", "bert_base", "decoder110m"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", nargs=3, metavar=("KIND", "FILE", "INPUTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        run_alone(*arguments.alone, arguments.threads)
        return 0
    warnings.filterwarnings("ignore")
    print("| network | runtime | file | after import | more at the peak |\n|---|---|---|---|---|")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            for kind, path in files(name, Path(folder)).items():
                size = sum(p.stat().st_size for p in (path, path.with_suffix(".bin")) if p.exists()) / 1e6
                command = [sys.executable, __file__, "--threads", str(arguments.threads), "--alone", kind, str(path)]
                result = subprocess.run(
                    [*command, str(Path(folder, "inputs.npz"))], capture_output=True, text=True, check=True
                )
                before, more = json.loads(result.stdout.strip().splitlines()[-1])
                print(f"| {name} | {kind} | {size:.1f} | {before:.0f} | {more:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
