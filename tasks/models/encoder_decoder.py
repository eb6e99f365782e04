"""An encoder and decoder with additive attention (Bahdanau, Cho and Bengio 2015)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stratascope.tasks.models.recurrent import recurrent_layers


class AdditiveAttention(nn.Module):
    """Weights α = softmax over the keys of v · tanh(W q + U k), and the mean of the values under them (eq. 6)."""

    def __init__(self, query: int, key: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(query, width, bias=False)
        self.key = nn.Linear(key, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, queries: Tensor, keys: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Queries (sample, target token, query), keys (sample, source token, key), padding bool (sample, source).

        Returns contexts (sample, target token, key) and weights (sample, target token, source token). Each row of
        the weights sums to 1; keys where `padding` is true get 0.
        """
        energies = self.score(torch.tanh(self.query(queries)[:, :, None] + self.key(keys)[:, None]))[..., 0]
        if padding is not None:
            energies = energies.masked_fill(padding[:, None], -math.inf)
        weights = energies.softmax(-1)
        return weights @ keys, weights


class AttentionEncoderDecoder(nn.Module):
    """Translates a sequence of codes: a bidirectional encoder, and a decoder that looks back at all of it.

    The score is that of Bahdanau et al. 2015. The order is that of Luong et al. 2015, section 3: the decoder first
    reads the previous tokens, its states then ask for their contexts. So `attention` runs once for all target
    tokens, and its output holds the whole alignment (sample, target token, source token).
    """

    def __init__(
        self, source: int, target: int, embedding: int, width: int, cell: Literal["gru", "lstm"], padding_index: int,
        start_index: int | None, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.source_embedding = nn.Embedding(source, embedding, padding_idx=padding_index)
        self.target_embedding = nn.Embedding(target, embedding, padding_idx=padding_index)
        self.encoder = recurrent_layers(cell, embedding, width, 1, bidirectional=True)
        self.bridge = nn.Linear(width, width)
        self.decoder = recurrent_layers(cell, embedding, width, 1)
        self.attention = AdditiveAttention(width, 2 * width, width)
        self.combine = nn.Linear(3 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, target)
        self._padding_index, self._start_index = padding_index, start_index

    def forward(self, inputs: Mapping[str, Tensor] | Tensor, target: Tensor | None = None) -> Tensor:
        """A mapping with `source` and `target`, or the two: codes int64 (sample, token) each.

        Returns scores (sample, target token, vocabulary). Teacher forcing: token i of the target is predicted from
        the true tokens before it, so it may be the network's input and its label at once. Without a `start_index`
        the target begins with a mark of its own and is read as it is: place i then predicts what follows token i.
        Padding stands at the end.
        """
        if isinstance(inputs, Tensor):
            if target is None:
                raise ValueError("give `source` and `target`, as a mapping or one after the other")
            source = inputs
        else:
            source, target = inputs["source"], inputs["target"]
        padding = source == self._padding_index
        keys, start = self._encoded(source, padding)
        states, _ = self.decoder(self.target_embedding(self._shown(target)), start)
        contexts, _ = self.attention(states, keys, padding)
        combined = torch.tanh(self.combine(torch.cat((states, contexts), -1)))
        return self.head(self.dropout(combined))

    def _shown(self, target: Tensor) -> Tensor:
        """What the decoder reads at each place (sample, target token)."""
        if self._start_index is None:
            return target
        first = torch.full_like(target[:, :1], self._start_index)
        return torch.cat((first, target[:, :-1]), 1)

    def _encoded(self, source: Tensor, padding: Tensor) -> tuple[Tensor, Any]:
        """States of all source tokens (sample, token, 2 · width) and the decoder's initial state."""
        lengths = (~padding).sum(1).cpu()
        packed = pack_padded_sequence(
            self.source_embedding(source), lengths, batch_first=True, enforce_sorted=False
        )
        encoded, last = self.encoder(packed)
        keys, _ = pad_packed_sequence(encoded, batch_first=True, total_length=source.shape[1])
        backward = (last[0] if isinstance(last, tuple) else last)[1:]
        start = torch.tanh(self.bridge(backward))
        return keys, (start, torch.zeros_like(start)) if isinstance(last, tuple) else start


def attention_encoder_decoder(
    source: int = 64,
    target: int = 64,
    embedding: int = 32,
    width: int = 64,
    cell: Literal["gru", "lstm"] = "gru",
    padding_index: int = 0,
    start_index: int | None = 1,
    dropout: float = 0.0,
) -> AttentionEncoderDecoder:
    """An encoder and decoder with additive attention between vocabularies of `source` and `target` codes.

    `start_index` is put before the target, which moves by one place; None for targets that begin with a mark already.
    """
    return AttentionEncoderDecoder(source, target, embedding, width, cell, padding_index, start_index, dropout)
