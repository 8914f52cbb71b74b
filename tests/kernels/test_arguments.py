"""Wrong arguments to the operators themselves: a clear error, never a crash."""

from __future__ import annotations

import pytest
import torch

from zeropoint import _reference, ops

U8 = torch.uint8


def _linear(x, weight=None, scale=None, bias=None, x_scale=1.0, x_zero_point=0, y_scale=1.0, y_zero_point=0):
    weight = torch.ones(4, 8, dtype=torch.int8) if weight is None else weight
    scale = torch.ones(1) if scale is None else scale
    packed = ops.linear_pack(weight, None)
    return ops.linear(x, weight, packed, scale, None, bias, x_scale, x_zero_point, y_scale, y_zero_point, 0, 255, U8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(1, 8)}, "uint8 or int8"),
        ({"x": torch.zeros(1, 7, dtype=U8)}, "7 features"),
        ({"x": torch.zeros((), dtype=U8)}, "in_features"),
        ({"scale": torch.ones(3)}, "w_scale"),
        ({"scale": torch.ones(4, dtype=torch.float64)}, "w_scale"),
        ({"bias": torch.ones(3)}, "bias"),
        ({"x_scale": 0.0}, "x_scale"),
        ({"x_scale": float("nan")}, "x_scale"),
        ({"y_scale": -1.0}, "y_scale"),
        ({"y_scale": float("inf")}, "y_scale"),
        ({"x_zero_point": 256}, "x_zero_point"),
        ({"y_zero_point": -1}, "y_zero_point"),
        ({"y_scale": 1e-38, "x_scale": 1e30}, "not finite"),
    ],
)
def test_linear(arguments, message):
    with pytest.raises(ValueError, match=message):
        _linear(**{"x": torch.zeros(1, 8, dtype=U8), **arguments})


@pytest.mark.parametrize(
    ("x", "weight", "groups", "message"),
    [
        (torch.zeros(1, 3, 5, 5), (4, 3, 3, 3), 1, "uint8 or int8"),
        (torch.zeros(3, 5, 5, dtype=U8), (4, 3, 3, 3), 1, "N, C, H, W"),
        (torch.zeros(1, 4, 5, 5, dtype=U8), (4, 3, 3, 3), 1, "4 channels"),
        (torch.zeros(1, 3, 2, 5, dtype=U8), (4, 3, 3, 3), 1, "does not fit"),
    ],
)
def test_conv2d(x, weight, groups, message):
    w = torch.ones(weight, dtype=torch.int8)
    packed = ops.conv2d_pack(w, None, [1, 1], groups)
    with pytest.raises(ValueError, match=message):
        ops.conv2d(x, w, packed, torch.ones(1), None, None, [1, 1], [0, 0], [1, 1], groups, 1.0, 0, 1.0, 0, 0, 255, U8)


def test_conv2d_pack():
    with pytest.raises(ValueError, match="divisible by groups"):
        ops.conv2d_pack(torch.ones(4, 1, 3, 3, dtype=torch.int8), None, [1, 1], 3)
    with pytest.raises(ValueError, match="int8"):
        ops.conv2d_pack(torch.ones(4, 1, 3, 3), None, [1, 1], 1)


def test_empty_inputs_give_empty_outputs(isa):
    assert _linear(torch.zeros(0, 8, dtype=U8)).shape == (0, 4)
    w = torch.ones(4, 3, 3, 3, dtype=torch.int8)
    packed = ops.conv2d_pack(w, None, [1, 1], 1)
    x = torch.zeros(0, 3, 5, 5, dtype=U8)
    out = ops.conv2d(x, w, packed, torch.ones(1), None, None, [1, 1], [1, 1], [1, 1], 1, 1.0, 0, 1.0, 0, 0, 255, U8)
    assert out.shape == (0, 4, 5, 5)
    assert ops.max_pool2d(x, [2, 2], [2, 2], [0, 0], [1, 1], False).shape == (0, 3, 2, 2)
    empty = torch.zeros(0, dtype=U8)
    assert ops.add(empty, 1.0, 0, empty, 1.0, 0, 1.0, 0, 0, 255, U8).shape == (0,)


