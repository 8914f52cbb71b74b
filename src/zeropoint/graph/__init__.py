"""From a float model to int8 operators: capture, canonicalise, annotate, calibrate, lower, fuse. One file each."""

from zeropoint.graph.capture import Captured, CaptureError, capture
from zeropoint.graph.flow import GraphCalibration, compile_program, prepare_program, quantize

__all__ = ["CaptureError", "Captured", "GraphCalibration", "capture", "compile_program", "prepare_program", "quantize"]
