"""Recurrent networks: a classifier of sequences and a model of characters."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Cell = Literal["rnn", "gru", "lstm"]
_CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def recurrent_layers(
    cell: Cell, inputs: int, width: int, layers: int, bidirectional: bool = False, dropout: float = 0.0
) -> nn.RNNBase:
    """`layers` recurrent layers (sample, token, inputs) → (sample, token, directions · width).

    `rnn` is the plain tanh cell. Raises ValueError for another cell.
    """
    if cell not in _CELLS:
        raise ValueError(f"cell {cell!r} is unknown; use one of {', '.join(_CELLS)}.")
    return _CELLS[cell](
        inputs,
        width,
        layers,
        batch_first=True,
        bidirectional=bidirectional,
        dropout=dropout if layers > 1 else 0.0,
    )


class RecurrentClassifier(nn.Module):
    """Reads a sequence and classifies it by the last hidden state; images are read row by row."""

    def __init__(self, cell: Cell, inputs: int, width: int, layers: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.recurrent = recurrent_layers(cell, inputs, width, layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(sample, token, feature), or images (sample, 1, y, x) → (sample, outputs)."""
        hidden, _ = self.recurrent(inputs.squeeze(1) if inputs.ndim == 4 else inputs)
        return self.fc(self.dropout(hidden[:, -1]))


class CharacterModel(nn.Module):
    """Predicts each next character from those before it."""

    def __init__(self, cell: Cell, alphabet: int, embedding: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, embedding)
        self.recurrent = recurrent_layers(cell, embedding, width, layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, alphabet)

    def forward(self, inputs: Tensor) -> Tensor:
        """Codes (sample, token) → scores (sample, token, alphabet)."""
        hidden, _ = self.recurrent(self.embedding(inputs))
        return self.fc(self.dropout(hidden))


def recurrent_classifier(
    cell: Cell = "lstm",
    inputs: int = 28,
    width: int = 128,
    layers: int = 1,
    outputs: int = 10,
    dropout: float = 0.0,
) -> RecurrentClassifier:
    """A plain, GRU or LSTM classifier of sequences of `inputs` numbers a token."""
    return RecurrentClassifier(cell, inputs, width, layers, outputs, dropout)


def character_model(
    cell: Cell = "lstm",
    alphabet: int = 65,
    embedding: int = 32,
    width: int = 128,
    layers: int = 1,
    dropout: float = 0.0,
) -> CharacterModel:
    """A plain, GRU or LSTM model of text over `alphabet` characters."""
    return CharacterModel(cell, alphabet, embedding, width, layers, dropout)
