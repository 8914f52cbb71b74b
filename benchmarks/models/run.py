"""Latency of whole networks, all stacks in the same interleaved rounds, with SQNR of 32 unseen inputs beside every time.

    python benchmarks/models/run.py resnet50:1:2 bert_base:8:1 ... [--stacks zeropoint,openvino] [--rounds 5]

NAME:BATCH:THREADS, by default every network with a batch of 1 and one and two threads. Each stack runs in turn for a block
of calls in every round; a number is the median over rounds of the blocks' medians. Each case has a process of its own. A
stack that is not installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import sys
import warnings
from typing import Any

import torch
from networks import NAMES, make
from stacks import STACKS, Bind

import zeropoint as zp
from zeropoint.analysis import sqnr
from zeropoint.cli.bench import measure


def build(network: Any, batch: int, threads: int, names: list[str]) -> dict[str, Bind]:
    example = network.inputs(batch, 0)
    # Of the same batch size: peers fix it when they export.
    calibration = [network.inputs(batch, seed) for seed in range(1, 1 + max(2, 16 // batch))]
    stacks = {}
    for name in names:
        try:
            stack = STACKS[name](network, example, calibration, threads)
        except ImportError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
            continue
        except Exception as error:  # a peer that cannot take the network
            print(f"left out: {name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        if stack is not None:
            stacks[name] = stack
    return stacks


def measure_case(case: str, names: list[str], rounds: int, seconds: float) -> tuple[str, float, float]:
    """The table's row of a case, and the ratios of the best peer and of torch.ao to zeropoint."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    name, batch, threads = case.split(":")
    torch.set_num_threads(int(threads))
    with torch.no_grad():
        network = make(name)
        stacks = build(network, int(batch), int(threads), names)
        # Of one image the ratio varies by decibels from image to image.
        unseen = [network.inputs(int(batch), 1000 + i) for i in range(max(2, 32 // int(batch)))]
        expected = torch.cat([network.model(*inputs) for inputs in unseen])
        quality = {n: sqnr(expected, torch.cat([bind(i)() for i in unseen])) for n, bind in stacks.items()}
        times = measure({n: bind(network.inputs(int(batch), 0)) for n, bind in stacks.items()}, rounds, seconds)
    ours = times["zeropoint"]
    # What is below 8 dB is broken; float32 is no peer.
    peers = {n: t for n, t in times.items() if not n.startswith(("zeropoint", "float32")) and quality[n] > 8}
    cells = []
    for n in names:
        shown = "" if n not in times else f"{times[n]:.2f}"
        cells.append(shown + ("" if n == "float32" or n not in times else f" ({quality[n]:.1f})"))
    ratio = min(peers.values()) / ours if peers else float("nan")
    theirs = times["torch.ao"] / ours if "torch.ao" in times else float("nan")
    return f"| {name} | {batch} | {threads} | {' | '.join(cells)} | {ratio:.2f} | {theirs:.2f} |", ratio, theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cases", nargs="*", default=[f"{n}:1:{t}" for n in NAMES for t in (1, 2)], metavar="NAME:BATCH:THREADS"
    )
    parser.add_argument("--stacks", default=",".join(STACKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="of each stack in a round")
    arguments = parser.parse_args()
    names = arguments.stacks.split(",")
    print(f"instruction set {zp.backend.isa()}, torch {torch.__version__}; milliseconds (SQNR in dB)\n")
    print(f"| network | batch | threads | {' | '.join(names)} | best peer / zeropoint | torch.ao / zeropoint |")
    print("|---" * (len(names) + 5) + "|", flush=True)
    best_ratios, torch_ratios = [], []
    for case in arguments.cases:
        # A process each: threads that runtimes leave behind cost whoever comes later a quarter.
        with multiprocessing.get_context("spawn").Pool(1) as process:
            line, ratio, theirs = process.apply(measure_case, (case, names, arguments.rounds, arguments.seconds))
        best_ratios.append(ratio)
        torch_ratios.append(theirs)
        print(line, flush=True)
    for title, ratios in (("best peer", best_ratios), ("torch.ao", torch_ratios)):
        known = [r for r in ratios if r == r]
        if known:
            print(f"\nGeometric mean of {title} / zeropoint: {statistics.geometric_mean(known):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
