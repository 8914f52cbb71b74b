"""Shared fixtures: every instruction set the machine has, fixed seeds, and no silent absence of kernels."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import pytest
import torch

import zeropoint as zp


def pytest_report_header() -> str:
    return f"zeropoint: native={zp.backend.native()} isa={zp.backend.isa()} available={','.join(zp.backend.available_isas())}"


def pytest_sessionstart() -> None:
    if not zp.backend.native():
        raise pytest.UsageError("the native library is missing: build it first (make test does)")
    required = os.environ.get("ZEROPOINT_REQUIRE_ISAS", "scalar").split(",")
    missing = set(required) - set(zp.backend.available_isas())
    if missing:
        raise pytest.UsageError(
            f"ZEROPOINT_REQUIRE_ISAS asks for {sorted(missing)}, which this machine lacks ({platform.processor()})"
        )


@pytest.fixture(autouse=True)
def _seed_and_threads() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    zp.backend.reset_fallbacks()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=zp.backend.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for each instruction set this machine can execute."""
    with zp.backend.use_isa(request.param):
        yield request.param
