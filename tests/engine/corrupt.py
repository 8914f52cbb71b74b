"""Corrupted ``.zp`` files: every one must be an error or a valid run, without a crash, a hang or a memory blow-up.

    python tests/engine/corrupt.py --files 10000

Bytes are flipped, cut and repeated; numbers, shapes and operators of the program are swapped and made huge. Memory of the
process is bounded. Each file is loaded and, if that works, run.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import zeropoint as zp
from zeropoint.errors import QuantizationError
from zeropoint.quantization import QuantWrapper, convert, get_default_qconfig, prepare

HUGE = [-1, 0, 1, 2, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63), 2**64, 1e308, -0.0]


class Network(nn.Module):
    """Every kind of instruction: convolutions, depthwise, sums, pools, tables, Linear, ATen's operators, sizes, LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 8, 1),
        )
        self.head, self.norm = nn.Linear(8, 6), nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.max_pool2d(torch.relu(self.a(x)), 2)
        y = torch.cat([self.c(torch.sigmoid(self.b(y)) + y), y], 1)[:, ::2]
        y = self.head(y.flatten(2).transpose(1, 2).reshape(y.shape[0], -1, 8))
        return self.norm(y).softmax(-1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 5), nn.Linear(5, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


class Others(nn.Module):
    """Embedding, attention with a mask, interpolation, a convolution of volumes and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.q, self.o = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.image, self.up, self.volume = (
            nn.Conv2d(1, 4, 3),
            nn.ConvTranspose2d(4, 4, 2, 2),
            nn.Conv3d(1, 3, 3, padding=1),
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        q = self.q(self.words(ids)).unflatten(2, (2, 8)).transpose(1, 2)
        mask = torch.where(ids > 3, 0.0, -1e4)[:, None, None]
        y = self.o(nn.functional.scaled_dot_product_attention(q, q, q, mask).transpose(1, 2).flatten(2))
        y = self.up(torch.relu(self.image(y.unsqueeze(1))))
        y = nn.functional.interpolate(torch.relu(y), scale_factor=1.5, mode="bilinear")
        return self.volume(y.unsqueeze(1))


class Step(nn.Module):
    """A decoder's: rotary embedding, attention over a cache, gated units from one call, weights of 4 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.gate, self.up, self.down = (
            nn.Linear(*s, bias=False) for s in ((8, 24), (8, 64), (8, 64), (64, 8))
        )

    def forward(self, x: torch.Tensor, keys: torch.Tensor, angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        low, high = q.chunk(2, -1)
        q = q * angles.cos() + torch.cat([-high, low], -1) * angles.sin()
        joined = torch.cat([keys, k], 2)
        y = nn.functional.scaled_dot_product_attention(q, joined, torch.cat([keys, v], 2)).transpose(1, 2).flatten(2)
        return self.down(nn.functional.silu(self.gate(y)) * self.up(y)), joined


class Words(nn.Module):
    """Bags of embeddings, and words with positions that the graph computes."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.words, self.places = (
            nn.EmbeddingBag(20, 12, padding_idx=3),
            nn.Embedding(20, 12),
            nn.Embedding(9, 12),
        )
        self.head = nn.Linear(12, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y = self.words(ids) + self.places(torch.arange(ids.shape[1]) + 1)
        y = self.head(y + self.bag(ids).unsqueeze(1))
        return y[:, :, None].expand(-1, -1, 4, -1)[:, torch.arange(3), torch.tensor([0, 2, 1])]


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


def static_recurrent(x: torch.Tensor) -> nn.Module:
    """The program of a statically quantized recurrent layer, which comes from the eager workflow."""
    model = QuantWrapper(Outputs()).eval()
    model.qconfig = get_default_qconfig()
    prepared = prepare(model)
    prepared(x)
    return zp.compile(convert(prepared), x)


def numbers_in(tree: object, path: tuple = ()) -> list[tuple]:
    """Paths to the numbers of a JSON tree."""
    if isinstance(tree, dict):
        return [p for k, v in tree.items() for p in numbers_in(v, (*path, k))]
    if isinstance(tree, list):
        return [p for i, v in enumerate(tree) for p in numbers_in(v, (*path, i))]
    return [path] if isinstance(tree, (int, float)) else []


def place(tree: object, path: tuple) -> tuple:
    for key in path[:-1]:
        tree = tree[key]  # type: ignore[index]
    return tree, path[-1]


def corrupt_bytes(data: bytes, choose: random.Random) -> bytes:
    out = bytearray(data)
    kind = choose.randrange(4)
    if kind == 0:
        for _ in range(choose.choice((1, 1, 3, 30))):
            out[choose.randrange(len(out))] ^= 1 << choose.randrange(8)
    elif kind == 1:
        del out[choose.randrange(len(out)) :]
    elif kind == 2:
        at, length = choose.randrange(len(out)), choose.randrange(1, 200)
        out[at : at + length] = choose.randbytes(choose.randrange(200))
    else:
        out[choose.randrange(8)] = choose.randrange(256)
    return bytes(out)


def corrupt_program(data: bytes, choose: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    program = json.loads(header["__metadata__"]["zeropoint.program"])
    for _ in range(choose.choice((1, 1, 2, 5))):
        kind = choose.randrange(6)
        if kind == 0:  # a number of the program
            tree, key = place(program, choose.choice(numbers_in(program)))
            tree[key] = choose.choice(HUGE) if choose.random() < 0.6 else tree[key] + choose.choice((-1, 1))
        elif kind == 1:  # a shape or an offset of a tensor
            tensors = {k: v for k, v in header.items() if k != "__metadata__"}
            entry = tensors[choose.choice(list(tensors))]
            numbers = choose.choice((entry["shape"], entry["data_offsets"]))
            if numbers:
                numbers[choose.randrange(len(numbers))] = choose.choice((*HUGE[:14], 3, 8))
        elif kind == 2:  # two tensors' places or dtypes
            names = [k for k in header if k != "__metadata__"]
            a, b, field = choose.choice(names), choose.choice(names), choose.choice(("shape", "data_offsets", "dtype"))
            header[a][field], header[b][field] = header[b][field], header[a][field]
        elif kind == 3:  # two instructions, their operators or arguments
            part = program[choose.choice(("body", "body", "prologue"))]
            if part:
                a, b, field = choose.choice(part), choose.choice(part), choose.randrange(3)
                a[field], b[field] = b[field], a[field]
        elif kind == 4:  # two arguments of an instruction
            arguments = choose.choice(program["body"])[1]
            if arguments:
                i, j = choose.randrange(len(arguments)), choose.randrange(len(arguments))
                arguments[i], arguments[j] = arguments[j], arguments[i]
        else:
            part = program[choose.choice(("body", "prologue", "inputs", "outputs"))]
            if part:
                part.insert(choose.randrange(len(part)), part.pop(choose.randrange(len(part))))
    header["__metadata__"]["zeropoint.program"] = json.dumps(program)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=3.0, help="GiB that the process may add to what it has")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(2)
    images = torch.randn(2, 3, 8, 8)
    step = (torch.randn(2, 1, 8), torch.randn(2, 2, 5, 4), torch.randn(4))
    inputs = [(images,), (images,), (torch.randn(4, 2, 6),), (torch.randint(0, 20, (2, 6)),), step]
    inputs += [(torch.randint(0, 20, (2, 6)),), (torch.randn(4, 2, 6),)]
    programs = [
        zp.quantize(Network().eval(), [images]),
        zp.quantize(Network().eval(), dynamic=True, example=images),
        zp.quantize(Recurrent().eval(), dynamic=True, example=inputs[2][0]),
        zp.quantize(Others().eval(), [inputs[3][0]]),
        zp.quantize(Step().eval(), weight_bits=4, example=step),
        zp.quantize(Words().eval(), dynamic=True, example=inputs[5][0]),
        static_recurrent(inputs[6][0]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.zp")
        originals = []
        for program in programs:
            program.save(path)
            originals.append(path.read_bytes())
        if arguments.memory:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            limit = used + int(arguments.memory * 2**30)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        choose = random.Random(arguments.seed)
        counts = {"load": 0, "run": 0, "ran": 0}
        slowest = 0.0
        for _ in range(arguments.files):
            which = choose.randrange(len(originals))
            change = corrupt_bytes if choose.random() < 0.3 else corrupt_program
            path.write_bytes(change(originals[which], choose))
            start = time.perf_counter()
            try:
                loaded = zp.load(path)
            except QuantizationError:
                counts["load"] += 1
            else:
                try:
                    loaded(*inputs[which])
                    loaded(*inputs[which])
                    counts["ran"] += 1
                except (
                    QuantizationError,
                    RuntimeError,
                    ValueError,
                    IndexError,
                    MemoryError,
                    TypeError,
                    NotImplementedError,
                ):
                    counts["run"] += 1
            slowest = max(slowest, time.perf_counter() - start)
    print(
        f"{arguments.files} files: {counts['load']} refused on loading, {counts['run']} on running, {counts['ran']} ran; "
        f"slowest {slowest:.2f} s"
    )
    return int(slowest > 30)


if __name__ == "__main__":
    sys.exit(main())
