"""Where values lie: places that are shared, and results that take the place of what their operator reads last."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import zeropoint as zp


class Residual(nn.Module):
    """``second(first(x)) + x`` between other layers; with ``later``, x is needed once more."""

    def __init__(self, first: nn.Module, second: nn.Module, end: nn.Module, later: bool = False) -> None:
        super().__init__()
        self.start, self.first, self.second, self.end, self.later = nn.ReLU(), first, second, end, later

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.start(x)
        y = self.end((self.second(self.first(x).relu()) + x).relu())
        return y + self.end(x) if self.later else y


def _adds(program: nn.Module) -> int:
    """Layers that add a residual."""
    count = 0
    for instruction in program.program.body:
        namespace, _, name = instruction.operator.partition("::")
        if name in ("conv2d", "linear", "add_norm"):
            arguments = getattr(getattr(torch.ops, namespace), name).default._schema.arguments
            count += instruction.arguments[[a.name for a in arguments].index("residual")] is not None
    return count


def _image(channels: int, size: int = 9, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, size, size)


def _check(model: nn.Module, calibration: list[torch.Tensor]) -> nn.Module:
    """The first run has memory for each value, the others have a plan; all must be as the specification says."""
    program = zp.quantize(model.eval(), calibration)
    assert program.engine == "native"
    assert _adds(program) > 0
    inputs = [torch.randn_like(calibration[0]) for _ in range(2)]
    expected = [program.program.interpret([x])[0] for x in inputs]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for _ in range(2):
                for x, y in zip(inputs, expected, strict=True):
                    assert torch.equal(program(x), y)
    finally:
        torch.set_num_threads(threads)
    return program


CHANNELS = [1, 3, 8, 16, 24, 33, 64, 72, 130]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("later", [False, True])
def test_a_convolution_over_its_residual(channels, kernel, later):
    conv = lambda k: nn.Conv2d(channels, channels, k, padding=k // 2)
    for size, batch in ((9, 2), (7, 1), (1, 5)):
        model = Residual(conv(1), conv(kernel), conv(1), later)
        _check(model, [_image(channels, size, batch) for _ in range(3)])


@pytest.mark.parametrize("isa", zp.backend.available_isas())
@pytest.mark.parametrize("channels", [8, 33, 64, 130])
def test_every_instruction_set(isa, channels):
    conv = lambda k, groups=1: nn.Conv2d(channels, channels, k, padding=k // 2, groups=groups)
    with zp.backend.use_isa(isa):
        for second in (conv(1), conv(3), conv(3, channels)):
            _check(Residual(conv(1), second, conv(1)), [_image(channels, 7, 1) for _ in range(3)])
        _check(Encoder(channels, False), [torch.randn(7, channels) for _ in range(3)])


@pytest.mark.parametrize("channels", [4, 24, 64, 130])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_depthwise_or_grouped_convolution_over_its_residual(channels, kernel):
    for groups in (channels, 2):
        second = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups)
        pointwise = nn.Conv2d(channels, channels, 1)
        _check(Residual(pointwise, second, pointwise), [_image(channels, 20) for _ in range(3)])


@pytest.mark.parametrize("channels", [8, 40])
def test_a_convolution_of_what_it_adds(channels):
    """The neighbours of a pixel are still to be read when it is written."""
    model = Residual(nn.Identity(), nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, 4, 1))
    _check(model, [_image(channels) for _ in range(3)])


@pytest.mark.parametrize("features", [5, 48, 200])
@pytest.mark.parametrize("rows", [1, 7, 130])
def test_a_linear_layer_over_its_residual(features, rows):
    model = Residual(nn.Linear(features, 2 * features), nn.Linear(2 * features, features), nn.Linear(features, 4))
    _check(model, [torch.randn(rows, features) for _ in range(3)])


class Encoder(nn.Module):
    """A stream of float32 with norms before or after what is added."""

    def __init__(self, width: int, before: bool) -> None:
        super().__init__()
        self.before = before
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width)) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x)) if self.before else norm(x + layer(x))
        return self.norms[0](x) + 1.0


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("width", [12, 64, 100])
def test_a_norm_over_its_residual(before, width):
    _check(Encoder(width, before), [torch.randn(3, 11, width) for _ in range(3)])


def test_a_block_of_a_residual_network_needs_two_places():
    channels, size = 64, 32
    conv = lambda n: nn.Conv2d(channels, n, 1)
    x = _image(channels, size, 1)
    one_value = channels * size * size
    program = _check(Residual(conv(channels), conv(channels), conv(4)), [x])
    assert 2 * one_value <= program.planned_bytes() < 2.2 * one_value
    later = _check(Residual(conv(channels), conv(channels), conv(4), later=True), [x])
    assert later.planned_bytes() >= 3 * one_value


def test_an_operator_whose_result_nobody_takes():
    x = torch.randn(7, 48)
    program = _check(Residual(nn.Linear(48, 8), nn.Linear(8, 48), nn.Linear(48, 4)), [x]).program
    program.body += [dataclasses.replace(i, results=[]) for i in program.body if i.operator == "zeropoint::linear"]
    module = zp.engine.ProgramModule(program)
    assert module.engine == "native"
    expected = program.interpret([x])[0]
    for _ in range(3):
        assert torch.equal(module(x), expected)
