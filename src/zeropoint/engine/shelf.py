"""Packed weights of a program side by side, in memory of large pages."""

from __future__ import annotations

import torch

from zeropoint import _native

__all__ = ["Shelf"]

_ALIGNMENT = 64  # bytes: a line of the cache, and the widest vector
_LEAST = 4 << 20  # bytes: what a core finds without walking its page tables
_OWN = 8 << 20  # bytes from which on a weight has large pages of its own, and a copy would only take memory


class Shelf:
    """Memory for about ``expected`` bytes of packed weights.

    A weight of less than some megabytes has no large page to itself, and a program reads all of its weights in every call:
    from small pages at little more than half of the bandwidth, where they do not fit the cache.
    """

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._free = torch.empty(0, dtype=torch.uint8)

    def put(self, packed: torch.Tensor) -> torch.Tensor:
        """A copy of ``packed`` on the shelf, or itself where it is large or all weights together are few."""
        if self._expected < _LEAST or packed.numel() >= _OWN:
            return packed
        size = -(-packed.numel() // _ALIGNMENT) * _ALIGNMENT
        if size > self._free.numel():
            # What is not written to takes no memory.
            self._free = torch.empty(max(size, self._expected), dtype=torch.uint8)
            _native.prefer_huge_pages(self._free)
        place, self._free = self._free[: packed.numel()], self._free[size:]
        return place.copy_(packed)
