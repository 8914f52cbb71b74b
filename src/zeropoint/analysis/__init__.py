"""Measures of what quantization costs."""

from zeropoint.analysis.similarity import agreement, sqnr
from zeropoint.analysis.verify import Verification, verify
from zeropoint.quantization.coverage import LayerCoverage, Report, coverage, report

__all__ = ["LayerCoverage", "Report", "Verification", "agreement", "coverage", "report", "sqnr", "verify"]
