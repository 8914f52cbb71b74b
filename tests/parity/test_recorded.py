"""Parity with what torch.ao gave when there was one (record.py, recorded.json)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import zeropoint.quantization as ours

_spec = importlib.util.spec_from_file_location("record", Path(__file__).with_name("record.py"))
record = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(record)
RECORDED = json.loads(record.FILE.read_text())


@pytest.mark.parametrize("name", record.OBSERVERS)
def test_observers(name):
    """Scales and zero points, exactly."""
    assert record.observe(ours, name) == RECORDED["observers"][name]


@pytest.mark.parametrize("name", record.LAYERS)
def test_dynamic(name):
    """The same int8 weights; activations of 8 bits here and 7 there: within the coarser step."""
    mine, theirs = (torch.tensor(v) for v in (record.dynamic(ours, name), RECORDED["dynamic"][name]))
    assert mine.shape == theirs.shape
    assert float((mine - theirs).abs().max()) < 0.03


def test_static_integers():
    hidden, out = record.static(ours)
    assert hidden == RECORDED["static"][0]
    assert out == pytest.approx(RECORDED["static"][1], abs=1e-6)


def test_training_with_folded_batch_norm():
    assert record.trained(ours) == pytest.approx(RECORDED["trained"], rel=1e-3)
