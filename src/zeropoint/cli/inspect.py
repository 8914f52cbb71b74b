"""``zeropoint inspect FILE.zp``: what a program does, instruction by instruction, and what stayed float."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zeropoint.engine import Instruction, ProgramModule, Register, Value, load

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="show the instructions of a .zp file", description=__doc__)
    parser.add_argument("file", type=Path, help="file that zeropoint quantize or zeropoint.save wrote")
    parser.set_defaults(run=run)


def _text(argument: Any, module: ProgramModule) -> str:
    if isinstance(argument, Value):
        constant = module.program.constants.get(argument.index)
        if constant is not None:
            return f"%{argument.index}:{str(constant.dtype).removeprefix('torch.')}{list(constant.shape)}"
        return f"%{argument.index}"
    if isinstance(argument, Register):
        return f"#{argument.index}"
    if isinstance(argument, list):
        return "[" + ", ".join(_text(a, module) for a in argument) + "]"
    if isinstance(argument, float):
        return f"{argument:.6g}"
    return str(argument).removeprefix("torch.")


def _row(instruction: Instruction, module: ProgramModule) -> tuple[str, str, str, str]:
    results = ", ".join("_" if r is None else f"%{r}" for r in instruction.results)
    arguments = ", ".join(_text(a, module) for a in instruction.arguments if a is not None)
    return results, instruction.operator, instruction.source, arguments


def run(arguments: argparse.Namespace) -> int:
    """Prints tables. Exit status 0."""
    console = Console()
    module = load(arguments.file)
    program = module.program
    table = Table("result", "operator", "layer", "arguments", title=str(arguments.file))
    for instruction in program.body:
        table.add_row(*_row(instruction, module))
    console.print(table)
    size = sum(t.numel() * t.element_size() for t in program.constants.values())
    console.print(
        f"inputs {program.inputs}, outputs {program.outputs}, {len(program.body)} instructions, "
        f"{len(program.constants)} tensors of {size / 2**20:.2f} MiB"
    )
    console.print(module.report(), markup=False)
    return 0
