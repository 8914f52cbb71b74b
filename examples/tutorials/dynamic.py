"""Dynamic quantization of a word-level language model, written for torch's names (see static.py)."""

from __future__ import annotations

import zeropoint.compat.torch_ao as door

door.install()

import torch  # noqa: E402
import torch.quantization  # noqa: E402
from torch import nn  # noqa: E402


class LanguageModel(nn.Module):
    def __init__(self, words: int = 500, size: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.encoder, self.rnn, self.decoder = (
            nn.Embedding(words, size),
            nn.LSTM(size, size, layers),
            nn.Linear(size, words),
        )

    def forward(self, tokens: torch.Tensor, hidden: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        output, hidden = self.rnn(self.encoder(tokens), hidden)
        return self.decoder(output)


def size_of(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values() if isinstance(t, torch.Tensor))


def main() -> dict[str, float]:
    torch.manual_seed(0)
    model, tokens = LanguageModel().eval(), torch.randint(0, 500, (20, 4))
    quantized = torch.quantization.quantize_dynamic(model, {nn.LSTM, nn.Linear}, dtype=torch.qint8)
    expected, result = model(tokens), quantized(tokens)
    error = (result - expected).pow(2).mean()
    return {
        "signal to noise, dB": float((10 * torch.log10(expected.pow(2).mean() / error)).detach()),
        "size, share of float": size_of(quantized) / size_of(model),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.2f}")
    door.uninstall()
