"""What can be read off the kernels of a convolution: size, doubles, roughness, and how far they are from others."""

from __future__ import annotations

import numpy as np

DUPLICATE_COSINE = 0.95
DEAD_SHARE = 0.01
"""Of the largest norm of a layer; a filter below it counts as dead."""
_GRID = 32
"""Frequencies a side at which a kernel's spectrum is taken."""
_HIGH = 0.25
"""Cycles per pixel from which on a frequency is high: half of the highest that a pixel grid can carry."""


def filter_norms(filters: np.ndarray) -> np.ndarray:
    """float64 (channel,): Frobenius norm of each of `filters` (channel, input_channel, ky, kx)."""
    return np.linalg.norm(filters.reshape(len(filters), -1).astype(np.float64), axis=1)


def dead_filters(filters: np.ndarray) -> np.ndarray:
    """bool (channel,): whose norm is below `DEAD_SHARE` of the largest; all, where all are zero."""
    norms = filter_norms(filters)
    return norms <= DEAD_SHARE * norms.max() if norms.max() == 0 else norms < DEAD_SHARE * norms.max()


def duplicate_filters(filters: np.ndarray, cosine: float = DUPLICATE_COSINE) -> np.ndarray:
    """bool (channel,): which have a cosine above `cosine` with another one; zero filters have none."""
    flat = filters.reshape(len(filters), -1).astype(np.float64)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    unit = np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 0)
    found = np.zeros(len(unit), bool)
    for start in range(0, len(unit), 256):
        cosines = unit[start : start + 256] @ unit.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -1.0
        found[start : start + 256] = (cosines > cosine).any(1)
    return found


def chance_of_duplicates(count: int, size: int, cosine: float = DUPLICATE_COSINE) -> float:
    """The expected share of `count` filters of `size` weights that have a double, were all directions random.

    The cosine of two random directions in d dimensions is above c with probability I(1 − c²; (d − 1)/2, 1/2) / 2 (the area
    of a cap of the sphere, Li 2011).
    """
    from scipy.special import betainc

    if size < 2 or count < 2:
        return 0.5 if size == 1 and count == 2 else 1.0 if size == 1 and count > 2 else 0.0
    cap = float(betainc((size - 1) / 2, 0.5, 1 - cosine**2)) / 2
    return 1 - (1 - cap) ** (count - 1)


def high_frequency_shares(filters: np.ndarray) -> np.ndarray:
    """float64 (channel,): the share of each filter's power at `_HIGH` cycles per pixel and above, in any direction.

    By the Fourier transform of the kernels with zeros around them, summed over input channels. Independent random weights
    give `white_share()` for any size of kernel. NaN for a filter that is zero.
    """
    sums = np.zeros((len(filters), 2))
    high = _high_frequencies(filters.shape[2:])
    for channel, kernel in enumerate(filters.astype(np.float64)):
        power = (np.abs(np.fft.fft2(kernel, high.shape)) ** 2).sum(0)
        sums[channel] = power[high].sum(), power.sum()
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)


def white_share(shape: tuple[int, ...] = (1, 1)) -> float:
    """What independent random weights of kernels of `shape` give on average."""
    return float(_high_frequencies(shape).mean())


def _high_frequencies(shape: tuple[int, ...]) -> np.ndarray:
    height, width = (max(_GRID, 2 * side) for side in shape)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    return np.hypot(y, x) >= _HIGH


def cosines_between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """float64 (channel,): the cosine of each filter of `after` with the same one of `before`; NaN where one is zero."""
    first, second = (item.reshape(len(item), -1).astype(np.float64) for item in (before, after))
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(1)
    return np.clip(np.divide(products, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0), -1, 1)
