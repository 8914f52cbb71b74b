"""Promises about the source itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.h")])

# What PyTorch is removing. Names in text (docstrings, errors, comments) are fine; use is not.
REMOVED = re.compile(
    r"torch\.(quint8|qint8|qint32|quint4x2|quint2x4|quantize_per_tensor|quantize_per_channel|ao\b|quantization\b"
    r"|_make_per_|fake_quantize_)|torch\.ops\.(quantized|onednn)|torch\.classes\.quantized|\.nn\.quantized as torch"
    r"|from torch\.(ao|quantization|nn\.quantized|nn\.intrinsic|nn\.qat)"
)


def code_only(path):
    """Python source without docstrings, comments and other string literals; C++ without comments."""
    text = path.read_text()
    if path.suffix != ".py":
        return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"', "", text, flags=re.S)
    return ast.unparse(_DropStrings().visit(ast.parse(text)))


class _DropStrings(ast.NodeTransformer):
    def visit_Constant(self, node):
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node):
        return ast.Constant("")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_uses_what_torch_removes(path):
    assert not REMOVED.search(code_only(path)), f"{path} uses torch's deprecated quantization"


def test_the_pattern_finds_what_it_should():
    assert REMOVED.search("x = torch.quantize_per_tensor(y, 1.0, 0, torch.quint8)")
    assert REMOVED.search("torch.ops.quantized.linear(x)")
    assert REMOVED.search("from torch.ao.quantization import prepare")
    assert not REMOVED.search("zeropoint.quantize_per_tensor(x)")


FLOORS = [
    ["errors", "_native"],
    ["_reference"],
    ["backend", "backends", "ops"],
    ["tensor"],
    ["nn"],
    ["quantization", "ns"],
    ["engine"],
    ["graph"],
    ["analysis", "recipe", "compat"],
    ["cli"],
]


def floor(module):
    return next((i for i, names in enumerate(FLOORS) if module.split(".")[0] in names), None)


def test_imports_never_point_upward():
    wrong = []
    for path in (ROOT / "src/zeropoint").rglob("*.py"):
        module = str(path.relative_to(ROOT / "src/zeropoint").with_suffix("")).replace("/", ".")
        here = floor(module)
        for node in ast.parse(path.read_text()).body:
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.startswith("zeropoint")
                and here is not None
            ):
                targets = (
                    [node.module.removeprefix("zeropoint").lstrip(".")]
                    if node.module != "zeropoint"
                    else [a.name for a in node.names]
                )
                wrong += [f"{module} imports {t}" for t in targets if (floor(t) or 0) > here]
    # observer.is_activation_post_process and fake_quantize live on one floor; nothing else is excused.
    assert wrong == []


def test_no_machine_paths():
    for path in [*SOURCES, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *(ROOT / "benchmarks").rglob("*.py")]:
        assert not re.search(r"/(root|home/\w+|work|opt)/", path.read_text()), path
