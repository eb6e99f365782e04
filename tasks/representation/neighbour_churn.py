"""How many of each sample's nearest neighbours were replaced from one checkpoint to another."""

from __future__ import annotations

import numpy as np


def replaced_share(before: np.ndarray, after: np.ndarray, samples: int) -> np.ndarray:
    """float32 (sample,): the share of each sample's neighbours that are new.

    `before` and `after` (sample, rank) name each sample's k nearest of `samples` samples, without repetition; the order
    of the ranks does not count. 1 − the stability of Wendlandt, Kummerfeld and Mihalcea (2018, section 3).
    """
    known = np.zeros((len(before), samples), bool)
    np.put_along_axis(known, before, True, 1)
    kept = np.take_along_axis(known, after, 1).sum(1)
    found: np.ndarray = (1.0 - kept / after.shape[1]).astype(np.float32)
    return found


def chance_of_replacement(neighbours: int, samples: int) -> float:
    """The share that is new on average where the later neighbours are drawn at random: 1 − k/(n − 1)."""
    return 1.0 - neighbours / (samples - 1)
