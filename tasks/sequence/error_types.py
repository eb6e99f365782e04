"""Kinds of errors of a model of characters, peeled off one after the other as Karpathy et al. 2015 do in section 4.4.

An error is a character to which the model gave less than a half. Oracles of rising power take errors away, and each error
belongs to the first that would have avoided it:

- `n_gram_1` … `n_gram_9`: an n-gram model of the training text, without smoothing, gives the character more than a half; the
  smallest such n counts.
- `memory_m`: a letter behind the first one of a word that stands, whole, among the m characters before; the smallest m counts.
- `rare_word`: a letter behind the first one of a word that the training text holds `rare` times at most.
- `word_start`: the first letter of a word: to know it, the model must guess the next word.
- `punctuation`, `word_end`: a mark; a blank or the end of a line.
- `near_miss`: the character got 0.4 or more, so that a slightly better model had been right.
- `other`: everything else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

ERROR_BELOW = 0.5
NEAR = 0.4
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def n_gram_probabilities(training: np.ndarray, texts: np.ndarray, order: int) -> Iterator[np.ndarray]:
    """float64 (sample, token) for n = 1 … `order`: what the n-gram model of `training` gives to each token of `texts` but the
    first. Codes int64 (sample, token), -1 at padding.

    Model n looks at the n - 1 tokens before; it gives 0 to what it has not seen, and NaN stands where a sample begins less
    than n - 1 tokens before.
    """
    rows = len(training)
    length = max(training.shape[1], texts.shape[1])
    both = np.full((rows + len(texts), length), -1, np.int64)
    both[:rows, : training.shape[1]] = training
    both[rows:, : texts.shape[1]] = texts
    context = np.zeros(both.shape, np.int64)
    for _ in range(order):
        # `context` at a token numbers the n - 1 tokens before it; those with a gap or an end before them are -1.
        sound = (context >= 0) & (both >= 0)
        keys = np.where(sound, context * (both.max() + 1) + both, -1)
        _, gram = np.unique(keys, return_inverse=True)
        gram = gram.reshape(both.shape)
        seen = sound[:rows]
        of_gram = np.bincount(gram[:rows][seen], minlength=int(gram.max()) + 1)
        of_context = np.bincount(context[:rows][seen], minlength=int(context.max()) + 1)
        there = sound[rows:, 1 : texts.shape[1]]
        hits = of_gram[gram[rows:, 1 : texts.shape[1]]]
        tries = of_context[np.maximum(context[rows:, 1 : texts.shape[1]], 0)]
        yield np.where(there, hits / np.maximum(tries, 1), np.nan)
        following = np.full(both.shape, -1, np.int64)
        following[:, 1:] = np.where(sound, gram, -1)[:, :-1]
        context = following


def least_orders(training: np.ndarray, texts: np.ndarray, order: int) -> np.ndarray:
    """int8 (sample, token): the smallest n whose model gives the token more than a half; 0 where none does."""
    found = np.zeros((len(texts), texts.shape[1] - 1), np.int8)
    for n, given in enumerate(n_gram_probabilities(training, texts, order), 1):
        found[(np.nan_to_num(given) > ERROR_BELOW) & (found == 0)] = n
    return found


def word_counts(texts: Sequence[str]) -> Counter[str]:
    """How often each word stands in `texts`; those cut by an edge are counted as they are, which makes few words rarer."""
    return Counter(match.group() for text in texts for match in _WORD.finditer(text))


@dataclass(frozen=True)
class ErrorTypes:
    """The kinds, in the order in which they are peeled off."""

    order: int
    memory: tuple[int, ...]
    rare: int

    @property
    def names(self) -> tuple[str, ...]:
        grams = tuple(f"n_gram_{n}" for n in range(1, self.order + 1))
        memory = tuple(f"memory_{length}" for length in self.memory)
        return (*grams, *memory, *(("rare_word",) if self.rare >= 0 else ()), "word_start", "punctuation", "word_end", "near_miss", "other")  # fmt: skip

    def assign(
        self, text: str, probability: np.ndarray, least_order: np.ndarray, counts: Counter[str] | None
    ) -> np.ndarray:
        """int64 (token,): the number of each error's kind in `names`, -1 where there is none.

        `probability` (token,) is what the model gave to the characters of `text` but the first; `least_order` (token,) is
        that of `least_orders`.
        """
        kinds = self._of_words(text, counts)
        names = {name: number for number, name in enumerate(self.names)}
        kinds = np.where(kinds < 0, np.where(probability >= NEAR, names["near_miss"], names["other"]), kinds)
        kinds = np.where(least_order > 0, least_order - 1, kinds)
        return np.where(probability < ERROR_BELOW, kinds, -1)

    def _of_words(self, text: str, counts: Counter[str] | None) -> np.ndarray:
        """The kinds that the text alone decides, -1 for none."""
        names = {name: number for number, name in enumerate(self.names)}
        kinds = np.full(len(text), -1, np.int64)
        for place, character in enumerate(text):
            if character.isspace():
                kinds[place] = names["word_end"]
            elif not character.isalnum():
                kinds[place] = names["punctuation"]
        last: dict[str, int] = {}
        for match in _WORD.finditer(text):
            word, start, stop = match.group(), match.start(), match.end()
            kind = -1
            if counts is not None and counts[word] <= self.rare:
                kind = names["rare_word"]
            if word in last:
                kind = next(
                    (names[f"memory_{length}"] for length in self.memory if start - last[word] <= length), kind
                )
            kinds[start:stop] = kind
            kinds[start] = names["word_start"]
            last[word] = start
        return kinds[1:]
