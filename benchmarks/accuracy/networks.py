"""Scores of real networks: float, zeropoint and torch.ao side by side.

    python benchmarks/accuracy/networks.py SUITE minilm_sts:dynamic mnist_cnn:static ...

SUITE is a folder with one file per network that defines ``load() -> (module, example arguments)``,
``calib() -> list of arguments`` and ``score(model) -> dict``. Modes: ``dynamic`` (Linear and recurrent layers per
row), ``dynamic-group`` (ranges per row and 128 inputs), ``dynamic-tensor`` (one range per tensor, as torch), ``weights-4``
and ``weights-8`` (Linear weights of 4 or 8 bits in groups of 32, float activations), ``static`` (zeropoint.quantize, a
program), ``static-modules`` (module by module) and ``dynamic-program`` (zeropoint.quantize(dynamic=True) with an example).
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import time
import warnings
from typing import Any

from torch import nn

import zeropoint as zp
from zeropoint.quantization import (
    quantize_dynamic,
    quantize_weight_only,
)


def dynamic(model: nn.Module, mode: str) -> nn.Module:
    if mode.startswith("weights-"):
        return quantize_weight_only(model.eval(), bits=int(mode[-1]), group_size=32)
    return quantize_dynamic(
        copy.deepcopy(model).eval(),
        per_row=mode != "dynamic-tensor",
        group_size=128 if mode == "dynamic-group" else None,
    )


def stacks(network: Any, model: nn.Module, example: Any, mode: str, with_torch_ao: bool) -> dict[str, Any]:
    """What to score: title to a function that makes the model."""
    rows: dict[str, Any] = {"float": lambda: model}
    if mode.startswith("static"):
        rows[f"zeropoint {mode}"] = lambda: zp.quantize(model, network.calib(), eager=mode == "static-modules")
        theirs = (
            "torch.ao FX static",
            lambda: importlib.import_module("common").ao_static(model, example, network.calib()),
        )
    else:
        program = mode == "dynamic-program"
        rows[f"zeropoint {mode}"] = lambda: (
            zp.quantize(model, dynamic=True, example=example) if program else dynamic(model, mode)
        )
        theirs = ("torch.ao dynamic", lambda: importlib.import_module("common").ao_dynamic(model))
    if with_torch_ao:
        rows[theirs[0]] = theirs[1]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="folder of the networks")
    parser.add_argument("networks", nargs="+", metavar="NAME:MODE")
    parser.add_argument("--no-torch-ao", action="store_true", help="leave torch.ao out")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sys.path.insert(0, arguments.suite)
    for entry in arguments.networks:
        name, _, mode = entry.partition(":")
        network = importlib.import_module(name)
        model, example = network.load()
        rows = stacks(network, model, example, mode, not arguments.no_torch_ao)
        for title, make in rows.items():
            start = time.perf_counter()
            try:
                quantized = make()
                zp.backend.reset_fallbacks()
                scores = network.score(quantized)
                text = ", ".join(f"{k} {v:.4g}" for k, v in scores.items() if isinstance(v, float))
            except Exception as error:
                text = f"failed: {type(error).__name__}: {str(error)[:200]}"
            fallbacks = zp.backend.fallbacks() if title.startswith("zeropoint") else {}
            print(f"{name:14s} {title:24s} {text}  [{time.perf_counter() - start:.1f} s] {fallbacks or ''}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
