"""What models are made of, kind by kind: each becomes int8 whole, and the engine gives the bits of its operators."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import zeropoint as zp
from zeropoint.analysis import sqnr
from zeropoint.graph import prepare_program
from zeropoint.quantization import QConfigMapping, get_default_qconfig

TRANSPOSED = [
    ((8, 6, 2, 2), {}), ((8, 6, 4, 2, 1), {}), ((8, 6, 3, 2, 1, 1), {}), ((8, 6, 3, 1, 1), {}), ((8, 6, 2, 3), {}),
    ((8, 6, 3, (2, 1), 1, (1, 0)), {}), ((8, 8, 4, 2, 1), {"groups": 4}), ((8, 6, 3, 1, 2), {"dilation": 2}),
    ((8, 6, 2, 2, 0, 1), {}), ((8, 6, 3, 1, 0, 1), {"dilation": 2}), ((8, 6, 1, 2), {"output_padding": 1}), ((8, 6, 5, 1, 4), {}),
]  # fmt: skip


class Pads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.b(F.pad(F.relu(self.a(F.pad(x, (1, 1, 1, 1)))), (0, 1, 0, 1)))


class Shuffles(nn.Module):
    """A view that only a copy made possible."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = F.relu(self.a(x))
        n, c, h, w = y.shape
        return self.b(y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w))