def test_add_of_different_shapes():
    with pytest.raises(ValueError, match="shape of a"):
        ops.add(torch.zeros(2, dtype=U8), 1.0, 0, torch.zeros(3, dtype=U8), 1.0, 0, 1.0, 0, 0, 255, U8)


def test_pool_arguments():
    x = torch.zeros(1, 3, 5, 5, dtype=U8)
    with pytest.raises(ValueError, match="at most half"):
        ops.max_pool2d(x, [2, 2], [2, 2], [2, 2], [1, 1], False)
    with pytest.raises(ValueError, match="does not fit"):
        ops.max_pool2d(x, [7, 7], [1, 1], [0, 0], [1, 1], False)
    with pytest.raises(ValueError, match="divisor_override"):
        ops.avg_pool2d(x, 0, [2, 2], [2, 2], [0, 0], False, True, 0)


@pytest.mark.parametrize("operators", [ops, _reference])
def test_averages_whose_sums_would_not_fit(operators):
    x = torch.zeros(1, 1, 2049, 4096, dtype=U8)
    for name, arguments in (
        ("avg_pool2d", (0, [2049, 4096], [1, 1], [0, 0], False, True, None)),
        ("adaptive_avg_pool2d", (0, [1, 1])),
        ("global_avg_pool2d", (1.0, 0, 1.0, 0, 0, 255, U8)),
    ):
        with pytest.raises(ValueError, match=name + ": a window of 2049x4096 is averaged"):
            getattr(operators, name)(x, *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 8, dtype=torch.int32)}, "float32, bfloat16 or float16"),
        ({"x": torch.zeros(1, 7)}, "7 features"),
        ({"w_scale": torch.ones(3, 1)}, "w_scale"),
        ({"w_zero_point": torch.zeros(4, 1)}, "disagree"),
        ({"w_zero_point": torch.zeros(4, 1, dtype=torch.int8)}, "w_zero_point"),
        ({"bias": torch.ones(3)}, "bias"),
        ({"group_size": 64}, "disagree"),
        ({"w_bits": 4}, "disagree"),
        ({"x_bits": 7}, "8 or 15"),
        ({"packed": torch.zeros(500, dtype=U8)}, "linear_grouped_pack"),
        ({"packed": torch.zeros(5, dtype=U8)}, "linear_grouped_pack"),
    ],
)
def test_linear_grouped(change, message):
    weight, scale = torch.ones(4, 8, dtype=torch.int8), torch.ones(4, 1)
    arguments = {
        "x": torch.zeros(1, 8), "weight": weight, "packed": ops.linear_grouped_pack(weight, scale, None, 32, 8),
        "w_scale": scale, "w_zero_point": None, "bias": None, "group_size": 32, "w_bits": 8, "x_bits": 8, "relu": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ops.linear_grouped(**{**arguments, **change})


@pytest.mark.parametrize("parts", [[], [69], [5, 64], [64, -1, 6], [64, 4], [64, 6], [64, 5, 0], [1 << 62, 1 << 62]])
def test_linear_grouped_split(parts):
    weight, scale = torch.ones(69, 8, dtype=torch.int8), torch.ones(69, 1)
    arguments = (torch.zeros(1, 8), weight, ops.linear_grouped_pack(weight, scale, None, 32, 8), scale, None, None)
    if parts == [69]:
        assert len(ops.linear_grouped_split(*arguments, 32, 8, 8, False, parts)) == 1
        return
    with pytest.raises(ValueError, match="parts must"):
        ops.linear_grouped_split(*arguments, 32, 8, 8, False, parts)


@pytest.mark.parametrize(
    ("group_size", "w_bits", "message"),
    [(40, 8, "multiple of 32"), (512, 8, "multiple"), (32, 5, "8 or 4"), (32, 4, "lie in")],
)
def test_linear_grouped_pack(group_size, w_bits, message):
    with pytest.raises(ValueError, match=message):
        ops.linear_grouped_pack(torch.full((4, 8), 100, dtype=torch.int8), torch.ones(4, 1), None, group_size, w_bits)
