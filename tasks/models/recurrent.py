"""Recurrent networks: a classifier of sequences and a model of characters."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Cell = Literal["lstm", "gru"]


def _recurrent(cell: Cell, inputs: int, width: int, layers: int) -> nn.Module:
    kinds = {"lstm": nn.LSTM, "gru": nn.GRU}
    if cell not in kinds:
        raise ValueError(f"cell {cell!r} is unknown; use lstm or gru.")
    return kinds[cell](inputs, width, layers, batch_first=True)


class RecurrentClassifier(nn.Module):
    """Reads a sequence and classifies it by the last hidden state; images are read row by row."""

    def __init__(self, cell: Cell, inputs: int, width: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.recurrent = _recurrent(cell, inputs, width, layers)
        self.fc = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(sample, token, feature), or images (sample, 1, y, x) → (sample, outputs)."""
        hidden, _ = self.recurrent(inputs.squeeze(1) if inputs.ndim == 4 else inputs)
        return self.fc(hidden[:, -1])


class CharacterModel(nn.Module):
    """Predicts each next character."""

    def __init__(self, cell: Cell, alphabet: int, embedding: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, embedding)
        self.recurrent = _recurrent(cell, embedding, width, layers)
        self.fc = nn.Linear(width, alphabet)

    def forward(self, inputs: Tensor) -> Tensor:
        """Codes (sample, token) → scores (sample, token, alphabet)."""
        hidden, _ = self.recurrent(self.embedding(inputs))
        return self.fc(hidden)


def recurrent_classifier(
    cell: Cell = "lstm", inputs: int = 28, width: int = 128, layers: int = 1, outputs: int = 10
) -> RecurrentClassifier:
    """An LSTM or GRU classifier of sequences of `inputs` numbers a step."""
    return RecurrentClassifier(cell, inputs, width, layers, outputs)


def character_model(
    cell: Cell = "lstm", alphabet: int = 65, embedding: int = 32, width: int = 128, layers: int = 1
) -> CharacterModel:
    """An LSTM or GRU model of text over `alphabet` characters."""
    return CharacterModel(cell, alphabet, embedding, width, layers)
