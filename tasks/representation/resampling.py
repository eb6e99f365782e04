"""How sure a number is: bootstrap and subsample intervals, and what chance alone would give."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ROUNDS = 200


def bootstrap_counts(samples: int, rounds: int, seed: int) -> np.ndarray:
    """int64 (rounds, samples): how often each sample is drawn in each round, with replacement. Efron 1979."""
    generator = np.random.default_rng([seed, samples, rounds])
    return generator.multinomial(samples, np.full(samples, 1.0 / samples), size=rounds)


def stratified_counts(classes: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """The same within each class (sample,), so that no round loses one."""
    found = np.zeros((rounds, len(classes)), np.int64)
    for number, value in enumerate(np.unique(classes)):
        members = np.flatnonzero(classes == value)
        generator = np.random.default_rng([seed, len(classes), rounds, number])
        found[:, members] = generator.multinomial(
            len(members), np.full(len(members), 1 / len(members)), size=rounds
        )
    return found


def subsamples(samples: int, rounds: int, seed: int, share: float = 0.5) -> Iterator[np.ndarray]:
    """Ascending row numbers, `share` of `samples` in each round, without replacement.

    For measures that a repeated sample breaks (distances to the nearest neighbour). Politis and Romano 1994.
    """
    size = max(2, round(samples * share))
    for number in range(rounds):
        generator = np.random.default_rng([seed, samples, number])
        yield np.sort(generator.permutation(samples)[:size])


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The ends of the middle `level` of bootstrap `values` (round,); NaN twice where fewer than two are finite."""
    sound = values[np.isfinite(values)]
    if len(sound) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(sound, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def subsample_interval(
    value: float, values: np.ndarray, share: float = 0.5, level: float = 0.95
) -> tuple[float, float]:
    """The interval of `value` from its `values` on subsamples without replacement, which hold `share` of all.

    Their spread around their own mean is shrunk to the size of the whole: a mean over m of n samples drawn without
    replacement varies (n - m) / m times as much as one over all n does. Politis, Romano and Wolf 1999, section 2.
    """
    sound = values[np.isfinite(values)]
    if len(sound) < 2 or not np.isfinite(value):
        return float("nan"), float("nan")
    shrink = np.sqrt(share / (1.0 - share))
    low, high = np.quantile((sound - sound.mean()) * shrink, [(1 - level) / 2, (1 + level) / 2])
    return float(value + low), float(value + high)


def permutations(samples: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """Seeded orders of `samples`, one a round: who keeps the values and shuffles the labels breaks their tie."""
    for number in range(rounds):
        yield np.random.default_rng([seed, 1, samples, number]).permutation(samples)


def permutation_p(value: float, null: np.ndarray) -> float:
    """Share of `null` (round,) at or above `value`, the value itself counted in: never 0. Phipson and Smyth 2010."""
    sound = null[np.isfinite(null)]
    return float((1 + (sound >= value).sum()) / (1 + len(sound)))
