"""``zeropoint migrate`` rewrites source and names what it could not."""

from __future__ import annotations

import pytest

from zeropoint.cli import main
from zeropoint.compat.migrate import migrate_source, migrate_tree
from zeropoint.errors import QuantizationError

BEFORE = '''"""A program."""
from __future__ import annotations

import torch
import torch.quantization as tq
import torch.ao.nn.quantized
from torch.ao.quantization import prepare, convert  # kept
from torch.ao.nn.quantized.modules.conv import Conv2d
from torch import quint8, nn

x = torch.quantize_per_tensor(y, 0.1, 0, torch.quint8)
m = torch.ao.nn.quantized.Linear(3, 4)  # comment
z = torch.nn.Linear(3, 4)
'''
AFTER = '''"""A program."""
from __future__ import annotations

import torch
import zeropoint.quantization as tq
import zeropoint.nn.quantized
from zeropoint.quantization import prepare, convert  # kept
from zeropoint.nn.quantized.conv import Conv2d
from torch import nn; from zeropoint import quint8

x = zeropoint.quantize_per_tensor(y, 0.1, 0, zeropoint.quint8)
m = zeropoint.nn.quantized.Linear(3, 4)  # comment
z = torch.nn.Linear(3, 4)
'''


def test_rewrites():
    migration = migrate_source(BEFORE)
    assert migration.source == AFTER.replace("quantized.conv import", "quantized.modules.conv import")
    assert migration.problems == []
    assert migrate_source(migration.source).rewritten == 0


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from torch.ao.quantization.quantize_fx import prepare_fx", "quantize_fx"),
        ("torch.backends.quantized.engine = 'fbgemm'", "torch.backends.quantized"),
        ("y = torch.ops.quantized.add(a, b, 1.0, 0)", "torch.ops.quantized"),
    ],
)
def test_says_what_it_could_not(line, name):
    migration = migrate_source(f"import torch\n{line}\n")
    assert [(n, name in what) for n, what, _ in migration.problems] == [(2, True)]
    assert line in migration.source


def test_command(tmp_path, capsys):
    file = tmp_path / "program.py"
    file.write_text(BEFORE)
    assert main(["migrate", str(tmp_path), "--check"]) == 0
    assert file.read_text() == BEFORE
    assert main(["migrate", str(tmp_path)]) == 0
    assert "zeropoint.quantization" in file.read_text()
    file.write_text("import torch\ntorch.ops.quantized.add(1)\n")
    assert main(["migrate", str(tmp_path)]) == 1
    assert "was not rewritten" in capsys.readouterr().out
    assert main(["migrate", str(tmp_path / "none")]) == 2
    (tmp_path / "broken.py").write_text("import torch\ndef (")
    with pytest.raises(QuantizationError, match="cannot be parsed"):
        migrate_tree(tmp_path)
