"""Threads that wait between the instructions of a program (csrc/ops/threads.h): bits, errors, many callers."""

from __future__ import annotations

import concurrent.futures
import contextlib

import pytest
import torch
from torch import nn

import zeropoint as zp


@contextlib.contextmanager
def torch_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Mixed(nn.Module):
    """Layers that are worth sharing, the first in several pieces for each thread, with a float operator of ATen's between them and a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 256)
        self.first, self.second = (nn.Sequential(nn.Linear(256, 2048), nn.ReLU(), nn.Linear(2048, 256)) for _ in "ab")
        self.lstm = nn.LSTM(256, 256, batch_first=True)

    def forward(self, x):
        y = self.first(self.embedding(x))
        y = self.second(torch.cumsum(y, 1) / 8)
        return self.lstm(y)[0]


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    inputs = [torch.randint(0, 50, (2, 40)) for _ in range(4)]
    return zp.quantize(Mixed().eval(), inputs)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_same_bits_with_any_number_of_threads(program, threads):
    x = torch.randint(0, 50, (2, 40))
    with torch_threads(1):
        expected = program(x)
    with torch_threads(threads):
        for _ in range(20):
            assert torch.equal(program(x), expected)


def test_an_error_leaves_the_threads_usable(program):
    x = torch.randint(0, 50, (2, 40))
    wrong = x.clone()
    wrong[1, 3] = 50
    with torch_threads(2):
        expected = program(x)
        for _ in range(5):
            with pytest.raises(ValueError, match="embedding"):
                program(wrong)
            assert torch.equal(program(x), expected)


def test_callers_on_threads_of_their_own(program):
    inputs = [torch.randint(0, 50, (2, 40)) for _ in range(4)]

    def call(i):
        with torch.no_grad():
            return all(torch.equal(program(inputs[i % 4]), expected[i % 4]) for _ in range(20))

    with torch_threads(2):
        expected = [program(x) for x in inputs]
        for callers in (1, 2, 5):
            with concurrent.futures.ThreadPoolExecutor(callers) as pool:
                assert all(pool.map(call, range(2 * callers)))


def test_a_profile_counts_every_instruction(program):
    with torch_threads(2):
        rows = program.profile(torch.randint(0, 50, (2, 40)))
    assert sum(row["operator"] == "zeropoint::linear" for row in rows) == 4
    assert all(row["ms"] > 0 for row in rows if row["operator"] in ("zeropoint::linear", "zeropoint::rnn_static"))
