"""Small networks of the kinds that users bring, unmodified: functions, in-place operators, several inputs and outputs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Batch norm, a skip, squeeze-and-excite, in-place activations, a dict as result."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(16)
        self.squeeze, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 10)
        self.dropout = nn.Dropout(inplace=True)

    def forward(self, x):
        x = F.max_pool2d(F.relu_(self.bn(self.stem(x))), 3, 2, 1)
        y = self.norm(self.b(F.silu(self.a(x))))
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        y += x
        return {"logits": self.head(self.dropout(F.adaptive_avg_pool2d(F.relu6(y), 1).flatten(1))), "features": y}

    @staticmethod
    def batch(n=4):
        return torch.randn(n, 3, 24, 24)


class Dense(nn.Module):
    """Concatenation, channel shuffle, 1-d convolution, averages, a batch norm of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.norm, self.shuffle = nn.BatchNorm2d(12), nn.ChannelShuffle(2)
        self.line, self.head = nn.Conv1d(8, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x):
        y = torch.cat([x, F.hardswish(self.a(x))], 1)
        y = self.shuffle(F.relu(self.b(F.relu(self.norm(y)))))
        y = F.avg_pool2d(y, 2).flatten(2)
        return self.head(F.leaky_relu(self.line(y), 0.1).transpose(1, 2))

    @staticmethod
    def batch(n=4):
        return torch.randn(n, 4, 8, 8)


class Encoder(nn.Module):
    """A transformer layer with a mask and a factor, given by name."""

    def __init__(self):
        super().__init__()
        self.words, self.norm, self.last = nn.Embedding(50, 32), nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out, self.up, self.down = (
            nn.Linear(32, 96),
            nn.Linear(32, 32),
            nn.Linear(32, 64),
            nn.Linear(64, 32),
        )

    def forward(self, ids, gain):
        x = self.words(ids) * gain + self.words.weight[0]
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        mask = (ids == 0)[:, None, :]
        scores = (q @ k.transpose(-1, -2) / 32**0.5).masked_fill(mask, -1e4).softmax(-1)
        x = x + self.out(scores @ v)
        return x - 0.5 * self.down(F.gelu(self.up(self.last(x)))) ** 2

    @staticmethod
    def batch(n=2):
        return {"ids": torch.randint(0, 50, (n, 7)), "gain": torch.rand(()) + 0.5}


class Recurrent(nn.Module):
    """Convolution before two recurrent layers, one of them bidirectional."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(5, 12, 3, padding=1)
        self.lstm, self.gru = nn.LSTM(12, 9, 2, batch_first=True, bidirectional=True), nn.GRU(18, 8, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        y, (h, _) = self.lstm(torch.relu(self.conv(x)).transpose(1, 2))
        z, last = self.gru(y.transpose(0, 1))
        both = torch.cat([y.transpose(0, 1), z], -1)  # a view of a recurrent layer's result is used later again
        return self.head(z), h, last, both * both.softmax(0)

    @staticmethod
    def batch(n=3):
        return torch.randn(n, 5, 11)


def build(network, seed=0):
    """The network with settled batch-norm statistics."""
    torch.manual_seed(seed)
    model = network()
    if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        for _ in range(3):
            model(network.batch(32))
    return model.eval()


def call(model, batch):
    return model(**batch) if isinstance(batch, dict) else model(batch)
