"""Steps of decoders in programs: rotary embeddings, gated units and attention over a cache, as one operator each."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import zeropoint as zp
from zeropoint import ops
from zeropoint.analysis import sqnr

HEADS, WIDTH, PAST = 4, 64, 9
FEATURES = WIDTH // HEADS


def rotate_half(x, form):
    if form == "chunk":
        low, high = x.chunk(2, -1)
    elif form == "split":
        low, high = x.split(x.shape[-1] // 2, -1)
    else:
        low, high = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat([-high, low], -1)


class Step(nn.Module):
    """One layer of a Llama and its cache, in the ways in which models write it."""

    def __init__(self, *, form="chunk", groups=HEADS, repeat="expand", attention="fused", masked=False, cached=True):
        super().__init__()
        self.form, self.groups, self.repeat, self.attention = form, groups, repeat, attention
        self.masked, self.cached = masked, cached
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, groups * FEATURES), nn.Linear(WIDTH, groups * FEATURES)
        self.gate, self.up, self.down = nn.Linear(WIDTH, 80), nn.Linear(WIDTH, 80), nn.Linear(80, WIDTH)

    def heads(self, x):
        if self.form == "split":
            return x.view(x.shape[0], x.shape[1], x.shape[2] // FEATURES, -1).transpose(1, 2)
        return x.view(x.shape[0], x.shape[1], -1, FEATURES).transpose(1, 2)

    def shared(self, x):
        times = HEADS // self.groups
        if self.repeat == "gqa" or times == 1:
            return x
        if self.repeat == "interleave":
            return x.repeat_interleave(times, 1)
        b, g, t, d = x.shape
        return x[:, :, None].expand(b, g, times, t, d).reshape(b, g * times, t, d)

    def forward(self, x, keys, values, cos, sin, mask):
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        q = q * cos + rotate_half(q, self.form) * sin
        k = rotate_half(k, self.form) * sin + cos * k
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], dim=-2)
        mask = mask if self.masked else None
        if self.attention == "fused":
            options = {"enable_gqa": True} if self.repeat == "gqa" else {}
            y = F.scaled_dot_product_attention(q, self.shared(keys), self.shared(values), mask, **options)
        else:
            scores = q @ self.shared(keys).transpose(2, 3) / math.sqrt(FEATURES)
            y = (scores if mask is None else scores + mask).softmax(-1) @ self.shared(values)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return (x, keys, values) if self.cached else x


def inputs(groups=HEADS, batch=2, past=PAST, tokens=1):
    angles = torch.arange(FEATURES // 2) * torch.ones(batch, 1, tokens, 1)
    angles = torch.cat([angles, angles], -1)
    mask = torch.where(torch.rand(batch, 1, tokens, past + tokens) < 0.3, -torch.inf, 0.0)
    mask[..., -1] = 0.0
    cache = (torch.randn(batch, groups, past, FEATURES) for _ in "kv")
    return torch.randn(batch, tokens, WIDTH), *cache, angles.cos(), angles.sin(), mask


def operators(program):
    return [i.operator for i in program.program.body]


def check(model, groups=HEADS, tokens=1):
    torch.manual_seed(0)
    model.eval()
    example = inputs(groups, tokens=tokens)
    program = zp.quantize(model, dynamic=True, example=example)
    assert program.engine == "native"
    # Other data and another batch: what a shape's first run left behind must not show.
    for given in (example, inputs(groups, tokens=tokens), inputs(groups, batch=3, tokens=tokens)):
        got = tree_leaves(program(*given))
        for mine, reference in zip(got, program.program.interpret(list(given)), strict=True):
            assert torch.equal(mine, reference)
        for mine, exact in zip(got, tree_leaves(model(*given)), strict=True):
            assert mine.shape == exact.shape
            assert sqnr(exact, mine) > 30
    return program


@pytest.mark.parametrize("form", ["chunk", "split", "slice"])
def test_a_step_has_one_operator_each(form):
    names = operators(check(Step(form=form)))
    assert names.count("zeropoint::rotary") == 2
    assert names.count("zeropoint::silu_mul") == 1
    assert names.count("zeropoint::cached_attention") == 1
    assert not {"aten::cat", "aten::mul.Tensor", "aten::silu", "aten::scaled_dot_product_attention"} & set(names)


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_masks_and_caches(attention, masked, cached):
    names = operators(check(Step(attention=attention, masked=masked, cached=cached)))
    assert "zeropoint::cached_attention" in names
    assert "aten::cat" not in names


@pytest.mark.parametrize(("repeat", "attention"), [("gqa", "fused"), ("expand", "fused"), ("interleave", "fused"),
                                                   ("expand", "spelled"), ("interleave", "spelled")])  # fmt: skip
def test_shared_keys(repeat, attention):
    names = operators(check(Step(groups=2, repeat=repeat, attention=attention), groups=2))
    assert "zeropoint::cached_attention" in names
    assert not {"aten::cat", "aten::expand", "aten::repeat_interleave.self_int"} & set(names)


def test_several_new_tokens_stay_as_they_are():
    names = operators(check(Step(masked=True), tokens=3))
    assert "zeropoint::cached_attention" not in names
    assert names.count("zeropoint::rotary") == 2


class Lookalikes(nn.Module):
    """One thing wrong each."""

    def forward(self, x, cos, sin):
        low, high = x.chunk(2, -1)
        y = x * cos + torch.cat([high, low], -1) * sin  # not negated
        y = y + x * cos - torch.cat([-high, low], -1) * sin  # a difference
        y = y + (x * cos + torch.cat([-low, high], -1) * sin)  # the wrong half
        a, b = y.chunk(2, 1)
        y = y * cos + torch.cat([-b, a], 1) * sin  # another dimension
        return F.silu(y), F.silu(y) * cos.amax(), F.silu(y) * sin.mean(-1, keepdim=True)


def test_lookalikes_are_left():
    x, cos, sin = torch.randn(2, 4, 6), torch.randn(6), torch.randn(6)
    model = Lookalikes()
    program = zp.quantize(model, dynamic=True, example=(x, cos, sin))
    assert not {"zeropoint::rotary", "zeropoint::silu_mul"} & set(operators(program))
    for mine, exact in zip(program(x, cos, sin), model(x, cos, sin), strict=True):
        torch.testing.assert_close(mine, exact)


class EarlyCache(nn.Module):
    """The joined keys are needed before there is a query."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(FEATURES, FEATURES)

    def forward(self, x, keys, values, new):
        joined = torch.cat([keys, new], 2)
        q = self.q(x + joined.mean(2, keepdim=True))
        return F.scaled_dot_product_attention(q, joined, torch.cat([values, new], 2))


