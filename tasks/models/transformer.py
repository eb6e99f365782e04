"""Small transformers for images and for text."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TransformerBlock(nn.Module):
    """Self-attention, then (if `expansion` is not 0) a two-layer perceptron, each added to what came in.

    Layer norm stands before each part ("pre-norm", Xiong et al. 2020) or nowhere. The attention is an
    `nn.MultiheadAttention` that is asked for its weights head by head, so that a hook sees them.
    """

    def __init__(self, width: int, heads: int, expansion: int, layer_norm: bool, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.mlp: nn.Sequential | None = None
        if expansion:
            self.norm2 = nn.LayerNorm(width) if layer_norm else nn.Identity()
            self.mlp = nn.Sequential(
                nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
            )
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor, mask: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """(sample, token, width) → the same shape.

        `mask` bool (token, token) and `padding` bool (sample, token) are true where a key must not be seen.
        """
        normed = self.norm1(inputs)
        attended, _ = self.attention(
            normed, normed, normed, attn_mask=mask, key_padding_mask=padding, average_attn_weights=False
        )
        hidden = inputs + self.dropout(attended)
        return hidden if self.mlp is None else hidden + self.dropout(self.mlp(self.norm2(hidden)))


class VisionTransformer(nn.Module):
    """Patches as tokens behind a class token, learned positions, and a linear layer on the class token."""

    def __init__(
        self, size: int, patch: int, channels: int, width: int, heads: int, depth: int, expansion: int, outputs: int,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, expansion, True, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(sample, channel, y, x) → (sample, outputs)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        hidden = torch.cat((self.class_token.expand(len(tokens), -1, -1), tokens), 1) + self.positions
        hidden = self.dropout(hidden)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden)[:, 0])


class TextTransformer(nn.Module):
    """Token and learned position embeddings, blocks, and scores for each token's place."""

    def __init__(
        self, alphabet: int, length: int, width: int, heads: int, depth: int, expansion: int, layer_norm: bool,
        causal: bool, dropout: float, padding_index: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(alphabet, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, expansion, layer_norm, dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.head = nn.Linear(width, alphabet)
        self._causal, self._length, self._padding_index = causal, length, padding_index

    def forward(self, codes: Tensor) -> Tensor:
        """Codes int64 (sample, token) → scores (sample, token, alphabet). Raises ValueError for too long a text."""
        count = codes.shape[1]
        if count > self._length:
            raise ValueError(f"{count} tokens are more than the {self._length} positions of this network")
        places = torch.arange(count, device=codes.device)
        mask = torch.ones(count, count, dtype=torch.bool, device=codes.device).triu(1) if self._causal else None
        padding = None if self._padding_index is None else codes == self._padding_index
        hidden = self.dropout(self.embedding(codes) + self.positions(places))
        for block in self.blocks:
            hidden = block(hidden, mask, padding)
        return self.head(self.norm(hidden))


def vision_transformer(
    size: int = 28,
    patch: int = 7,
    channels: int = 1,
    width: int = 64,
    heads: int = 4,
    depth: int = 4,
    expansion: int = 2,
    outputs: int = 10,
    dropout: float = 0.0,
) -> VisionTransformer:
    """A small vision transformer (Dosovitskiy et al. 2021) for square images of `size` pixels.

    Raises ValueError where `patch` does not divide `size`.
    """
    if size % patch:
        raise ValueError(f"patches of {patch} pixels do not divide images of {size}.")
    return VisionTransformer(size, patch, channels, width, heads, depth, expansion, outputs, dropout)


def text_transformer(
    alphabet: int = 65,
    length: int = 64,
    width: int = 64,
    heads: int = 4,
    depth: int = 2,
    expansion: int = 4,
    layer_norm: bool = True,
    causal: bool = True,
    dropout: float = 0.0,
    padding_index: int | None = None,
) -> TextTransformer:
    """A transformer over at most `length` tokens (Vaswani et al. 2017; Radford et al. 2019 where causal).

    `expansion` 0 and `layer_norm` false leave attention alone. Tokens `padding_index` are seen by no other token;
    padding stands at the end, so that no row of a causal mask is empty.
    """
    return TextTransformer(
        alphabet, length, width, heads, depth, expansion, layer_norm, causal, dropout, padding_index
    )
