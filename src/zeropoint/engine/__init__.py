"""Programs: what a quantized model is once it needs no Python. Schema, file format, execution."""

from zeropoint.engine.file import load, save
from zeropoint.engine.program import Instruction, Program, ProgramError, Register, Value
from zeropoint.engine.runtime import ProgramModule

__all__ = ["Instruction", "Program", "ProgramError", "ProgramModule", "Register", "Value", "load", "save"]