def test_a_cache_that_is_needed_before_stays():
    torch.manual_seed(0)
    x, keys, values, new = (torch.randn(2, 3, n, FEATURES) for n in (1, 5, 5, 1))
    model = EarlyCache().eval()
    program = zp.quantize(model, dynamic=True, example=(x, keys, values, new))
    assert "zeropoint::cached_attention" not in operators(program)
    assert sqnr(model(x, keys, values, new), program(x, keys, values, new)) > 30


class SpreadCache(nn.Module):
    """One cache for the whole batch, which attention spreads."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(FEATURES, FEATURES)

    def forward(self, x, keys, new):
        joined = torch.cat([keys, new], 2)
        return F.scaled_dot_product_attention(self.q(x), joined, joined)


def test_a_cache_for_a_whole_batch_stays():
    torch.manual_seed(0)
    x, keys, new = torch.randn(4, 3, 1, FEATURES), torch.randn(1, 3, 5, FEATURES), torch.randn(1, 3, 1, FEATURES)
    model = SpreadCache().eval()
    program = zp.quantize(model, dynamic=True, example=(x, keys, new))
    assert "zeropoint::cached_attention" not in operators(program)
    assert sqnr(model(x, keys, new), program(x, keys, new)) > 30


def test_a_row_without_keys_is_zero():
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 3, 8)
    mask = torch.tensor([True, False]).reshape(1, 2, 1, 1)
    out, *_ = ops.cached_attention(q, k[:, :, :2], k[:, :, :2], k[:, :, 2:], k[:, :, 2:], 0.3, mask)
    torch.testing.assert_close(out[:, 0], F.scaled_dot_product_attention(q, k, k, scale=0.3)[:, 0])
    assert torch.equal(out[:, 1], torch.zeros(1, 1, 8))


@pytest.mark.parametrize(("change", "message"), [
    ({0: torch.randn(1, 2, 2, 8)}, "q \\[B, H, 1, D\\]|one query per head"),
    ({0: torch.randn(1, 3, 1, 8)}, "do not fit together"),
    ({1: torch.randn(1, 2, 2, 7)}, "do not fit together"),
    ({4: torch.randn(1, 2, 2, 8)}, "do not fit together"),
    ({3: torch.randn(1, 2, 1, 8).double()}, "must be float32"),
    ({6: torch.ones(1, 2, 1, 9)}, "mask"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    given = [torch.randn(1, 2, n, 8) for n in (1, 2, 2, 1, 1)] + [0.3, None]
    for position, value in change.items():
        given[position] = value
    with pytest.raises(ValueError, match=message):
        ops.cached_attention(*given)


def test_rotary_and_gate_refuse_what_does_not_fit():
    x = torch.randn(2, 3, 8)
    for cos in (torch.randn(6), torch.randn(4, 8), torch.randn(8).double()):
        with pytest.raises(ValueError, match="rotary"):
            ops.rotary(x, cos, torch.randn(8))
    with pytest.raises(ValueError, match="even number of features"):
        ops.rotary(torch.randn(3), torch.randn(3), torch.randn(3))
    with pytest.raises(ValueError, match="silu_mul"):
        ops.silu_mul(x, x[:1])
