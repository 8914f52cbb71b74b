"""The 123 constructs through which eager quantization is judged: modules and functions between two stubs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

IMAGE, SEQUENCE, VIDEO, ROWS = (4, 8, 12, 12), (4, 8, 16), (2, 8, 4, 6, 6), (8, 16)


class Net(nn.Module):
    """Stub, a first layer that makes a quantized tensor, the construct, stub."""

    def __init__(self, stubs, construct, first=None):
        super().__init__()
        self.quant, self.dequant = stubs()
        self.first = first or nn.Identity()
        self.construct = construct

    def forward(self, x):
        result = self.construct(self.first(self.quant(x)))
        if isinstance(result, tuple):
            result = result[0]
        return self.dequant(result)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(16, 12)

    def forward(self, x):
        return self.cell(x)[0]


def _in_place(x):
    y = x.clone()
    y += x
    return y


MODULES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "Linear": (ROWS, lambda: nn.Linear(16, 12)),
    "Conv1d": (SEQUENCE, lambda: nn.Conv1d(8, 12, 3)),
    "Conv2d": (IMAGE, lambda: nn.Conv2d(8, 12, 3)),
    "Conv3d": (VIDEO, lambda: nn.Conv3d(8, 12, 3)),
    "Conv2d(groups=8)": (IMAGE, lambda: nn.Conv2d(8, 8, 3, groups=8)),
    "Conv2d(pad=reflect)": (IMAGE, lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect")),
    "Conv2d(pad=circular)": (IMAGE, lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular")),
    "Conv2d(pad='same')": (IMAGE, lambda: nn.Conv2d(8, 12, 3, padding="same")),
    "ConvTranspose1d": (SEQUENCE, lambda: nn.ConvTranspose1d(8, 12, 3, 2)),
    "ConvTranspose2d": (IMAGE, lambda: nn.ConvTranspose2d(8, 12, 3, 2, 1, 1)),
    "ConvTranspose2d(groups=2)": (IMAGE, lambda: nn.ConvTranspose2d(8, 12, 3, 2, groups=2)),
    "ConvTranspose3d": (VIDEO, lambda: nn.ConvTranspose3d(8, 12, 3, 2)),
    "BatchNorm1d": (SEQUENCE, lambda: nn.BatchNorm1d(8)),
    "BatchNorm2d": (IMAGE, lambda: nn.BatchNorm2d(8)),
    "BatchNorm3d": (VIDEO, lambda: nn.BatchNorm3d(8)),
    "LayerNorm": (ROWS, lambda: nn.LayerNorm(16)),
    "GroupNorm": (IMAGE, lambda: nn.GroupNorm(2, 8)),
    "InstanceNorm2d": (IMAGE, lambda: nn.InstanceNorm2d(8)),
    "RMSNorm": (ROWS, lambda: nn.RMSNorm(16)),
    "LocalResponseNorm": (IMAGE, lambda: nn.LocalResponseNorm(2)),
    "ReLU": (IMAGE, nn.ReLU),
    "ReLU6": (IMAGE, nn.ReLU6),
    "LeakyReLU": (IMAGE, nn.LeakyReLU),
    "PReLU": (IMAGE, lambda: nn.PReLU(8)),
    "ELU": (IMAGE, nn.ELU),
    "CELU": (IMAGE, nn.CELU),
    "SELU": (IMAGE, nn.SELU),
    "GELU": (IMAGE, nn.GELU),
    "SiLU": (IMAGE, nn.SiLU),
    "Mish": (IMAGE, nn.Mish),
    "Hardswish": (IMAGE, nn.Hardswish),
    "Hardsigmoid": (IMAGE, nn.Hardsigmoid),
    "Hardtanh": (IMAGE, nn.Hardtanh),
    "Sigmoid": (IMAGE, nn.Sigmoid),
    "Tanh": (IMAGE, nn.Tanh),
    "Softmax": (ROWS, lambda: nn.Softmax(-1)),
    "LogSoftmax": (ROWS, lambda: nn.LogSoftmax(-1)),
    "Softplus": (IMAGE, nn.Softplus),
    "GLU": (IMAGE, lambda: nn.GLU(1)),
    "Threshold": (IMAGE, lambda: nn.Threshold(0.1, 0.0)),
    "MaxPool1d": (SEQUENCE, lambda: nn.MaxPool1d(2)),
    "MaxPool2d": (IMAGE, lambda: nn.MaxPool2d(2)),
    "MaxPool3d": (VIDEO, lambda: nn.MaxPool3d(2)),
    "AvgPool1d": (SEQUENCE, lambda: nn.AvgPool1d(2)),
    "AvgPool2d": (IMAGE, lambda: nn.AvgPool2d(2)),
    "AvgPool3d": (VIDEO, lambda: nn.AvgPool3d(2)),
    "AdaptiveAvgPool2d": (IMAGE, lambda: nn.AdaptiveAvgPool2d(1)),
    "AdaptiveMaxPool2d": (IMAGE, lambda: nn.AdaptiveMaxPool2d(3)),
    "AdaptiveAvgPool3d": (VIDEO, lambda: nn.AdaptiveAvgPool3d(2)),
    "LPPool2d": (IMAGE, lambda: nn.LPPool2d(2, 2)),
    "Upsample(nearest)": (IMAGE, lambda: nn.Upsample(scale_factor=2)),
    "Upsample(bilinear)": (IMAGE, lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "Upsample(bicubic)": (IMAGE, lambda: nn.Upsample(scale_factor=2, mode="bicubic")),
    "Upsample(trilinear)": (VIDEO, lambda: nn.Upsample(scale_factor=2, mode="trilinear")),
    "PixelShuffle": (IMAGE, lambda: nn.PixelShuffle(2)),
    "PixelUnshuffle": (IMAGE, lambda: nn.PixelUnshuffle(2)),
    "ChannelShuffle": (IMAGE, lambda: nn.ChannelShuffle(2)),
    "ZeroPad2d": (IMAGE, lambda: nn.ZeroPad2d(1)),
    "ReflectionPad2d": (IMAGE, lambda: nn.ReflectionPad2d(1)),
    "ReplicationPad2d": (IMAGE, lambda: nn.ReplicationPad2d(1)),
    "ConstantPad2d": (IMAGE, lambda: nn.ConstantPad2d(1, 0.5)),
    "Flatten": (IMAGE, nn.Flatten),
    "Dropout": (IMAGE, nn.Dropout),
    "Dropout2d": (IMAGE, nn.Dropout2d),
    "Identity": (IMAGE, nn.Identity),
    "Fold/Unfold": (IMAGE, lambda: nn.Unfold(3)),
    "LSTM": ((6, 3, 16), lambda: nn.LSTM(16, 12)),
    "GRU": ((6, 3, 16), lambda: nn.GRU(16, 12)),
    "RNN": ((6, 3, 16), lambda: nn.RNN(16, 12)),
    "LSTMCell": (ROWS, Cell),
    "TransformerEncoderLayer": ((2, 5, 16), lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)),
    "MultiheadAttention": ((2, 5, 16), Attention),
}

FUNCTIONS: dict[str, tuple[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]] = {
    "x+x": (IMAGE, lambda x: x + x),
    "x*x": (IMAGE, lambda x: x * x),
    "x+1.0": (IMAGE, lambda x: x + 1.0),
    "x*2.0": (IMAGE, lambda x: x * 2.0),
    "x-x": (IMAGE, lambda x: x - x.flip(0)),
    "x/2": (IMAGE, lambda x: x / 2),
    "cat": (IMAGE, lambda x: torch.cat([x, x], 1)),
    "stack": (IMAGE, lambda x: torch.stack([x, x])),
    "matmul": (IMAGE, lambda x: x @ x),
    "bmm": (SEQUENCE, lambda x: torch.bmm(x, x.transpose(1, 2))),
    "mean(dim)": (IMAGE, lambda x: x.mean([2, 3])),
    "sum": (IMAGE, lambda x: x.sum([2, 3])),
    "max(dim)": (IMAGE, lambda x: x.max(1)[0]),
    "topk": (ROWS, lambda x: torch.topk(x, 3)[0]),
    "sort": (ROWS, lambda x: torch.sort(x)[0]),
    "clamp": (IMAGE, lambda x: x.clamp(-0.5, 0.5)),
    "F.relu": (IMAGE, F.relu),
    "F.silu": (IMAGE, F.silu),
    "F.gelu": (IMAGE, F.gelu),
    "F.softmax": (ROWS, lambda x: F.softmax(x, -1)),
    "torch.sigmoid": (IMAGE, torch.sigmoid),
    "F.interpolate(bilinear)": (IMAGE, lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")),
    "F.pad": (IMAGE, lambda x: F.pad(x, (1, 1))),
    "chunk/split": (IMAGE, lambda x: x.chunk(2, 1)[0]),
    "permute/view": (IMAGE, lambda x: x.permute(0, 2, 3, 1).reshape(4, -1)),
    "index_select": (IMAGE, lambda x: x.index_select(1, torch.tensor([0, 2]))),
    "x[:,mask]": (IMAGE, lambda x: x[:, torch.tensor([True, False] * 4)]),
    "masked_fill": (IMAGE, lambda x: x.masked_fill(torch.arange(12) > 9, 0.25)),
    "where": (IMAGE, lambda x: torch.where(torch.arange(12) > 5, x, x.flip(0))),
    "roll": (IMAGE, lambda x: x.roll(1, 2)),
    "flip": (IMAGE, lambda x: x.flip(2)),
    "expand": (IMAGE, lambda x: x[:, :1].expand(4, 3, 12, 12)),
    "repeat": (IMAGE, lambda x: x.repeat(1, 2, 1, 1)),
    "abs": (IMAGE, torch.abs),
    "neg": (IMAGE, lambda x: -x),
    "exp": (IMAGE, torch.exp),
    "sqrt": (IMAGE, lambda x: x.abs().sqrt()),
    "pow": (IMAGE, lambda x: x**2),
    "einsum": (SEQUENCE, lambda x: torch.einsum("bcl,bdl->bcd", x, x)),
    "F.scaled_dot_product_attention": ((2, 4, 5, 8), lambda x: F.scaled_dot_product_attention(x, x, x)),
    "x+=x": (IMAGE, _in_place),
    "x>0": (IMAGE, lambda x: (x > 0).float()),
    "layer_norm": (ROWS, lambda x: F.layer_norm(x, (16,))),
    "F.normalize": (ROWS, lambda x: F.normalize(x, dim=-1)),
    "unsqueeze/squeeze": (IMAGE, lambda x: x.unsqueeze(1).squeeze(1)),
    "tanh": (IMAGE, torch.tanh),
    "argmax": (ROWS, lambda x: x.argmax(-1).float()),
    "cumsum": (ROWS, lambda x: x.cumsum(-1)),
    "deepcopy": (IMAGE, lambda x: __import__("copy").deepcopy(x) if not x.requires_grad else x),
    ".to(float16)": (IMAGE, lambda x: x.to(torch.float16).float()),
    ".to(meta)": (IMAGE, lambda x: torch.zeros(x.to("meta").shape)),
}


def construct(name: str) -> tuple[tuple[int, ...], nn.Module]:
    if name in MODULES:
        shape, make = MODULES[name]
        return shape, make()
    shape, function = FUNCTIONS[name]
    return shape, Function(function)