class Bilinear(nn.Module):
    """Up by a factor, and to the size of another value."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = F.relu(self.a(x))
        z = F.relu(self.b(F.interpolate(y, scale_factor=2.0, mode="bilinear")))
        return self.c(F.interpolate(z, size=y.shape[-2:], mode="bilinear", align_corners=True) + y)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.layer = kind(12, 16, 2, batch_first=True, **options)
        self.head = nn.Linear(32 if options.get("bidirectional") else 16, 5)

    def forward(self, x):
        return self.head(self.layer(x)[0])


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        block = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())
        self.down, self.inner = block(3, 16), block(16, 32)
        self.up, self.out = nn.ConvTranspose2d(32, 16, 2, 2), nn.Sequential(block(32, 16), nn.Conv2d(16, 2, 1))

    def forward(self, x):
        skip = self.down(x)
        return self.out(torch.cat([skip, self.up(self.inner(F.max_pool2d(skip, 2)))], 1))


def seed_batch_norms(model):
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm3d)):
            norm.running_var.uniform_(0.5, 2)
            norm.running_mean.normal_()
    return model.eval()


def transposed(arguments, options):
    return nn.Sequential(
        nn.ConvTranspose2d(*arguments, **options),
        nn.BatchNorm2d(arguments[1]),
        nn.ReLU(),
        nn.Conv2d(arguments[1], 4, 1),
    )


KINDS = {
    **{f"transposed {a} {o}": (lambda a=a, o=o: transposed(a, o), (2, 8, 9, 7)) for a, o in TRANSPOSED},
    "transposed 1-d": (lambda: nn.Sequential(nn.ConvTranspose1d(8, 6, 4, 2, 1), nn.ReLU(), nn.Conv1d(6, 4, 3)), (2, 8, 9)),
    "transposed 3-d": (
        lambda: nn.Sequential(nn.ConvTranspose3d(8, 6, (2, 3, 4), (1, 2, 2), 1), nn.ReLU(), nn.Conv3d(6, 4, 3)),
        (2, 8, 5, 6, 7),
    ),
    "padding by name": (
        lambda: nn.Sequential(
            nn.Conv2d(8, 6, (4, 3), padding="same"), nn.ReLU(), nn.Conv2d(6, 4, 2, padding="same"),
            nn.Conv2d(4, 4, 3, padding="valid"),
        ),
        (2, 8, 9, 7),
    ),
    "1-d": (
        lambda: nn.Sequential(
            nn.Conv1d(8, 6, 3, padding="same"), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 4, 3, dilation=2, padding="same"),
            nn.AvgPool1d(2), nn.Conv1d(4, 4, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3),
        ),
        (2, 8, 32),
    ),
    "3-d": (
        lambda: nn.Sequential(
            nn.Conv3d(3, 8, 3, 2, 1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d((2, 3, 3), (1, 2, 2), (1, 1, 1)),
            nn.Conv3d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv3d(8, 6, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
            nn.Linear(6, 3),
        ),
        (2, 3, 8, 16, 16),
    ),
    "adaptive pool": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(48, 3)),
        (2, 3, 16, 16),
    ),
    "pads": (Pads, (2, 3, 16, 16)),
    "shuffles": (Shuffles, (2, 3, 16, 16)),
    "bilinear": (Bilinear, (2, 3, 12, 10)),
    "unet": (UNet, (2, 3, 16, 24)),
    "lstm": (lambda: Recurrent(nn.LSTM), (2, 7, 12)),
    "bidirectional lstm": (lambda: Recurrent(nn.LSTM, bidirectional=True), (2, 7, 12)),
    "gru without biases": (lambda: Recurrent(nn.GRU, bias=False), (2, 7, 12)),
    "rnn": (lambda: Recurrent(nn.RNN), (2, 7, 12)),
    "rnn with relu": (lambda: Recurrent(nn.RNN, nonlinearity="relu"), (2, 7, 12)),
}  # fmt: skip


def check(model, inputs, least=25.0):
    """Quantizes; all of it int8 within ``least`` dB, engine and operators with the same bits, also for another batch."""
    program = zp.quantize(model, [inputs])
    expected, got = model(*inputs), program(*inputs)
    assert got.shape == expected.shape
    assert sqnr(expected, got) > least
    for given in (inputs, tuple(torch.cat([x, x[:1]]) for x in inputs)):
        for _ in range(2):  # the first run of a shape makes its plan, the next one follows it
            assert torch.equal(program(*given), program.program.interpret(tree_leaves(given))[0])
    return [(operator, why) for _, operator, why in program.program.coverage if why != "int8"]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_in_int8(kind):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    with torch.no_grad():
        assert check(seed_batch_norms(make()), (torch.randn(shape),)) == []


@pytest.mark.parametrize(("arguments", "options"), TRANSPOSED)
def test_transposed_is_the_same_convolution(arguments, options):
    """Before anything is rounded to int8."""
    torch.manual_seed(0)
    model, x = seed_batch_norms(transposed(arguments, options)), torch.randn(3, 8, 9, 7)
    graph = prepare_program(model, x).captured.graph_module
    assert not any("aten.conv_transpose" in str(n.target) for n in graph.graph.nodes)
    torch.testing.assert_close(graph(x)[0], model(x), rtol=1e-4, atol=1e-5)


def test_stride_and_dilation_together_stay_float():
    model = nn.Sequential(nn.ConvTranspose2d(8, 6, 3, 2, dilation=2), nn.Conv2d(6, 4, 1)).eval()
    with torch.no_grad():
        assert check(model, (torch.randn(2, 8, 9, 7),)) == [("aten.conv_transpose2d.input", "no int8 form")]


class SpelledOut(nn.Module):
    """Attention as models write it."""

    def __init__(self, kind, width=32, heads=4):
        super().__init__()
        self.kind, self.heads = kind, heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.few_k, self.few_v = nn.Linear(width, width // 2), nn.Linear(width, width // 2)
        for layer in (self.q, self.k):
            layer.weight.data *= 4

    def forward(self, x, keep):
        batch, rows, width = x.shape
        heads = lambda t, n=self.heads: t.view(batch, rows, n, -1).transpose(1, 2)
        q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
        keep = keep[:, None, None]
        added = torch.where(keep, 0.0, -1e4)
        infinity = float("inf")
        if self.kind == "added":
            y = ((q @ k.transpose(-1, -2)) / 8**0.5 + added).softmax(-1) @ v
        elif self.kind == "filled":
            y = F.softmax(torch.matmul(q * 8**-0.5, k.permute(0, 1, 3, 2)).masked_fill(~keep, -1e9), -1) @ v
        elif self.kind == "filled with infinity":
            y = F.softmax((q @ k.mT * 8**-0.5).masked_fill(~keep, -infinity), dim=-1) @ v
        elif self.kind == "where":
            y = F.softmax(torch.where(keep, q @ k.mT * 8**-0.5, torch.finfo(torch.float32).min), dim=-1) @ v
        elif self.kind == "bias and fill":
            y = F.softmax((q @ k.mT + added).masked_fill(~keep, -infinity), dim=-1) @ v
        elif self.kind == "numbers":
            y = F.scaled_dot_product_attention(q, k, v, added)
        elif self.kind == "bools":
            y = F.scaled_dot_product_attention(q, k, v, keep.expand(batch, 1, rows, rows))
        elif self.kind == "causal":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.kind == "shared keys":
            few = heads(self.few_k(x), 2), heads(self.few_v(x), 2)
            y = F.scaled_dot_product_attention(q, *few, keep, enable_gqa=True)
        elif self.kind == "bmm":
            flat = lambda t: t.reshape(batch * self.heads, rows, -1)
            y = (torch.bmm(flat(q), flat(k).transpose(1, 2)) * 8**-0.5).softmax(-1).bmm(flat(v))
            y = y.view(batch, self.heads, rows, -1)
        return self.out(y.transpose(1, 2).reshape(batch, rows, width))


@pytest.mark.parametrize(
    "kind",
    [
        "added", "filled", "filled with infinity", "where", "bias and fill", "numbers", "bools", "causal", "shared keys", "bmm",
    ],
)  # fmt: skip
def test_attention(kind):
    torch.manual_seed(0)
    keep = torch.ones(3, 11, dtype=torch.bool)
    keep[0, 5:], keep[1, 9:] = False, False
    model = SpelledOut(kind).eval()
    with torch.no_grad():
        floats = check(model, (torch.randn(3, 11, 32), keep))
        operators = [i.operator for i in zp.quantize(model, [(torch.randn(3, 11, 32), keep)]).program.body]
    assert "zeropoint::attention" in operators
    assert not any("softmax" in o or "matmul" in o or "bmm" in o for o in operators)
    # Only the mask is made in float.
    assert {o for o, _ in floats} <= {
        "aten.where.Scalar", "aten.slice.Tensor", "aten.unsqueeze.default", "aten.to.dtype", "aten.mul.Tensor", "aten.where.ScalarOther",
    }  # fmt: skip


class Unbound(nn.Module):
    """Queries, keys and values of one layer, taken apart as timm's and Swin's attention do."""

    def __init__(self, apart):
        super().__init__()
        self.qkv, self.out, self.apart = nn.Linear(32, 96), nn.Linear(32, 32), apart

    def forward(self, x):
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, 4, 8)
        if self.apart == "unbind":
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (part.squeeze(2).transpose(1, 2) for part in getattr(qkv, self.apart)(*APART[self.apart], dim=2))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Halves(nn.Module):
    """One half goes on to a layer, the other to what has no int8 form."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(32, 32)

    def forward(self, x):
        a, b = self.first(x).chunk(2, -1)
        return self.second(a) * torch.cumsum(b, 1)


