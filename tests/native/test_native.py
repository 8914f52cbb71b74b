"""The kernels without torch: under sanitizers here, and on AArch64 under qemu."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent
SEED, CASES = random.randrange(1 << 31), 600


def _build(folder: Path, *options: str) -> Path:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja of the environment
    run = lambda *command: subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    run("cmake", "-S", str(SOURCE), "-B", str(folder), "-G", "Ninja", *options)
    run("cmake", "--build", str(folder))
    return folder / "kernels_test"


def _run(*command: str) -> str:
    process = subprocess.run([*command, str(CASES), str(SEED)], capture_output=True, text=True)
    assert process.returncode == 0, f"seed {SEED}\n{process.stdout}\n{process.stderr}"
    return process.stdout


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return _run(str(_build(tmp_path_factory.mktemp("sanitized"), "-DSANITIZE=ON")))


def test_sanitizers_and_equal_bits(here):
    """Address and undefined-behaviour sanitizers over every kernel, in buffers of exactly their size."""
    assert "0 failures" in here


def test_aarch64(here, tmp_path):
    """NEON kernels equal the scalar ones, and these the same source on this machine."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user; .ci/run installs them where it may")
    program = _build(
        tmp_path, "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={compiler}"
    )
    there = _run(emulator, "-cpu", "max", "-L", "/usr/aarch64-linux-gnu", str(program))
    assert "neon_dotprod neon_i8mm" in there
    checksum = lambda text: re.search(r"checksum (\w+)", text)[1]
    assert checksum(there) == checksum(here)
