from __future__ import annotations

import contextlib
import struct
import subprocess
import sys

import pytest
import torch

import zeropoint as zp
from zeropoint import QuantizationError
from zeropoint.cli import main
from zeropoint.recipe import load_quantized, read_recipe

RECIPE = """
import torch
from torch import nn
def load():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval(), torch.zeros(1, 3, 8, 8)
def calibration():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(3)]
def evaluate(model):
    return {"first": float(model(next(iter(calibration())))[0, 0])}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


def test_file_gives_the_same_bits_in_a_new_process(recipe, tmp_path, capsys):
    out = tmp_path / "model.safetensors"
    assert main(["quantize", str(recipe), "-o", str(out), "--rounds", "2", "--eager"]) == 0
    text = capsys.readouterr().out
    for words in (
        "SQNR of the outputs",
        "agreement with float",
        "one call, 1 thread",
        "one call, 2 threads",
        "layers in int8",
        "instruction set",
        "size",
        "first",
    ):
        assert words in text
    expected = load_quantized(recipe, out)(read_recipe(recipe).calibration()[0])
    program = (
        "import sys, torch; from zeropoint.recipe import load_quantized, read_recipe\n"
        f"r = read_recipe({str(recipe)!r}); y = load_quantized(r, {str(out)!r})(r.calibration()[0])\n"
        f"torch.save(y, {str(tmp_path / 'y.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert torch.equal(torch.load(tmp_path / "y.pt", weights_only=True), expected)


def test_observers_and_weights_can_be_chosen(recipe, tmp_path):
    for observer in ("minmax", "moving-average"):
        assert (
            main(
                [
                    "quantize",
                    str(recipe),
                    "-o",
                    str(tmp_path / "m"),
                    "--observer",
                    observer,
                    "--weights",
                    "tensor",
                    "--rounds",
                    "0",
                ]
            )
            == 0
        )


def test_recipes_do_not_share_their_neighbours(tmp_path):
    models = []
    for width in (2, 3):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "network.py").write_text(f"from torch import nn\nnet = nn.Linear({width}, 1)\n")
        (folder / "recipe.py").write_text(
            "from network import net\ndef load(): return net, None\ndef calibration(): return []\n"
        )
        models.append(read_recipe(folder / "recipe.py").load()[0])
    assert [m.in_features for m in models] == [2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "must define load"),
        ("def load(): return 3\ndef calibration(): return []", "load() must return"),
        (RECIPE + "\ndef calibration(): return []", "calibration() gave no inputs"),
    ],
)
def test_bad_recipes(tmp_path, capsys, text, message):
    path = tmp_path / "recipe.py"
    path.write_text(text)
    assert main(["quantize", str(path), "-o", str(tmp_path / "m")]) == 2
    assert message in capsys.readouterr().err


def test_bad_arguments(recipe, tmp_path, capsys):
    assert main(["quantize", str(tmp_path / "none.py"), "-o", str(tmp_path / "m")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["quantize", str(recipe), "-o", str(tmp_path / "no" / "m")]) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["quantize", str(recipe)])


def test_damaged_files_are_errors(recipe, tmp_path):
    out = tmp_path / "m"
    main(["quantize", str(recipe), "-o", str(out), "--rounds", "0", "--eager"])
    good = out.read_bytes()
    for bad in (b"", b"\0" * 8, good[:100], good[: len(good) // 2], struct.pack("<Q", 2**60) + good[8:], good[8:]):
        out.write_bytes(bad)
        with pytest.raises(QuantizationError):
            load_quantized(recipe, out)
    (length,) = struct.unpack("<Q", good[:8])
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        position = int(torch.randint(0, 8 + length, (1,), generator=generator))
        damaged = bytearray(good)
        damaged[position] ^= 1 << int(torch.randint(0, 8, (1,), generator=generator))
        out.write_bytes(damaged)
        with contextlib.suppress(QuantizationError):  # a flipped bit may also leave a valid file
            load_quantized(recipe, out)
    with pytest.raises(QuantizationError, match="cannot be read"):
        load_quantized(recipe, tmp_path / "none")


def test_a_program_needs_no_recipe(recipe, tmp_path, capsys):
    out = tmp_path / "model.zp"
    assert main(["quantize", str(recipe), "-o", str(out), "--rounds", "1"]) == 0
    text = capsys.readouterr().out
    for words in ("SQNR of the outputs", "one call, 2 threads", "layers in int8", "runs", "native"):
        assert words in text
    x = read_recipe(recipe).calibration()[0]
    model, _ = read_recipe(recipe).plain_model()
    assert torch.equal(zp.load(out)(x), zp.quantize(model, read_recipe(recipe).calibration_inputs())(x))
    assert main(["inspect", str(out)]) == 0
    text = capsys.readouterr().out
    assert "4 of 4 operators in int8" in text
    assert main(["inspect", str(recipe)]) == 2
    assert "no safetensors file" in capsys.readouterr().err


def test_bench(recipe, capsys):
    assert main(["bench", str(recipe), "--vs", "torch,onnxruntime", "--rounds", "1"]) == 0
    text = capsys.readouterr().out
    assert text.count("onnxruntime") == 2
    assert main(["bench", str(recipe), "--vs", "tensorflow"]) == 2
    assert "knows torch, onnxruntime, openvino" in capsys.readouterr().err
