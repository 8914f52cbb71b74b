"""The doors from torch's quantization: mounting under its names, its checkpoints, its source code."""

from zeropoint.compat import torch_ao
from zeropoint.compat.checkpoint import convert_state_dict, load_model, load_state_dict

__all__ = ["convert_state_dict", "load_model", "load_state_dict", "torch_ao"]
