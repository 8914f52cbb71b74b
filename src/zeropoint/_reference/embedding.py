"""Reference of zeropoint::embedding and embedding_bag."""

from __future__ import annotations

import math

import torch

from zeropoint.errors import QuantizationError

__all__ = ["embedding", "embedding_bag"]


def embedding(
    indices: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int, features: int
) -> torch.Tensor:
    """Rows ``(float32(q) - zero_point[row]) * scale[row]``: indices [...] to float32 [..., features].

    ``weight`` is uint8 [rows, features], or with 4 ``bits`` [rows, ceil(features / 2)], low halves first.

    Raises:
        ValueError: an index outside the rows.
    """
    rows = weight.shape[0]
    if indices.numel() and not bool(((indices >= 0) & (indices < rows)).all()):
        raise ValueError(f"embedding: an index is outside the {rows} rows")
    index = indices.long()
    packed = weight[index]
    if bits == 4:
        packed = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)[..., :features]
    return (packed.float() - zero_point[index].unsqueeze(-1)) * scale[index].unsqueeze(-1)


def embedding_bag(
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    features: int,
    mode: int,
    include_last_offset: bool,
    per_sample_weights: torch.Tensor | None = None,
    padding_idx: int | None = None,
) -> torch.Tensor:
    """Sums (``mode`` 0), means (1) or maxima (2) of bags of rows: indices [n], offsets [bags] to float32 [bags, features].

    Indices [bags, n] have their bags in rows, without offsets, all of them. Else bag b has the indices from
    ``offsets[b]`` to the next offset, or to the end; with ``include_last_offset`` the last offset begins no bag. Rows are those of :func:`embedding`, each times its ``per_sample_weights`` (sums alone); those of
    ``padding_idx`` are left out. Sums are taken row by row in float32, a mean is the sum divided by the number of rows,
    a bag without rows gives zeros.

    Raises:
        QuantizationError: another mode, weights with another than sums.
        ValueError: an index outside the rows, offsets that fall or do not fit.
    """
    if mode not in (0, 1, 2) or (per_sample_weights is not None and mode != 0):
        raise QuantizationError(
            "embedding_bag: mode must be 0 (sum), 1 (mean) or 2 (max), and 0 with per_sample_weights"
        )
    if (indices.dim(), None if offsets is None else offsets.dim()) not in ((2, None), (1, 1)):
        raise QuantizationError(
            "embedding_bag: give indices [bags, n] without offsets, or indices [n] with offsets [bags]"
        )
    if offsets is None:
        offsets = torch.arange(indices.shape[0]) * indices.shape[1]
        indices, include_last_offset = indices.reshape(-1), False
        per_sample_weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    rows = embedding(indices, weight, scale, zero_point, bits, features)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    starts = [int(o) for o in offsets]
    ends = starts[1:] if include_last_offset else [*starts[1:], len(indices)]
    bags = []
    for first, last in zip(starts, ends, strict=False):
        if not 0 <= first <= last <= len(indices) or starts[0] != 0:
            raise ValueError(
                "embedding_bag: offsets must begin with 0, not fall, and end at most at the number of indices"
            )
        own = rows[first:last]
        if padding_idx is not None:
            own = own[indices[first:last] != padding_idx]
        total = rows.new_full((features,), -math.inf if mode == 2 and len(own) else 0.0)
        for row in own:
            total = torch.where(row > total, row, total) if mode == 2 else total + row
        bags.append(total / len(own) if mode == 1 and len(own) else total)
    return torch.stack(bags) if bags else rows.new_empty(0, features)
