"""What is said of channels from one number for each sample and channel: classes, redundancy, the strongest examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

REDUNDANT = 0.95
"""Two channels whose means over the samples correlate more strongly than this say the same."""


def class_means(values: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """float64 (class, channel): the mean of `values` (sample, channel) over each class; NaN for a class without samples."""
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, classes, values.astype(np.float64))
    sizes = np.bincount(classes, minlength=count).astype(np.float64)
    return np.divide(sums, sizes[:, None], out=np.full_like(sums, np.nan), where=sizes[:, None] > 0)


def strongest_by_mass(peaks: np.ndarray, share: float) -> np.ndarray:
    """bool (sample, channel): the fewest channels of each sample that together hold `share` of its mass.

    The mass of a channel is its largest value over the positions, `peaks` (sample, channel), and nothing where that
    is below 0. Of equal channels the lower number comes first. A sample without any mass has none. Hohman et al. 2019,
    section 6.1, take a share of 0.03 of layers with hundreds of channels.
    """
    mass = np.maximum(peaks.astype(np.float64), 0)
    order = np.argsort(-mass, axis=1, kind="stable")
    sorted_mass = np.take_along_axis(mass, order, 1)
    before = np.cumsum(sorted_mass, 1) - sorted_mass
    # Rounding must not draw in one channel more once the share is reached.
    wanted = (before < share * mass.sum(1, keepdims=True) * (1 - 1e-12)) & (sorted_mass > 0)
    found = np.zeros(mass.shape, bool)
    np.put_along_axis(found, order, wanted, 1)
    return found


def class_counts(members: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """int32 (class, channel): in how many samples of each class a channel is among the `members` (sample, channel)."""
    found = np.zeros((count, members.shape[1]), np.int32)
    np.add.at(found, classes, members.astype(np.int32))
    return found


def class_selectivity(means: np.ndarray) -> np.ndarray:
    """float64 (channel,) from 0 to 1: how far a channel prefers one class, from its `means` (class, channel) ≥ 0.

    (μ_max − μ_rest) / (μ_max + μ_rest), where μ_max is the largest class mean and μ_rest the mean of the others
    (Morcos et al. 2018, section 2.3). NaN where a channel is silent. Raises ValueError for fewer than two classes.
    """
    known = means[np.isfinite(means).all(1)]
    if len(known) < 2:
        raise ValueError("class selectivity needs two classes with samples.")
    largest = known.max(0)
    rest = (known.sum(0) - largest) / (len(known) - 1)
    total = largest + rest
    return np.divide(largest - rest, total, out=np.full(total.shape, np.nan), where=total > 0)


def preferred_class(means: np.ndarray) -> np.ndarray:
    """int64 (channel,): the class with the largest of `means` (class, channel); -1 where all are 0 or unknown."""
    filled = np.where(np.isfinite(means), means, -np.inf)
    return np.where(filled.max(0) > 0, filled.argmax(0), -1)


def correlation(values: np.ndarray) -> np.ndarray:
    """float64 (channel, other_channel): Pearson's r of `values` (sample, channel); NaN for channels that do not vary."""
    centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    norms = np.linalg.norm(centred, axis=0)
    scale = np.abs(values).max(0, initial=0).astype(np.float64)
    # What float32 rounding alone moves is no variation.
    varies = norms > 1e-6 * scale * np.sqrt(max(1, len(values)))
    scaled = np.divide(centred, norms, out=np.zeros_like(centred), where=varies)
    found = np.clip(scaled.T @ scaled, -1, 1)
    found[~varies] = np.nan
    found[:, ~varies] = np.nan
    return found


def redundant_channels(correlations: np.ndarray, limit: float = REDUNDANT) -> np.ndarray:
    """bool (channel,): whether another channel correlates with it by more than `limit`, whatever the sign."""
    others = np.abs(np.nan_to_num(correlations))
    np.fill_diagonal(others, 0)
    return (others > limit).any(1)


def effective_number(correlations: np.ndarray) -> float:
    """How many independent channels would spread as evenly: (Σ λ)² / Σ λ² of the eigenvalues of the correlations.

    Over the channels that vary; as many as there are where none correlates, 1 where all say the same. 0 where none
    varies. No channel counts more for being louder.
    """
    varies = np.isfinite(np.diag(correlations))
    if not varies.any():
        return 0.0
    kept = correlations[np.ix_(varies, varies)]
    return float(len(kept) ** 2 / np.square(kept).sum())


def rank_agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two estimates (channel,) over the channels that both know; NaN below three."""
    from scipy.stats import spearmanr

    known = np.isfinite(first) & np.isfinite(second)
    if known.sum() < 3 or np.ptp(first[known]) == 0 or np.ptp(second[known]) == 0:
        return float("nan")
    return float(spearmanr(first[known], second[known]).statistic)


def top_examples(peaks: np.ndarray, number: int) -> np.ndarray:
    """int32 (channel, rank): the samples with the largest `peaks` (sample, channel); of equal ones the earlier comes first."""
    return np.argsort(-peaks, axis=0, kind="stable")[:number].T.astype(np.int32)


def jaccard(first: Sequence[object], second: Sequence[object]) -> float:
    """|A ∩ B| / |A ∪ B| of two sets; NaN where both are empty."""
    one, other = set(first), set(second)
    union = one | other
    return len(one & other) / len(union) if union else float("nan")
