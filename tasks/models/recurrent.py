"""Recurrent networks: a classifier of sequences and a model of characters."""

from __future__ import annotations

from typing import Literal

import torch
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


@torch.no_grad()
def spread_memory(layers: nn.RNNBase, span: int) -> None:
    """Initialise the gates of `layers` so that their units keep what they hold for 1 to about `span` steps.

    The bias of the gate that keeps is log u with u uniform from 1 to `span` − 1, one draw for each unit, and that of an LSTM's
    input gate its negative; nothing else changes. "Chrono initialization" of Tallec and Ollivier 2018, section 2. Raises
    ValueError for a plain network, which has no gates, and for a span below 3.
    """
    if isinstance(layers, nn.RNN):
        raise ValueError("`memory_span` sets biases of gates, and the plain cell 'rnn' has none: leave it out.")
    if span < 3:
        raise ValueError(f"`memory_span` is {span}; expected at least 3 steps.")
    # torch stacks the gates: input, forget, candidate, output; or reset, update, candidate, where update 1 keeps.
    keeping = slice(layers.hidden_size, 2 * layers.hidden_size)
    for name, bias in layers.named_parameters():
        if name.startswith("bias_hh"):
            bias[keeping] = 0.0
            if isinstance(layers, nn.LSTM):
                bias[: layers.hidden_size] = 0.0
        elif name.startswith("bias_ih"):
            bias[keeping] = torch.empty(layers.hidden_size).uniform_(1, span - 1).log()
            if isinstance(layers, nn.LSTM):
                bias[: layers.hidden_size] = -bias[keeping]


class RecurrentClassifier(nn.Module):
    """Reads a sequence and classifies it by the last hidden state; images are read row by row."""

    def __init__(
        self,
        cell: Cell,
        inputs: int,
        width: int,
        layers: int,
        outputs: int,
        dropout: float,
        memory_span: int | None,
    ) -> None:
        super().__init__()
        self.recurrent = recurrent_layers(cell, inputs, width, layers, dropout=dropout)
        if memory_span is not None:
            spread_memory(self.recurrent, memory_span)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(sample, token, feature), or images (sample, 1, y, x) → (sample, outputs)."""
        hidden, _ = self.recurrent(inputs.squeeze(1) if inputs.ndim == 4 else inputs)
        return self.fc(self.dropout(hidden[:, -1]))


class CharacterModel(nn.Module):
    """Predicts each next character from those before it."""

    def __init__(
        self,
        cell: Cell,
        alphabet: int,
        embedding: int,
        width: int,
        layers: int,
        dropout: float,
        memory_span: int | None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, embedding)
        self.recurrent = recurrent_layers(cell, embedding, width, layers, dropout=dropout)
        if memory_span is not None:
            spread_memory(self.recurrent, memory_span)
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
    memory_span: int | None = None,
) -> RecurrentClassifier:
    """A plain, GRU or LSTM classifier of sequences of `inputs` numbers a token.

    With a `memory_span` the gates begin with memories of all lengths up to it (`spread_memory`).
    """
    return RecurrentClassifier(cell, inputs, width, layers, outputs, dropout, memory_span)


def character_model(
    cell: Cell = "lstm",
    alphabet: int = 65,
    embedding: int = 32,
    width: int = 128,
    layers: int = 1,
    dropout: float = 0.0,
    memory_span: int | None = None,
) -> CharacterModel:
    """A plain, GRU or LSTM model of text over `alphabet` characters.

    With a `memory_span` the gates begin with memories of all lengths up to it (`spread_memory`).
    """
    return CharacterModel(cell, alphabet, embedding, width, layers, dropout, memory_span)
