"""Networks for timing: random weights of a fixed seed, statistics of batch norm taken from data.

The CNNs are torchvision's (install it to run them); transformers, recurrent layers and the decoder are written here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Network:
    """A model in eval mode, its kind, and inputs by batch size and seed."""

    name: str
    kind: str  # cnn, transformer, rnn or decoder
    model: nn.Module
    inputs: Callable[[int, int], tuple[torch.Tensor, ...]]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int, seed: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 3, 224, 224, generator=_generator(seed)),)


def tokens(batch: int, seed: int) -> tuple[torch.Tensor, ...]:
    return (torch.randint(0, 30522, (batch, 128), generator=_generator(seed)),)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.q, self.k = heads, nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer block with its norms before (ViT) or after (BERT) what it adds."""

    def __init__(self, width: int, heads: int, hidden: int, before: bool) -> None:
        super().__init__()
        self.before, self.attention = before, Attention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        feed = lambda y: self.down(F.gelu(self.up(y)))
        if self.before:
            x = x + self.attention(self.norm1(x))
            return x + feed(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + feed(x))


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 384, heads: int = 6, layers: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, 4 * width, True) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Encoder(nn.Module):
    """BERT without a padding mask, with its pooler."""

    def __init__(self, width: int, heads: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.words, self.positions, self.norm = (
            nn.Embedding(30522, width),
            nn.Embedding(512, width),
            nn.LayerNorm(width),
        )
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, False) for _ in range(layers)))
        self.pool = nn.Linear(width, width)
        self.register_buffer("order", torch.arange(128), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(ids) + self.positions(self.order))
        return torch.tanh(self.pool(self.blocks(x)[:, 0]))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1024, 1024, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


class UNet(nn.Module):
    """Segmentation with four levels and transposed convolutions (Ronneberger et al., 2015), 32 channels at the top."""

    def __init__(self, width: int = 32, levels: int = 4) -> None:
        super().__init__()
        block = lambda i, o: nn.Sequential(
            nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
            nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
        )  # fmt: skip
        widths = [width << level for level in range(levels + 1)]
        self.down = nn.ModuleList(block(i, o) for i, o in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.join = nn.ModuleList(block(2 * w, w) for w in reversed(widths[:-1]))
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.out(x)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class DecoderBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, past: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, RMSNorm(width), RMSNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        angles = past / 10000 ** (torch.arange(0, width // heads, 2).float() / (width // heads))
        self.register_buffer("cos", torch.cat([angles, angles]).cos())
        self.register_buffer("sin", torch.cat([angles, angles]).sin())

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        keys, values = torch.cat([keys, self.rotate(k)], 2), torch.cat([values, v], 2)
        y = F.scaled_dot_product_attention(self.rotate(q), keys, values)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """One step of a Llama-style model with 128 cached tokens."""

    def __init__(
        self, width: int = 768, heads: int = 12, layers: int = 12, hidden: int = 2048, past: int = 128
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(32000, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, hidden, past) for _ in range(layers))
        self.norm, self.head = RMSNorm(width), nn.Linear(width, 32000, bias=False)

    def forward(self, ids: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        for block, cache in zip(self.blocks, past.unbind(0), strict=True):
            x = block(x, cache[0], cache[1])
        return self.head(self.norm(x))


# Kept alive: a library's definitions go with it.
_STUBS = torch.library.Library("torchvision", "FRAGMENT")
_WITH_BACKWARD = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")


def _torchvision(name: str) -> nn.Module:
    # torchvision's compiled operators may not fit this torch. Its models call none of them, but its import asks for them.
    for operator in ("nms", "qnms", "qroi_align", *_WITH_BACKWARD, *(f"_{n}_backward" for n in _WITH_BACKWARD)):
        if not hasattr(torch.ops.torchvision, operator):
            _STUBS.define(f"{operator}() -> ()")
    import torchvision.models

    return _with_statistics(getattr(torchvision.models, name)(weights=None), images)


def _with_statistics(model: nn.Module, inputs: Callable[[int, int], tuple[torch.Tensor, ...]]) -> nn.Module:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain averages
    model.train()
    with torch.no_grad():
        for seed in (100, 101):
            model(*inputs(8, seed))
    return model


CNNS = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")
NAMES = (*CNNS, "unet", "vit_s16", "bert_base", "minilm_l6", "lstm2x1024", "decoder110m")


def make(name: str) -> Network:
    """The network of this name.

    Raises:
        ValueError: there is none.
    """
    torch.manual_seed(0)
    if name in CNNS:
        network = Network(name, "cnn", _torchvision(name), images)
    elif name == "unet":
        network = Network(name, "cnn", _with_statistics(UNet(), images), images)
    elif name == "vit_s16":
        network = Network(name, "transformer", VisionTransformer(), images)
    elif name == "bert_base":
        network = Network(name, "transformer", Encoder(768, 12, 12, 3072), tokens)
    elif name == "minilm_l6":
        network = Network(name, "transformer", Encoder(384, 12, 6, 1536), tokens)
    elif name == "lstm2x1024":
        network = Network(
            name, "rnn", Recurrent(), lambda batch, seed: (torch.randn(batch, 50, 1024, generator=_generator(seed)),)
        )
    elif name == "decoder110m":
        network = Network(
            name, "decoder", Decoder(),
            lambda batch, seed: (
                torch.randint(0, 32000, (batch, 1), generator=_generator(seed)),
                torch.randn(12, 2, batch, 12, 128, 64, generator=_generator(seed)),
            ),
        )  # fmt: skip
    else:
        raise ValueError(f"no such network: {name}; there are {', '.join(NAMES)}")
    network.model.eval().requires_grad_(False)
    return network
