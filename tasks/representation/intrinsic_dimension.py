"""How many numbers it takes to say where on its manifold a sample lies, from distances to neighbours. Plain functions."""

from __future__ import annotations

import numpy as np

DISCARDED = 0.1
"""Share of the largest ratios that TwoNN leaves out."""


def two_nearest(distance: np.ndarray) -> float:
    """TwoNN from `distance` (sample, at least 2), nearest first and not 0. Facco et al. 2017.

    The slope of the line through the origin of -log(1 - F) over log(r2 / r1), F being i / n for the i-th smallest; the largest
    tenth of the ratios is discarded, as in the paper. NaN where all ratios are 1.
    """
    logs = np.sort(np.log(distance[:, 1] / distance[:, 0]))
    kept = int(len(logs) * (1 - DISCARDED))
    across, up = logs[:kept], -np.log1p(-np.arange(1, kept + 1) / len(logs))
    squares = float(across @ across)
    return float(across @ up / squares) if squares > 0 else float("nan")


def maximum_likelihood(distance: np.ndarray) -> float:
    """Levina and Bickel's estimator from `distance` (sample, neighbour), nearest first and not 0.

    Inverses are averaged over samples and neighbours (MacKay and Ghahramani 2005), which removes most of the bias that
    averaging the estimates of Levina and Bickel 2004 has at few neighbours. NaN where all distances are equal.
    """
    inverse = float(np.log(distance[:, -1:] / distance[:, :-1]).mean())
    return 1.0 / inverse if inverse > 0 else float("nan")
