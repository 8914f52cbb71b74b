"""Programs refuse sizes for which the captured graph would compute something else than the model."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zeropoint as zp
from zeropoint.analysis import sqnr
from zeropoint.engine.program import ProgramError
from zeropoint.errors import QuantizationError

SHAPE = (1, 3, 16, 16)


class Ends(nn.Module):
    """A convolution, and what a test does with it."""

    def __init__(self, end):
        super().__init__()
        self.layer, self.end = nn.Conv2d(3, 8, 3, padding=1), end

    def forward(self, x):
        return self.end(self.layer(x))


def positions(x):
    return x + torch.linspace(0, 1, 16 * 16).view(16, 16)


# What a network does with its sizes: fits, does not fit, and why.
REFUSED = {
    "positions": (positions, [(3, 3, 16, 16)], (3, 3, 24, 16), r"x\.shape\[3\] == x\.shape\[2\].*16 is not 24"),
    "branch": (lambda x: x * 2 if x.shape[2] > 10 else x, [(2, 3, 40, 5)], (1, 3, 10, 16), r"x\.shape\[2\] > 10"),
    "other branch": (lambda x: x * 2 if x.shape[3] < 20 else x, [(2, 3, 40, 19)], (1, 3, 16, 20), r"x\.shape\[3\] <= 19.*20 is more"),
    "even": (lambda x: x * 2 if x.shape[2] % 2 == 0 else x, [(2, 3, 6, 5)], (1, 3, 7, 16), r"x\.shape\[2\] % 2"),
    "square": (lambda x: x.mT if x.shape[2] == x.shape[3] else x, [(2, 3, 9, 9)], (1, 3, 9, 8), r"x\.shape\[2\]"),
    "half as a number": (lambda x: x[:, :, : int(x.shape[2] / 2)], [(3, 3, 16, 9)], (1, 3, 24, 16), r"trunc.* == 8"),
    "root as a number": (
        lambda x: x[:, :, : int((x.shape[2] * x.shape[3]) ** 0.5)], [(3, 3, 16, 16)], (1, 3, 20, 20), "== 16"
    ),
    "logarithm": (lambda x: x * math.log(x.shape[2]), [(5, 3, 16, 16)], (1, 3, 20, 16), r"x\.shape\[2\] == 16"),
    "windows": (
        lambda x: x.view(x.shape[0], 8, x.shape[2] // 4, 4, -1, 4).sum((3, 5)), [(2, 3, 8, 20)], (1, 3, 10, 16), "// 4"
    ),
}  # fmt: skip
SERVED = {
    "half": lambda x: F.interpolate(x, scale_factor=0.5) + F.max_pool2d(x, 2),
    "twice": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "product": lambda x: x * x.shape[2],
    "least": lambda x: x[:, :, : min(x.shape[2], x.shape[3])],
    "mask": lambda x: x * (torch.arange(x.shape[3]) < x.shape[3] // 2),
    "padding": lambda x: F.pad(x, (0, (4 - x.shape[3] % 4) % 4)),
}


def program_of(model):
    torch.manual_seed(0)
    return zp.quantize(model.eval(), [torch.randn(SHAPE) for _ in range(4)])


@pytest.mark.parametrize("case", REFUSED)
def test_other_sizes_are_refused(case, tmp_path):
    end, fitting, other, message = REFUSED[case]
    model = Ends(end)
    program = program_of(model)
    zp.save(program, tmp_path / "model.zp")
    for runs in (program, zp.load(tmp_path / "model.zp")):
        assert runs.engine == "native"
        for shape in (SHAPE, *fitting):
            x = torch.randn(shape)
            assert sqnr(model(x), runs(x)) > 20
        for call in (runs, runs.profile):
            with pytest.raises(QuantizationError, match=message):
                call(torch.randn(other))
    with pytest.raises(ProgramError, match=message):
        program.program.interpret([torch.randn(other)])


@pytest.mark.parametrize("case", SERVED)
def test_any_size_is_served(case):
    model = Ends(SERVED[case])
    program = program_of(model)
    for shape in (SHAPE, (1, 3, 17, 30), (3, 3, 40, 21)):
        x = torch.randn(shape)
        assert program(x).shape == model(x).shape
        assert sqnr(model(x), program(x)) > 20
    assert program(torch.empty(0, 3, 16, 16)).shape == model(torch.empty(0, 3, 16, 16)).shape


def test_calibration_inputs_are_checked_too():
    model = Ends(positions).eval()
    with pytest.raises(QuantizationError, match=r"x\.shape\[3\] == x\.shape\[2\], got \[1, 3, 20, 16\]"):
        zp.quantize(model, [torch.randn(SHAPE), torch.randn(1, 3, 20, 16)])


def test_inputs_that_belong_together():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x, *, mask):
            return self.layer(x) * mask.unsqueeze(2)

    model = Masked().eval()
    batch = lambda n, m: {"x": torch.randn(2, n, 8), "mask": torch.ones(2, m)}
    program = zp.quantize(model, [batch(5, 5)])
    assert sqnr(model(**(given := batch(7, 7))), program(**given)) > 20
    with pytest.raises(QuantizationError, match=r"mask\.shape\[1\] == x\.shape\[1\].*6 is not 5"):
        program(**batch(5, 6))


def test_a_batch_that_is_a_number():
    """Is that of the example, not of the two that torch.export is shown."""
    model = Ends(lambda x: x.reshape(1, -1) if len(x) == 1 else x.reshape(len(x) // 2, -1)).eval()
    program = program_of(model)
    x = torch.randn(SHAPE)
    assert program(x).shape == model(x).shape
    with pytest.raises(QuantizationError, match=r"x\.shape\[0\]"):
        program(torch.randn(4, 3, 16, 16))
