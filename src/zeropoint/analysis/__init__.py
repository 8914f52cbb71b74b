"""Measures of what quantization costs."""

from zeropoint.analysis.coverage import LayerCoverage, coverage
from zeropoint.analysis.similarity import agreement, sqnr

__all__ = ["LayerCoverage", "agreement", "coverage", "sqnr"]
