"""What models compute beside their layers, positions, masks and sizes, runs in the engine and goes to files."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zeropoint as zp
from zeropoint.analysis import sqnr


class Model(nn.Module):
    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def positions(x, words, places, head):
    return head(words(x) + places(torch.arange(x.shape[1])))


def positions_of_what_is_no_padding(x, words, places, head):
    mask = x.ne(1).int()
    return head(words(x) + places((torch.cumsum(mask, 1) * mask).long() + 1))


def waves(x, words, head):
    at = torch.arange(x.shape[1], dtype=torch.float32)
    return head(words(x) + torch.sin(at[:, None] * 0.3))


def distances(x, head, bias):
    y, at = head(x), torch.arange(x.shape[1])
    return (y @ y.transpose(1, 2) + bias((at[:, None] - at[None, :]).clamp(-3, 3) + 3).squeeze(-1)).softmax(-1) @ y


def mean_of_words(x, words, head):
    mask = (x != 0).unsqueeze(-1)
    return F.normalize((head(words(x)) * mask).sum(1) / mask.sum(1).clamp(min=1), dim=-1)


def lower_bits(x, words, head):
    return head(words(x & 7) + words(x % 5))


def nearest(factor):
    return lambda x, a, b: b(F.interpolate(a(x), scale_factor=factor))


def smooth(mode):
    return lambda x, a: F.interpolate(F.softmax(a(x), 1), scale_factor=2, mode=mode)


def words():
    return nn.Embedding(20, 8)


MODELS = {
    "positions": lambda: (Model(positions, words(), nn.Embedding(64, 8), nn.Linear(8, 4)), "ids"),
    "padding": lambda: (Model(positions_of_what_is_no_padding, words(), words(), nn.Linear(8, 4)), "ids"),
    "waves": lambda: (Model(waves, words(), nn.Linear(8, 4)), "ids"),
    "distances": lambda: (Model(distances, nn.Linear(8, 8), nn.Embedding(7, 1)), "rows"),
    "mean": lambda: (Model(mean_of_words, words(), nn.Linear(8, 4)), "ids"),
    "bits": lambda: (Model(lower_bits, words(), nn.Linear(8, 4)), "ids"),
    "nearest 2": lambda: (Model(nearest(2), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)), "images"),
    "nearest 1.5": lambda: (Model(nearest(1.5), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)), "images"),
    "bilinear": lambda: (Model(smooth("bilinear"), nn.Conv2d(3, 8, 3)), "images"),
    "bicubic": lambda: (Model(smooth("bicubic"), nn.Conv2d(3, 8, 3)), "images"),
}


def inputs(kind, batch, size):
    if kind == "ids":
        return torch.randint(0, 20, (batch, size))
    return torch.randn(batch, size, 8) if kind == "rows" else torch.randn(batch, 3, size, size + 2)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_runs_in_the_engine_for_all_sizes(name, dynamic, tmp_path):
    torch.manual_seed(0)
    model, kind = MODELS[name]()
    first, other = inputs(kind, 3, 9), inputs(kind, 2, 12)
    model.eval()
    program = zp.quantize(model, dynamic=True, example=first) if dynamic else zp.quantize(model, [first, other])
    assert program.engine == "native"
    program.save(tmp_path / "program.zp")
    again = zp.load(tmp_path / "program.zp")
    for x in (first, other):
        result = program(x)
        assert result.shape == model(x).shape
        assert sqnr(model(x), result) > 20
        assert torch.equal(again(x), result)
        assert torch.equal(program.program.interpret([x])[0], result)


def test_factors_without_a_short_fraction_run_without_the_engine():
    model, x = Model(nearest(1.3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)).eval(), torch.randn(2, 3, 9, 11)
    program = zp.quantize(model, dynamic=True, example=x)
    assert "upsample_nearest2d" in program.engine
    assert program(x).shape == model(x).shape
