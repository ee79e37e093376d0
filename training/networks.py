"""Networks that more than one recipe wants: perceptrons, a small convolutional network, recurrent ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Cell = Literal["rnn", "lstm", "gru"]
CELLS: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def mlp(inputs: int, hidden: Sequence[int], outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """(batch, ...) with `inputs` numbers each → (batch, outputs); ReLU between the layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def cnn(outputs: int, *, channels: int = 1, side: int = 28, kernel: int = 3) -> nn.Sequential:
    """(batch, channels, side, side) → (batch, outputs): conv 32, pool, conv 64, pool, dense; `kernel` is odd."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (side // 4) ** 2, outputs),
    )


class Recurrent(nn.Module):
    """(batch, time, features) → (batch, outputs), read off the last state of a vanilla RNN, an LSTM or a GRU."""

    def __init__(self, cell: Cell, features: int, width: int, outputs: int, *, layers: int = 1) -> None:
        super().__init__()
        self.cells = CELLS[cell](features, width, layers, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cells(x)
        answer: Tensor = self.head(states[:, -1])
        return answer
