"""Whether a few samples are near to everything: how often each is among the nearest of others. Plain functions."""

from __future__ import annotations

import numpy as np


def occurrences(order: np.ndarray, samples: int) -> np.ndarray:
    """int64 (sample,): how often each of `samples` is among the neighbours `order` (sample, neighbour)."""
    return np.bincount(order.ravel(), minlength=samples)


def skewness(counts: np.ndarray) -> float:
    """Third central moment of `counts` (sample,) by the cube of their standard deviation. Radovanović et al. 2010.

    NaN where all are equal.
    """
    away = counts - counts.mean()
    deviation = np.sqrt((away**2).mean())
    return float((away**3).mean() / deviation**3) if deviation > 0 else float("nan")


def hub_share(counts: np.ndarray, neighbours: int) -> float:
    """Share of all neighbours' places that hubs hold: samples that hold more than twice the `neighbours` of an even share."""
    return float(counts[counts > 2 * neighbours].sum() / counts.sum())


def orphan_share(counts: np.ndarray) -> float:
    """Share of samples that are no one's neighbour."""
    return float((counts == 0).mean())
