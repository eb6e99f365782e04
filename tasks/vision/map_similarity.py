"""How alike two maps of the same picture are: in direction, in order, in structure."""

from __future__ import annotations

import numpy as np

_WINDOW = 1.5
"""Standard deviation in pixels of the window of structural similarity, as in the paper."""
_TRUNCATE = 3.5


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 (sample,): the cosine between the maps of each sample (sample, …); NaN where one is zero everywhere."""
    one, other = (np.asarray(maps, np.float64).reshape(len(maps), -1) for maps in (first, second))
    sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    products = np.einsum("ij,ij->i", one, other)
    return np.divide(products, sizes, out=np.full(len(one), np.nan), where=sizes > 0).clip(-1, 1)


def rank_correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 (sample,): Spearman's correlation of the values at the same places, ties by their mean rank.

    NaN where all values of a map are the same, or one is not finite.
    """
    from scipy.stats import rankdata

    pair = [np.asarray(maps).reshape(len(maps), -1) for maps in (first, second)]
    sound = np.isfinite(pair[0]).all(1) & np.isfinite(pair[1]).all(1)
    ranks = [rankdata(np.where(sound[:, None], maps, 0.0), axis=1) for maps in pair]
    return cosines(*(rank - rank.mean(1, keepdims=True) for rank in ranks))


def structural_similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 (sample,): mean structural similarity of sizes (sample, y, x), each divided by its largest.

    Sizes are not below zero: of signed maps the measure would call a map and its opposite alike, since both of its
    factors change their sign. Gaussian windows of 1.5 pixels; the range is 1. Two maps of zeros are alike (1). Raises
    ValueError for values below zero. Wang et al. 2004, eq. 13.
    """
    from scipy.ndimage import gaussian_filter

    one, other = (_within_one(np.asarray(maps, np.float64)) for maps in (first, second))

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, (0, _WINDOW, _WINDOW), mode="reflect", truncate=_TRUNCATE)

    mean, mean_other = smooth(one), smooth(other)
    variance = smooth(one**2) - mean**2
    variance_other = smooth(other**2) - mean_other**2
    covariance = smooth(one * other) - mean * mean_other
    low, high = 0.01**2, 0.03**2
    alike = (2 * mean * mean_other + low) * (2 * covariance + high)
    found = alike / ((mean**2 + mean_other**2 + low) * (variance + variance_other + high))
    return found.mean((1, 2))


def _within_one(sizes: np.ndarray) -> np.ndarray:
    if (sizes < 0).any():
        raise ValueError("structural similarity compares sizes; there are values below zero.")
    largest = sizes.max((1, 2), keepdims=True)
    return np.divide(sizes, largest, out=np.zeros_like(sizes), where=largest > 0)
