"""PyTorch's fused transformer layers, which would read float weights past the quantized modules."""

from __future__ import annotations

from torch import nn

__all__ = ["leave_fast_path"]


def leave_fast_path(model: nn.Module) -> None:
    """Has encoder layers whose Linear layers were swapped call them, as they do in training.

    ``nn.TransformerEncoderLayer`` and ``nn.TransformerEncoder`` hand ``linear1.weight`` to one fused float operator in eval
    mode. ``activation_relu_or_gelu`` and ``use_nested_tensor`` are what they ask before they do.
    """
    for module in model.modules():
        layers = module.layers if isinstance(module, nn.TransformerEncoder) else [module]
        swapped = any(
            isinstance(layer, nn.TransformerEncoderLayer)
            and not (type(layer.linear1) is nn.Linear and type(layer.linear2) is nn.Linear)
            for layer in layers
        )
        if swapped and isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif swapped:
            module.activation_relu_or_gelu = 0  # type: ignore[assignment]