def test_parts_of_which_some_are_float():
    torch.manual_seed(0)
    model, x = Halves().eval(), torch.randn(3, 11, 32)
    program = zp.quantize(model, [torch.randn(3, 11, 32) for _ in range(4)])
    operators = [i.operator for i in program.program.body]
    assert operators.count("zeropoint::quantize_per_tensor") == operators.count("zeropoint::dequantize_per_tensor") == 1
    assert sqnr(model(x), program(x)) > 25


APART = {"unbind": (), "chunk": (3,), "split": (1,), "split_with_sizes": ([1, 1, 1],)}


@pytest.mark.parametrize("apart", APART)
def test_attention_on_parts_of_one_layer(apart):
    torch.manual_seed(0)
    model, x = Unbound(apart).eval(), torch.randn(3, 11, 32)
    program = zp.quantize(model, [torch.randn(3, 11, 32) for _ in range(4)])
    assert [row for row in program.layer_coverage() if row[2] == "float"] == []
    assert sqnr(model(x), program(x)) > 25


@pytest.mark.parametrize("change", ["scaled mask", "other axis", "used twice", "small fill"])
def test_what_only_looks_like_attention(change):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.head = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.x(x)
            scores = x @ x.transpose(-1, -2)
            if change == "scaled mask":
                scores = (scores + x) * 2
            if change == "small fill":
                scores = scores.masked_fill(x > 0, -1.0)
            p = scores.softmax(-2 if change == "other axis" else -1)
            y = self.head(p @ x)
            return y + p if change == "used twice" else y

    model, x = Model().eval(), torch.randn(2, 8, 8)
    graph = prepare_program(model, x).captured.graph_module
    assert not any("scaled_dot" in str(n.target) for n in graph.graph.nodes)
    torch.testing.assert_close(graph(x)[0], model(x))


