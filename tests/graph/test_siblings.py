"""Linear layers of the same input, joined to one call."""

import pytest
import torch
from torch import nn

import zeropoint as zp


class Siblings(nn.Module):
    def __init__(self, *outputs, bias=True, inputs=96):
        super().__init__()
        biases = bias if isinstance(bias, tuple) else (bias,) * len(outputs)
        self.layers = nn.ModuleList(nn.Linear(inputs, n, bias=b) for n, b in zip(outputs, biases, strict=True))

    def forward(self, x):
        return [layer(x) for layer in self.layers]


def quantized(model, x, **options):
    program = zp.quantize(model.eval(), example=x, **(options or {"dynamic": True}))
    assert program.engine == "native"
    return program


def joined(program):
    """The numbers of outputs of each joined call."""
    return [i.arguments[-1] for i in program.program.body if i.operator == "zeropoint::linear_grouped_split"]


def alone(program):
    return [i for i in program.program.body if i.operator == "zeropoint::linear_grouped"]


@pytest.mark.parametrize("options", [{"dynamic": True}, {"weight_bits": 4, "group_size": 32}, {"weight_bits": 8}])
@pytest.mark.parametrize("bias", [True, False])
def test_results_are_those_of_the_layers_alone(options, bias):
    model, x = Siblings(64, 128, 64, bias=bias), torch.randn(5, 3, 96)
    program = quantized(model, x, **options)
    assert joined(program) == [[64, 128, 64]]
    assert not alone(program)
    for layer, result in zip(model.layers, program(x), strict=True):
        assert torch.equal(result, quantized(layer, x, **options)(x))
        assert result.is_contiguous()


def test_one_layer_may_end_within_a_panel_and_comes_last():
    model, x = Siblings(40, 64, 30, 128), torch.randn(7, 96)
    program = quantized(model, x)
    assert joined(program) == [[64, 128, 40]]
    assert len(alone(program)) == 1
    for layer, result in zip(model.layers, program(x), strict=True):
        assert torch.equal(result, quantized(layer, x)(x))


def test_layers_with_and_without_bias_stay_apart():
    program = quantized(Siblings(64, 64, 64, bias=(True, False, True)), torch.randn(2, 96))
    assert joined(program) == [[64, 64]]
    assert len(alone(program)) == 1


def test_a_shared_weight_is_not_copied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(96, 96), nn.Linear(96, 64)

        def forward(self, x):
            return self.a(x), self.b(x), self.a(x + 1)

    program = quantized(Tied(), torch.randn(2, 96))
    assert not joined(program)


def test_file_profile_and_export(tmp_path):
    model, x = Siblings(64, 128), torch.randn(2, 96)
    program = quantized(model, x, weight_bits=4)
    zp.save(program, tmp_path / "m.zp")
    expected = program(x)
    compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
    for other in (zp.load(tmp_path / "m.zp"), torch.export.export(program, (x,)).module(), compiled):
        assert all(torch.equal(a, b) for a, b in zip(other(x), expected, strict=True))
    (row,) = [r for r in program.profile(x) if r["operator"] == "zeropoint::linear_grouped_split"]
    assert row["layer"] == "layers.0, layers.1"
    assert [row[0] for row in program.layer_coverage()] == ["layers.0", "layers.1"]
