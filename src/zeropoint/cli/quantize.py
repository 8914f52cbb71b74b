"""``zeropoint quantize RECIPE.py -o OUT``: float model to int8 file, with a report of gain and cost.

The model becomes a program (a ``.zp`` file, which needs no Python code of the model); with ``--eager`` it is converted
module by module, and the file holds its state.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from zeropoint import backend
from zeropoint.analysis import agreement, coverage, sqnr
from zeropoint.engine import ProgramError
from zeropoint.errors import QuantizationError
from zeropoint.graph import CaptureError, prepare_program
from zeropoint.quantization import (
    ClipWeightedHistogramObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    QConfig,
    default_per_channel_weight_observer,
    default_weight_observer,
)
from zeropoint.quantization.one_call import fuse_and_convert
from zeropoint.recipe import Recipe, read_recipe, save_quantized

__all__ = ["add_parser"]

_OBSERVERS = {
    "clip-weighted": ClipWeightedHistogramObserver,
    "histogram": HistogramObserver,
    "minmax": MinMaxObserver,
    "moving-average": MovingAverageMinMaxObserver,
}
_WEIGHTS = {"channel": default_per_channel_weight_observer, "tensor": default_weight_observer}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("quantize", help="quantize the model of a recipe to int8", description=__doc__)
    parser.add_argument(
        "recipe",
        type=Path,
        help="Python file with load() and calibration(), optionally evaluation() and evaluate(model)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write (.zp)")
    parser.add_argument(
        "--observer",
        choices=_OBSERVERS,
        default="clip-weighted",
        help="how activation ranges are found (default: clip-weighted)",
    )
    parser.add_argument(
        "--weights",
        choices=_WEIGHTS,
        default="channel",
        help="weight scales per channel or per tensor (default: channel)",
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="rounds of the latency measurement, 0 for none (default: 15)"
    )
    parser.add_argument(
        "--eager", action="store_true", help="convert module by module; the file is read with the recipe's model"
    )
    parser.set_defaults(run=run)


def _batches(recipe: Recipe, console: Console) -> Iterator[tuple[Any, ...]]:
    """The recipe's calibration inputs, with a progress bar."""
    batches = list(recipe.calibration_inputs())
    if not batches:
        raise QuantizationError(f"{recipe.path}: calibration() gave no inputs")
    columns = (
        TextColumn("calibrating"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield from progress.track(batches)


def _program(recipe: Recipe, qconfig: QConfig, console: Console, output: Path) -> nn.Module:
    model, example = recipe.plain_model()
    try:
        prepared = prepare_program(model, example, qconfig)
    except (CaptureError, ProgramError) as error:
        raise QuantizationError(f"{error}; --eager converts module by module") from error
    prepared.feed(_batches(recipe, console))
    program = prepared.convert()
    program.save(output)
    return program


def _modules(recipe: Recipe, qconfig: QConfig, console: Console, output: Path) -> nn.Module:
    model, example = recipe.float_model()

    def calibrate(prepared: nn.Module) -> None:
        for arguments in _batches(recipe, console):
            prepared(*arguments)

    model, fused = fuse_and_convert(model, example, calibrate, qconfig)
    save_quantized(model, fused, output)
    return model


def _outputs(model: nn.Module, inputs: list[tuple[Any, ...]]) -> torch.Tensor | None:
    with torch.inference_mode():
        outputs = [model(*arguments) for arguments in inputs]
    return torch.cat(outputs) if all(isinstance(o, torch.Tensor) for o in outputs) else None


def _latency(models: dict[str, nn.Module], arguments: tuple[Any, ...], threads: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of one call, the models taking turns."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {name: [] for name in models}
    try:
        with torch.inference_mode():
            for model in models.values():
                model(*arguments)
            for _ in range(rounds):
                for name, model in models.items():
                    model(*arguments)  # warms the caches that the other model took
                    start = time.perf_counter()
                    model(*arguments)
                    times[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {name: 1e3 * statistics.median(t) for name, t in times.items()}


def _float_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def run(arguments: argparse.Namespace) -> int:
    """Quantizes, writes, reports. Exit status 0."""
    console = Console()
    if arguments.rounds < 0:
        raise QuantizationError(f"--rounds must be 0 or more, got {arguments.rounds}")
    if not arguments.output.parent.is_dir():
        raise QuantizationError(f"the folder of {arguments.output} does not exist")
    recipe = read_recipe(arguments.recipe)
    original, example = recipe.plain_model()
    qconfig = QConfig(_OBSERVERS[arguments.observer], _WEIGHTS[arguments.weights])
    start = time.perf_counter()
    model = (_modules if arguments.eager else _program)(recipe, qconfig, console, arguments.output)
    seconds = time.perf_counter() - start

    backend.reset_fallbacks()
    table = Table("", "float", "int8", title=f"{recipe.path.parent.name}/{recipe.path.name}")
    if recipe.evaluate is not None:
        with torch.inference_mode():
            scores = [recipe.evaluate(m) for m in (original, model)]
        for name in scores[0]:
            table.add_row(name, f"{scores[0][name]:.4g}", f"{scores[1][name]:.4g}")
    inputs = list(recipe.evaluation_inputs())
    reference, result = _outputs(original, inputs), _outputs(model, inputs)
    if reference is not None and result is not None:
        table.add_row("agreement with float", "", f"{agreement(reference, result):.3f}")
        table.add_row("SQNR of the outputs", "", f"{sqnr(reference, result):.1f} dB")
    before, after = _float_bytes(original), arguments.output.stat().st_size
    table.add_row("size", f"{before / 2**20:.2f} MiB", f"{after / 2**20:.2f} MiB ({after / before:.3f})")
    if arguments.rounds:
        for threads in (1, 2):
            times = _latency({"float": original, "int8": model}, example, threads, arguments.rounds)
            table.add_row(
                f"one call, {threads} thread{'s' if threads > 1 else ''}",
                f"{times['float']:.2f} ms",
                f"{times['int8']:.2f} ms",
            )
    layers = coverage(model)
    in_float = [layer for layer in layers if layer.kind == "float"]
    table.add_row("layers in int8", "", f"{len(layers) - len(in_float)} of {len(layers)}")
    table.add_row("instruction set", "", backend.isa())
    table.add_row("runs", "", getattr(model, "engine", "module by module"))
    console.print(table)
    for layer in in_float:
        console.print(f"stayed float: {layer.name} ({layer.type}): {layer.reason}")
    for operation, count in backend.fallbacks().items():
        console.print(f"ran in float on quantized tensors: {operation}, {count} times")
    console.print(f"wrote {arguments.output} in {seconds:.1f} s (calibration included)")
    return 0