def test_recurrent_layers_that_int8_would_ruin_stay_float():
    torch.manual_seed(0)
    model = Recurrent(nn.LSTM).eval()
    x = torch.randn(4, 7, 12)
    x[..., 0] *= 1e4  # what else there is in a row is below half a step
    program = zp.quantize(model, [x])
    assert next(why for _, operator, why in program.program.coverage if "lstm" in operator).startswith(
        "int8 would leave"
    )
    mapping = QConfigMapping().set_global(get_default_qconfig()).set_object_type(nn.LSTM, None)
    program = zp.quantize(model, [torch.randn(4, 7, 12)], qconfig=mapping)
    assert "zeropoint::rnn_dynamic" not in [i.operator for i in program.program.body]


@pytest.mark.parametrize("dynamic", [False, True])
def test_embeddings(dynamic):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 5)).eval()
    inputs = (torch.randint(0, 50, (3, 7)),)
    program = zp.quantize(model, dynamic=True, example=inputs) if dynamic else zp.quantize(model, [inputs, inputs])
    assert all(why == "int8" for *_, why in program.program.coverage)
    assert sqnr(model(*inputs), program(*inputs)) > 30
    assert torch.equal(program(*inputs), program.program.interpret(list(inputs))[0])
    with pytest.raises(ValueError, match="index 50 is outside the 50 rows"):
        program(torch.full((1, 2), 50))


class Bags(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(50, 16, **options), nn.Linear(16, 5)

    def forward(self, *inputs):
        return self.head(self.bag(*inputs))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"mode": "sum"}, "rows"), ({"mode": "mean", "padding_idx": 3}, "rows"), ({"mode": "max"}, "offsets"),
        ({"mode": "sum", "include_last_offset": True}, "offsets"), ({"mode": "sum"}, "weights"),
    ],
)  # fmt: skip
def test_bags_of_embeddings(dynamic, options, kind):
    torch.manual_seed(0)
    model = Bags(**options).eval()

    def inputs(bags, n):
        rows = torch.randint(0, 50, (bags, n))
        if kind == "rows":
            return (rows,)
        return (rows.flatten(), torch.arange(bags) * n, *([torch.randn(bags * n)] if kind == "weights" else []))

    first, second = inputs(4, 7), inputs(6, 3)
    program = zp.quantize(model, dynamic=True, example=first) if dynamic else zp.quantize(model, [first, second])
    assert all(why == "int8" for *_, why in program.program.coverage)
    assert [i.operator for i in program.program.body].count("zeropoint::embedding_bag") == 1
    assert program.engine == "native"
    for other in (first, second):
        assert sqnr(model(*other), program(*other)) > 25
        assert torch.equal(program(*other), program.program.interpret(list(other))[0])


def test_bags_whose_sizes_are_used_too_stay_float():
    class Model(Bags):
        def forward(self, rows):
            offsets = torch.arange(0, 8, 4)
            result = torch.embedding_bag(self.bag.weight, rows.flatten(), offsets, False, 1, False, None, False, None)
            return self.head(result[0]), result[2]

    model, rows = Model().eval(), torch.randint(0, 50, (2, 4))
    program = zp.quantize(model, dynamic=True, example=rows)
    assert [why for _, operator, why in program.program.coverage if "bag" in operator] == ["more than its sums is used"]
    assert torch.equal(program(rows)[1], model(rows)[1])


