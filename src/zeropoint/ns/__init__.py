"""Comparing a float model with its quantized form, layer by layer (``torch.ao.ns`` by name)."""

from zeropoint.ns import _numeric_suite

__all__ = ["_numeric_suite"]
