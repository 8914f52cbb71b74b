"""Models of bfloat16 and half as programs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint.analysis import sqnr

LOW = (torch.bfloat16, torch.float16)


class Net(nn.Module):
    """Results of several dtypes, nested."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(32, 64), nn.LayerNorm(64), nn.Linear(64, 8)

    def forward(self, x, scale=None):
        hidden = nn.functional.silu(self.norm(self.a(x)))
        logits = self.b(hidden if scale is None else hidden * scale)
        return {"logits": logits.float(), "hidden": hidden, "best": logits.argmax(-1)}


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("how", ["static", "dynamic", "weights"])
def test_programs_take_and_give_the_dtypes_of_the_model(dtype, how, tmp_path):
    torch.manual_seed(0)
    model = Net().to(dtype)
    x = torch.randn(16, 32, dtype=dtype)
    options = {
        "static": {"calibration": [x]},
        "dynamic": {"dynamic": True, "example": x},
        "weights": {"weight_bits": 8, "example": x},
    }
    program = zp.quantize(model, **options[how])
    assert program.engine == "native"
    expected, result = model(x), program(x)
    assert {k: v.dtype for k, v in result.items()} == {k: v.dtype for k, v in expected.items()}
    for name in ("logits", "hidden"):
        assert sqnr(expected[name].float(), result[name].float()) > 30
    assert model.training
    assert {p.dtype for p in model.parameters()} == {dtype}
    program.save(tmp_path / "low.zp")
    assert all(torch.equal(v, result[k]) for k, v in zp.load(tmp_path / "low.zp")(x).items())
    assert program(x[:3])["hidden"].shape == (3, 64)


def test_arguments_by_name():
    torch.manual_seed(0)
    model = Net().bfloat16().eval()
    inputs = {"x": torch.randn(16, 32).bfloat16(), "scale": torch.rand(64).bfloat16()}
    program = zp.quantize(model, [inputs])
    assert program.engine == "native"
    assert sqnr(model(**inputs)["logits"], program(**inputs)["logits"]) > 25


def test_layers_are_those_of_the_float32_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval().bfloat16()
    x = torch.randn(4, 3, 12, 12).bfloat16()
    program, wide = zp.quantize(model, [x]), zp.quantize(model.float(), [x.float()])
    covered = [(where, what, why) for where, what, why in program.program.coverage if what != "aten.to.dtype"]
    assert covered == wide.program.coverage
    assert torch.equal(program(x), wide(x.float()).bfloat16())


def test_models_that_narrow_by_themselves_run_module_by_module():
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(x.to(torch.bfloat16))

    model, x = Narrow().bfloat16().eval(), torch.randn(4, 8)
    with pytest.warns(UserWarning, match="module by module"):
        quantized = zp.quantize(model, dynamic=True, example=x)
    assert quantized(x).dtype == torch.bfloat16


def test_compiling_keeps_the_bits_and_so_the_dtypes():
    with pytest.raises(zp.graph.CaptureError, match=r"float32 models"):
        zp.compile(Net().bfloat16(), torch.randn(4, 32).bfloat16())
