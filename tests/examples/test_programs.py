"""The example programs do what they say: the tutorials through torch's names, training at 3 bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
_RUN = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])['main']()))"


def run(path):
    # In a process of its own: the tutorials mount zeropoint over torch's names.
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RUN, str(EXAMPLES / path)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_static():
    assert run("tutorials/static.py")["signal to noise, dB"] > 30


def test_dynamic():
    result = run("tutorials/dynamic.py")
    assert result["signal to noise, dB"] > 30
    assert result["size, share of float"] < 0.5  # the embedding stays float


def test_aware():
    result = run("tutorials/aware.py")
    assert result["accuracy in int8"] > 0.9
    assert abs(result["accuracy in int8"] - result["accuracy while training"]) <= 0.01


def test_training_recovers_what_post_training_loses():
    result = run("mnist_qat/train.py")
    assert result["float"] > 0.92
    assert result["post-training"] < 0.6
    assert result["quantization-aware"] > result["float"] - 0.035
    assert result["largest difference to training, in steps"] <= 1
    assert result["share of values that differ"] < 1e-3
    assert result["equal in exact integers"] == 1


@pytest.mark.parametrize("path", ["tutorials/static.py", "tutorials/dynamic.py", "tutorials/aware.py"])
def test_programs_print(path):
    process = subprocess.run([sys.executable, "-W", "ignore", str(EXAMPLES / path)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert ":" in process.stdout
