"""The ``zeropoint`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from zeropoint.cli import bench, inspect, migrate, quantize
from zeropoint.errors import QuantizationError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="zeropoint", description="int8 quantization for PyTorch models on CPUs")
    commands = parser.add_subparsers(dest="command", required=True)
    quantize.add_parser(commands)
    inspect.add_parser(commands)
    bench.add_parser(commands)
    migrate.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except QuantizationError as error:
        print(f"zeropoint: {error}", file=sys.stderr)
        return 2
