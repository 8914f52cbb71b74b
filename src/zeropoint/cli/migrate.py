"""``zeropoint migrate PATH``: rewrites a source tree from torch's quantization to zeropoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zeropoint.compat.migrate import migrate_tree

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "migrate", help="rewrite imports and calls of torch's quantization", description=__doc__
    )
    parser.add_argument("path", type=Path, help="Python file, or folder whose .py files are rewritten")
    parser.add_argument("--check", action="store_true", help="write nothing, only tell what would change")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0; 1 if something could not be rewritten."""
    found = migrate_tree(arguments.path, write=not arguments.check)
    problems = 0
    for path, migration in found.items():
        print(f"{path}: {migration.rewritten} names rewritten")
        for line, name, advice in migration.problems:
            print(f"{path}:{line}: {name} was not rewritten: {advice}")
        problems += len(migration.problems)
    total = sum(m.rewritten for m in found.values())
    print(
        f"{total} names in {len(found)} files {'would be' if arguments.check else 'were'} rewritten, {problems} left to you"
    )
    return 1 if problems else 0
