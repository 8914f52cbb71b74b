"""Equal to torch 2.13's own functions, bit for bit, while torch still has them; recorded values keep it so after.

The comparisons run only where torch has the functions; `test_recorded` runs everywhere.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import zeropoint as zp

HAS_TORCH = hasattr(torch, "quantize_per_tensor") and hasattr(torch, "quint8")
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="this torch no longer has quantized tensors")
DTYPES = ["quint8", "qint8", "qint32"]


def theirs(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(torch, function)(*arguments)


def hard_values(scale):
    """Ties, their neighbours, ends of the range, infinities, denormals, noise."""
    ties = (torch.arange(-600, 600).float() + 0.5) * scale
    up, down = torch.tensor(math.inf), torch.tensor(-math.inf)
    odd = torch.tensor(
        [math.inf, -math.inf, 1e38, -1e38, 1e-45, -1e-45, 0.0, -0.0, 3e9, -3e9, 2147483648.0, -2147483648.0]
    )
    return torch.cat([ties, ties.nextafter(up), ties.nextafter(down), torch.randn(3001) * scale * 100, odd])


@needs_torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.0123456, 3.3, 1e-6, 2.5, 0.75, 1e-20])
@pytest.mark.parametrize("zero_point", [0, 1, 5, 77, 127])
def test_quantize_per_tensor(isa, dtype, scale, zero_point):
    x = hard_values(scale)
    for part in (x, x[:7], x[3:36]):  # torch's vector loop, its tail, and both
        q = theirs("quantize_per_tensor", part, scale, zero_point, getattr(torch, dtype))
        ours = zp.quantize_per_tensor(part, scale, zero_point, dtype)
        assert torch.equal(ours.int_repr(), q.int_repr())
        assert torch.equal(
            ours.dequantize(), zp.make_per_tensor_quantized_tensor(ours.int_repr(), scale, zero_point).dequantize()
        )
        theirs_back = theirs("_make_per_tensor_quantized_tensor", ours.int_repr(), scale, zero_point).dequantize()
        # torch's int32 subtraction wraps at -2^31 - zero_point; ours is exact there.
        fits = ours.int_repr().double() - zero_point >= -(2**31)
        assert torch.equal(ours.dequantize()[fits], theirs_back[fits])


@needs_torch
@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quantize_per_channel(isa, dtype, axis):
    x = hard_values(0.1)[:3600].view(3, 40, 30).contiguous()
    channels = x.shape[axis]
    scales = torch.rand(channels, dtype=torch.float64) + 0.01
    zero_points = torch.randint(0, 100, (channels,))
    q = theirs("quantize_per_channel", x, scales.float().double(), zero_points, axis, getattr(torch, dtype))
    ours = zp.quantize_per_channel(x, scales, zero_points, axis, dtype)
    assert torch.equal(ours.int_repr(), q.int_repr())
    assert torch.equal(ours.dequantize(), q.dequantize())


def test_recorded(isa):
    # Made with torch 2.13.0 on CPU; ties around an odd zero point show the order of rounding.
    x = torch.tensor([-1.05, -0.95, -0.05, 0.05, 0.15, 0.25, 0.35, 12.65, 25.55, 30.0] * 2)
    recorded = {
        ("quint8", 0.1, 5): [0, 0, 4, 6, 6, 8, 8, 132, 255, 255],
        ("qint8", 0.1, 5): [-5, -4, 4, 6, 6, 8, 8, 127, 127, 127],
    }
    for (dtype, scale, zero_point), expected in recorded.items():
        assert zp.quantize_per_tensor(x, scale, zero_point, dtype).int_repr()[:10].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_are_taken_to_float32(isa, dtype):
    x = torch.randn(1000).to(dtype)
    assert torch.equal(
        zp.quantize_per_tensor(x, 0.02, 3, zp.qint8), zp.quantize_per_tensor(x.float(), 0.02, 3, zp.qint8)
    )


@pytest.mark.parametrize("zero_point", [0, 5, 128])
def test_fake_quantize_is_dequantize_of_quantize(isa, zero_point):
    x = hard_values(0.1)
    fake = zp.fake_quantize_per_tensor_affine(x, 0.1, zero_point, 0, 255)
    assert torch.equal(fake, zp.quantize_per_tensor(x, 0.1, zero_point, zp.quint8).dequantize())


@needs_torch
def test_fake_quantize_differs_from_torch_only_at_ties():
    # torch rounds before it adds the zero point, its quantize after: they disagree at ties with odd zero points.
    x = torch.randn(20000)
    ours, others = (
        f(x, 0.037, 7, 0, 255) for f in (zp.fake_quantize_per_tensor_affine, torch.fake_quantize_per_tensor_affine)
    )
    assert float((ours != others).float().mean()) < 1e-3
    assert float((ours - others).abs().max()) <= 0.037 * 1.001


@needs_torch
def test_fake_quantize_gradient():
    x = (torch.randn(5000) * 10).requires_grad_()
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(5000)
    (zp.fake_quantize_per_tensor_affine(x, 0.05, 100, 0, 255) * weights).sum().backward()
    (torch.fake_quantize_per_tensor_affine(y, 0.05, 100, 0, 255) * weights).sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert 0 < int((x.grad == 0).sum()) < 5000
