"""JSON lines of run.py to the tables of docs/benchmarks.md.

python benchmarks/kernels/markdown.py results.jsonl
"""

from __future__ import annotations

import json
import math
import sys
from itertools import groupby
from pathlib import Path


def table(lines: list[dict]) -> str:
    first = lines[0]
    columns = list(first["microseconds"])
    out = [
        f"{first['cpu']}, {first['isa']}, {first['threads']} thread{'s' * (first['threads'] > 1)}, measured peak "
        f"{first['peak_gops']:.0f} GOP/s; microseconds per call, share of the peak in brackets:",
        "",
        "| operator | " + " | ".join(columns) + " | best peer / zeropoint |",
        "|---" * (len(columns) + 2) + "|",
    ]
    ratios = []
    for line in lines:
        times, share = line["microseconds"], line["share_of_peak"]
        cells = [f"{times[c]:.0f} ({share[c]:.0%})" if c in times else "-" for c in columns]
        peers = [t for c, t in times.items() if c not in ("zeropoint", "float32")]
        ratios.append(min(peers) / times["zeropoint"])
        out.append(f"| {line['operator']} | " + " | ".join(cells) + f" | {ratios[-1]:.2f} |")
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return "\n".join([*out, "", f"Geometric mean of the last column: {mean:.2f}."])


def main() -> None:
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    key = lambda line: (line["isa"], line["threads"])
    print("\n\n".join(table(list(group)) for _, group in groupby(lines, key)))


if __name__ == "__main__":
    main()