def test_projections_are_listed():
    program = zp.quantize(_projected(), [torch.randn(2, 7, 12)])
    reasons = {operator: why for _, operator, why in program.program.coverage}
    assert reasons["aten.lstm.input"] == "recurrent layers with projections have no int8 form in programs"
    assert zp.quantize(_projected(), dynamic=True, example=torch.randn(2, 7, 12))(torch.randn(2, 7, 12)).shape == (
        2,
        7,
        5,
    )


def _projected():
    model = Recurrent(nn.LSTM, proj_size=4).eval()
    model.head = nn.Linear(4, 5)
    return model


class Windows(nn.Module):
    """Pads to whole windows at each stage: its sizes become longer and longer expressions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8 if i else 3, 8, 3, 2, 1) for i in range(5))

    def forward(self, x):
        for layer in self.layers:
            h, w = x.shape[2:]
            x = F.relu(layer(F.pad(x, (0, (7 - w % 7) % 7, 0, (7 - h % 7) % 7))))
        return x.mean((2, 3))


def test_sizes_that_grow_leave_the_batch_open():
    torch.manual_seed(0)
    model = Windows().eval()
    program = zp.quantize(model, [torch.randn(2, 3, 64, 64)])
    for n in (1, 5):
        x = torch.randn(n, 3, 64, 64)
        assert sqnr(model(x), program(x)) > 20


@pytest.mark.parametrize("options", [{"static": True}, {"dynamic": True}, {"weight_bits": 4, "group_size": 32}])
def test_a_layer_that_is_called_again_has_one_weight(options):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.conv = nn.Linear(64, 64), nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            y = self.layer(torch.relu(self.layer(x)))
            return self.conv(torch.relu(self.conv(y[None, None])))

    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(8, 64)
    static = options.pop("static", False)
    program = zp.quantize(model, [x]) if static else zp.quantize(model, example=x, **options)
    assert program.engine == "native"
    weights = [t for t in program.state_dict().values() if t.dtype in (torch.int8, torch.uint8) and t.dim() >= 2]
    assert len(weights) == (2 if static else 1)
    assert len(program.program.prologue) == len(weights)
    assert sqnr(model(x), program(x)) > 12


def test_forms_of_indices_numbers_and_pools_run_in_the_engine(tmp_path):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.layer = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)

        def forward(self, x):
            y = F.pad(torch.relu(self.conv(x)), (1, 2, 0, 1))
            pooled = self.layer(F.adaptive_max_pool2d(y, 1).flatten(1) + F.adaptive_max_pool2d(y, (2, 3)).mean((2, 3)))
            rows, columns = torch.tril_indices(8, 8, -1)
            pairs = (pooled[:, :, None] * pooled[:, None, :])[:, rows, columns]
            best = y.flatten(2)[torch.arange(x.shape[0]), pooled.argmax(1)]
            return pairs, best, torch.where(pooled > 0, 1.5, -2.0), torch.where(pooled > 0, pooled, 3.0)

    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(2, 3, 8, 8)
    for program in (zp.quantize(model, [x]), zp.quantize(model, dynamic=True, example=x)):
        assert program.engine == "native"
        expected = program.program.interpret([x])
        assert all(torch.equal(a, b) for a, b in zip(program(x), expected, strict=True))
        zp.save(program, tmp_path / "m.zp")
        assert all(torch.equal(a, b) for a, b in zip(zp.load(tmp_path / "m.zp")(x), expected, strict=True))
        larger = torch.randn(5, 3, 8, 8)
        assert [t.shape for t in program(larger)] == [t.shape for t in model(larger)]
    assert sqnr(model(x)[0], program(x)[0]) > 35


def test_an_index_that_is_none_and_values_that_die(tmp_path):
    # Lists of optional tensors count as uses: what they name must live until then.
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 16)

        def forward(self, x):
            y = self.layer(x)
            order = torch.argsort(x, 1)[:, :4]
            later = self.layer(x * 2)
            return y[:, order[0]], later

    model, x = Lookup().eval(), torch.randn(3, 8)
    program = zp.quantize(model, dynamic=True, example=x)
    assert program.engine == "native"
    assert torch.equal(program(x)[0], program.program.interpret([x])[0])
