"""Scores the MobileNetV2 recipe on 94 photographs, beside torch.ao, and times both in one run.

    python benchmarks/accuracy/run.py [--data out/photos] [--rounds 25]

torch.ao runs twice: with its default x86 qconfig (one bit of the activations given up) and with histogram
observers over the full range on oneDNN, by its FX graph mode, which fuses best.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from gcompris import calibration_photos, fetch, scored_photos, to_tensor
from rich.console import Console
from rich.table import Table

from zeropoint import backend
from zeropoint.analysis import agreement, sqnr
from zeropoint.quantization.one_call import fuse_and_convert
from zeropoint.recipe import read_recipe, save_quantized

ROOT = Path(__file__).parents[2]


def torch_ao(model: torch.nn.Module, example: torch.Tensor, calibration: list[torch.Tensor], reduce_range: bool) -> Any:
    from torch.ao.quantization import HistogramObserver, QConfig, QConfigMapping, default_per_channel_weight_observer
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    # Over the full range torch's FBGEMM saturates (top-1 0); its oneDNN engine does not.
    torch.backends.quantized.engine = "x86" if reduce_range else "onednn"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        activation = HistogramObserver.with_args(reduce_range=reduce_range)
        mapping = QConfigMapping().set_global(QConfig(activation, default_per_channel_weight_observer))
        prepared = prepare_fx(copy.deepcopy(model), mapping, (example,))
        with torch.inference_mode():
            for x in calibration:
                prepared(x)
        return convert_fx(prepared)


def plain_float_model(model: torch.nn.Module) -> torch.nn.Module:
    """The same network with torch's own residual additions and no stubs, for torch.ao and for float timing."""

    class Add(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

        add = forward

    model = copy.deepcopy(model)
    for module in model.modules():
        if getattr(module, "residual", None) is not None:
            module.residual = Add()
    model.quant, model.dequant = torch.nn.Identity(), torch.nn.Identity()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "out" / "photos")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    resources = fetch(arguments.data)
    recipe = read_recipe(ROOT / "examples" / "mobilenet_v2" / "recipe.py")
    scored = scored_photos(resources)
    images = [to_tensor(image)[None] for image, _ in scored]
    calibration = [to_tensor(image)[None] for image in calibration_photos(resources)]
    original, example = recipe.float_model()
    plain = plain_float_model(original)
    quantized, _ = recipe.float_model()
    quantized, fused = fuse_and_convert(quantized, example, lambda m: [m(x) for x in calibration])
    file = ROOT / "out" / "mobilenet_v2_94.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_quantized(quantized, fused, file)
    models = {
        "float": plain,
        "zeropoint": quantized,
        "torch.ao (default)": torch_ao(plain, example[0], calibration, True),
        "torch.ao (full range, oneDNN)": torch_ao(plain, example[0], calibration, False),
    }

    outputs, rows = {}, {}
    with torch.inference_mode():
        for name, model in models.items():
            outputs[name] = torch.cat([model(x) for x in images])
    for name, y in outputs.items():
        top = y.topk(5, 1).indices.tolist()
        hits = [
            sum(bool(set(t[:k]) & labels) for t, (_, labels) in zip(top, scored, strict=True)) / len(scored)
            for k in (1, 5)
        ]
        rows[name] = {
            "top1": hits[0],
            "top5": hits[1],
            "agreement": agreement(outputs["float"], y),
            "sqnr": sqnr(outputs["float"], y),
        }
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times: dict[str, list[float]] = {name: [] for name in models}
        with torch.inference_mode():
            for _ in range(arguments.rounds):
                for name, model in models.items():
                    time.sleep(0.02)
                    model(images[0])
                    start = time.perf_counter()
                    for _ in range(3):
                        model(images[0])
                    times[name].append((time.perf_counter() - start) / 3)
        for name, t in times.items():
            rows[name][f"ms_{threads}"] = 1e3 * statistics.median(t)
    title = f"MobileNetV2, {len(images)} photographs, {len(calibration)} for calibration, {backend.isa()}"
    table = Table("", "top-1", "top-5", "agreement", "SQNR dB", "ms, 1 thread", "ms, 2 threads", title=title)
    for name, r in rows.items():
        cells = [
            f"{r['top1']:.3f}",
            f"{r['top5']:.3f}",
            f"{r['agreement']:.3f}",
            f"{r['sqnr']:.1f}",
            f"{r['ms_1']:.2f}",
            f"{r['ms_2']:.2f}",
        ]
        table.add_row(name, *cells)
    Console(width=110).print(table)
    float_bytes = sum(t.numel() * t.element_size() for t in original.state_dict().values())
    print(json.dumps({"rows": rows, "file_ratio": file.stat().st_size / float_bytes}))


if __name__ == "__main__":
    main()
