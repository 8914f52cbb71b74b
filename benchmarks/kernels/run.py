"""Times zeropoint's operators and their peers, interleaved, on the shapes of real networks.

    python benchmarks/kernels/run.py [--threads 1 2] [--isa avx512vnni] [--json FILE] [--only linear]

Every number is the median over rounds of the mean of a block of calls; within a round all stacks take
their turn. Peak is the dot product alone, on registers, measured in the same run; "% peak" counts dense
multiply-adds, padded taps included. Operators are called from Python, so a few microseconds of each time
are the call.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peers import PEERS, Problem
from rich.console import Console
from rich.table import Table

from zeropoint import backend, ops

# name: channels, out channels, kernel, stride, input size, groups
CONVOLUTIONS = {
    "stem 7x7/2 3->64 @224": (3, 64, 7, 2, 224, 1),
    "stem 3x3/2 3->32 @224": (3, 32, 3, 2, 224, 1),
    "1x1 64->256 @56": (64, 256, 1, 1, 56, 1),
    "3x3 64->64 @56": (64, 64, 3, 1, 56, 1),
    "3x3 128->128 @28": (128, 128, 3, 1, 28, 1),
    "3x3 256->256 @14": (256, 256, 3, 1, 14, 1),
    "3x3 512->512 @7": (512, 512, 3, 1, 7, 1),
    "1x1 1024->256 @14": (1024, 256, 1, 1, 14, 1),
    "1x1/2 256->512 @56": (256, 512, 1, 2, 56, 1),
    "1x1 24->144 @56": (24, 144, 1, 1, 56, 1),
    "1x1 384->64 @14": (384, 64, 1, 1, 14, 1),
    "1x1 960->160 @7": (960, 160, 1, 1, 7, 1),
    "dw 3x3 32 @112": (32, 32, 3, 1, 112, 32),
    "dw 3x3/2 96 @112": (96, 96, 3, 2, 112, 96),
    "dw 3x3 144 @56": (144, 144, 3, 1, 56, 144),
    "dw 3x3 384 @14": (384, 384, 3, 1, 14, 384),
    "dw 3x3 960 @7": (960, 960, 3, 1, 7, 960),
    "dw 3x3/2 144 @56": (144, 144, 3, 2, 56, 144),
    "dw 3x3/2 384 @14": (384, 384, 3, 2, 14, 384),
    "dw 5x5 240 @28": (240, 240, 5, 1, 28, 240),
    "dw 5x5/2 240 @28": (240, 240, 5, 2, 28, 240),
    "dw 5x5 672 @14": (672, 672, 5, 1, 14, 672),
    "groups of 4 3x3 128 @56": (128, 128, 3, 1, 56, 32),
    "groups of 8 3x3 256 @28": (256, 256, 3, 1, 28, 32),
    "groups of 16 3x3 512 @14": (512, 512, 3, 1, 14, 32),
    "groups of 32 3x3 1024 @7": (1024, 1024, 3, 1, 7, 32),
    "groups of 24 3x3 120 @28": (120, 120, 3, 1, 28, 5),
    "groups of 48 3x3/2 96 @56": (96, 96, 3, 2, 56, 2),
    "groups of 1, 2 filters 7x7/2 48 @56": (48, 96, 7, 2, 56, 48),
}
# M, N, K
LINEARS = {
    "linear 1x4096x4096": (1, 4096, 4096),
    "linear 8x4096x4096": (8, 4096, 4096),
    "linear 49x512x512": (49, 512, 512),
    "linear 128x768x768": (128, 768, 768),
    "linear 128x3072x768": (128, 3072, 768),
    "linear 128x768x3072": (128, 768, 3072),
    "linear 512x1024x1024": (512, 1024, 1024),
    "linear 1024x1024x1024": (1024, 1024, 1024),
}


def problem(name: str) -> Problem:
    torch.manual_seed(0)
    if name in LINEARS:
        m, n, k = LINEARS[name]
        x, weight = torch.randint(0, 256, (m, k), dtype=torch.uint8), torch.randint(-127, 128, (n, k)).to(torch.int8)
        return Problem(x, weight, torch.rand(n) * 0.01 + 0.001, torch.randn(n))
    channels, out, kernel, stride, size, groups = CONVOLUTIONS[name]
    x = torch.randint(0, 256, (1, channels, size, size), dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.randint(-127, 128, (out, channels // groups, kernel, kernel)).to(torch.int8)
    return Problem(x, weight, torch.rand(out) * 0.01 + 0.001, torch.randn(out), stride, kernel // 2, groups)


def ours(p: Problem) -> Callable[[], Any]:
    tail = (p.x_scale, p.x_zero_point, p.y_scale, p.y_zero_point, 0, 255, torch.uint8)
    if not p.is_conv:
        packed = ops.linear_pack(p.weight, None)
        return lambda: ops.linear(p.x, p.weight, packed, p.w_scale, None, p.bias, *tail)
    two = lambda v: (v, v)
    packed = ops.conv2d_pack(p.weight, None, (1, 1), p.groups, two(p.stride))
    geometry = (two(p.stride), two(p.padding), (1, 1), p.groups)
    return lambda: ops.conv2d(p.x, p.weight, packed, p.w_scale, None, p.bias, *geometry, *tail)


def float32(p: Problem) -> Callable[[], Any]:
    x, w = p.x.float(), p.weight.float()
    if p.is_conv:
        w = w.contiguous(memory_format=torch.channels_last)
        return lambda: torch.nn.functional.conv2d(x, w, p.bias, p.stride, p.padding, 1, p.groups)
    return lambda: torch.nn.functional.linear(x, w, p.bias)


def operations(p: Problem) -> float:
    if not p.is_conv:
        return 2.0 * p.x.shape[0] * p.weight.numel()
    size = (p.x.shape[2] + 2 * p.padding - p.weight.shape[2]) // p.stride + 1
    return 2.0 * size * size * p.weight.numel()


def peak(rounds: int = 7) -> float:
    """Operations per second of one thread's dot products."""
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        done = torch.ops.zeropoint.isa_dot_peak(500_000)
        best = max(best, done / (time.perf_counter() - start))
    return best


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    blocks = {}
    with torch.inference_mode():
        for name, call in calls.items():
            call(), call()
            start = time.perf_counter()
            call()
            blocks[name] = max(2, int(0.01 / max(time.perf_counter() - start, 1e-6)))
        times: dict[str, list[float]] = {name: [] for name in calls}
        shuffle = random.Random(0)
        for _ in range(rounds):
            # Worker threads of the stack that ran before spin on for a while and take a core away: wait for
            # them, and let no stack always follow the same other one.
            for name, call in shuffle.sample(sorted(calls.items()), len(calls)):
                time.sleep(0.04)
                call()
                start = time.perf_counter()
                for _ in range(blocks[name]):
                    call()
                times[name].append((time.perf_counter() - start) / blocks[name])
    return {name: statistics.median(t) for name, t in times.items()}


def cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--isa", choices=backend.available_isas(), default=backend.isa())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="part of the names to run")
    parser.add_argument("--float", action="store_true", help="also time torch's float32 operator")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="the stacks to compare with")
    parser.add_argument("--json", default=None, help="append JSON lines to this file")
    arguments = parser.parse_args()
    console = Console(width=150)
    names = [n for n in (*CONVOLUTIONS, *LINEARS) if arguments.only in n]
    with backend.use_isa(arguments.isa):
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            limit = peak() * threads
            title = f"{cpu_model()}, {threads} thread(s), {backend.isa()}, peak {limit / 1e9:.0f} GOP/s; microseconds, % of peak in brackets"
            peers = {**{n: PEERS[n] for n in arguments.peers}, **({"float32": None} if arguments.float else {})}
            table = Table("operator", "zeropoint", *peers, "best peer / ours", title=title)
            for name in names:
                p = problem(name)
                calls = {"zeropoint": ours(p)}
                for peer, make in peers.items():
                    call = float32(p) if make is None else make(p)
                    if call is not None:
                        calls[peer] = call
                seconds = measure(calls, arguments.rounds)
                share = {n: operations(p) / s / limit for n, s in seconds.items()}
                others = [s for n, s in seconds.items() if n not in ("zeropoint", "float32")]
                ratio = min(others) / seconds["zeropoint"] if others else float("nan")
                cells = [
                    f"{seconds[n] * 1e6:.0f} ({share[n]:.0%})" if n in seconds else "-" for n in ("zeropoint", *peers)
                ]
                table.add_row(name, *cells, f"{ratio:.2f}")
                line = {
                    "operator": name, "threads": threads, "isa": backend.isa(), "cpu": cpu_model(), "torch": torch.__version__,
                    "peak_gops": round(limit / 1e9, 1), "microseconds": {n: round(s * 1e6, 2) for n, s in seconds.items()},
                    "share_of_peak": {n: round(s, 4) for n, s in share.items()},
                }  # fmt: skip
                if arguments.json:
                    with open(arguments.json, "a") as file:
                        file.write(json.dumps(line) + "\n")
            console.print(table)


if __name__ == "__main__":
    main()
