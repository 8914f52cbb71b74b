"""Bars of the tables in a Markdown page: how many times as long as zeropoint the best peer takes, row by row.

    python benchmarks/plot.py docs/benchmarks.md docs/benchmarks

Writes one SVG for each table that has the column "best peer / zeropoint", named after its heading. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt

RATIO = "best peer / zeropoint"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text: str) -> list[tuple[str, list[str], list[float]]]:
    """Heading, labels and ratios of each table."""
    found: list[tuple[str, list[str], list[float]]] = []
    heading, header = "", None
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = cells(line)
            if RATIO in header:
                found.append((heading, [], []))
        elif RATIO in header and not line.startswith("|---"):
            row = dict(zip(header, cells(line), strict=True))
            value = re.match(r"[\d.]+", row[RATIO])
            if value:
                extra = [f"{row[key]} {key}" for key in ("batch", "threads") if key in row]
                label = ", ".join([re.sub(r" \(.*?\)$", "", row[header[0]]), *extra])
                found[-1][1].append(label.replace(" threads", " thr.").replace("batch", "im."))
                found[-1][2].append(float(value.group()))
    return [table for table in found if table[1]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(exist_ok=True)
    plt.rcParams |= {"svg.hashsalt": "zeropoint", "svg.fonttype": "none"}  # the same picture, the same file
    counts: dict[str, int] = {}
    for heading, labels, ratios in tables(arguments.page.read_text()):
        name = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
        counts[name] = counts.get(name, 0) + 1
        figure, axes = plt.subplots(figsize=(7, 0.6 + 0.2 * len(labels)))
        colours = ["#3b7dd8" if ratio >= 1 else "#d8683b" for ratio in ratios]
        axes.barh(labels, [ratio - 1 for ratio in ratios], left=1, color=colours, height=0.7)
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel("time of the best peer / time of zeropoint")
        axes.tick_params(axis="y", labelsize=7)
        axes.margins(y=0.01)
        figure.tight_layout()
        target = arguments.folder / f"{name}-{counts[name]}.svg"
        figure.savefig(target, metadata={"Date": None})
        plt.close(figure)
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
