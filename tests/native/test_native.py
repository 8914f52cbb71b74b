"""The kernels without torch: under sanitizers here, with AVX-512 and AMX emulated, and on AArch64 under qemu. The package on
older CPUs."""

from __future__ import annotations

import os
import platform
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import zeropoint as zp

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


def _checksum(output: str) -> str:
    return re.search(r"checksum (\w+)", output)[1]


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
    assert _checksum(there) == _checksum(here)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="newer sets of x86-64")
def test_emulated_sets(here, tmp_path):
    """AVX-VNNI, AVX-512 with VNNI and VBMI, and AMX equal the scalar kernels on CPUs that lack them."""
    if not Path("/usr/include/simde").is_dir():
        pytest.skip("needs libsimde-dev; .ci/run installs it where it may")
    emulated = _run(str(_build(tmp_path, "-DEMULATE=ON")))
    assert "avxvnni avx512vbmi amx (emulated)" in emulated
    assert _checksum(emulated) == _checksum(here)


_ON_THIS_CPU = """
import sys, torch, zeropoint as zp
program = zp.load(sys.argv[1])
print(zp.backend.isa(), program(torch.load(sys.argv[2])).numpy().tobytes().hex())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="older CPUs of x86-64")
@pytest.mark.parametrize(("cpu", "isa"), [("Nehalem", "scalar"), ("Haswell", "avx2")])
def test_older_cpus(cpu, isa, tmp_path):
    """Nothing of newer instruction sets runs on CPUs without them, be it while the library is loaded."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("needs qemu-user; .ci/run installs it where it may")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 4)).eval()
    x = torch.randn(2, 3, 8, 8)
    program = zp.quantize(model, [(x,)])
    zp.save(program, tmp_path / "program.zp")
    torch.save(x, tmp_path / "x.pt")
    command = (emulator, "-cpu", cpu, sys.executable, "-c", _ON_THIS_CPU, tmp_path / "program.zp", tmp_path / "x.pt")
    environment = {k: v for k, v in os.environ.items() if k != "ZEROPOINT_ISA"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == [isa, program(x).numpy().tobytes().hex()]
