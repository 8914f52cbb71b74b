"""From a float model to int8 operators: capture, canonicalise, annotate, calibrate, lower, fuse. One file each."""

from zeropoint.graph.capture import Captured, CaptureError, capture

__all__ = ["CaptureError", "Captured", "capture"]
