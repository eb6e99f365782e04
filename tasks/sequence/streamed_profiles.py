"""Means over samples of curves over the lag, with intervals, added up batch by batch in memory that does not grow."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from stratascope.tasks.representation.resampling import percentile_interval


class StreamedProfile:
    """Sums of curves (sample, lag) of which some values may be unknown (NaN); lags may grow from batch to batch.

    Intervals are those of the Poisson bootstrap (Hanley and MacGibbon 2006): in each round every sample counts so many
    times as a draw from a Poisson distribution with mean 1 says. The draws belong to the sample's id, so that neither
    batches nor the order of the samples are part of the result, beyond rounding.
    """

    def __init__(self, rounds: int = 200, seed: int = 0) -> None:
        self._rounds, self._seed = rounds, seed
        self._sums = np.zeros((rounds + 1, 0))
        self._counts = np.zeros((rounds + 1, 0))
        self.samples = 0
        """So many had a value at all."""

    def add(self, values: np.ndarray, sample_id: np.ndarray) -> None:
        """Add `values` float (sample, lag) of the samples called `sample_id`."""
        wider = values.shape[1] - self._sums.shape[1]
        if wider > 0:
            self._sums, self._counts = (np.pad(item, ((0, 0), (0, wider))) for item in (self._sums, self._counts))
        weights = self._weights(sample_id)
        known = np.isfinite(values)
        self.samples += int(known.any(1).sum())
        self._sums[:, : values.shape[1]] += weights @ np.where(known, values, 0.0).astype(np.float64)
        self._counts[:, : values.shape[1]] += weights @ known.astype(np.float64)

    def _weights(self, sample_id: np.ndarray) -> np.ndarray:
        """float64 (1 + round, sample): ones, then how often each sample counts."""
        weights = np.ones((1 + self._rounds, len(sample_id)))
        for place, name in enumerate(sample_id.tolist() if self._rounds else ()):
            generator = np.random.default_rng([self._seed, zlib.crc32(str(name).encode())])
            weights[1:, place] = generator.poisson(1.0, self._rounds)
        return weights

    @property
    def curves(self) -> np.ndarray:
        """float64 (1 + round, lag): the mean over all samples, then that of each round; NaN where nothing is known."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self._counts > 0, self._sums / self._counts, np.nan)

    @property
    def mean(self) -> np.ndarray:
        """float64 (lag,)."""
        return self.curves[0]

    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 (lag,): the ends of the 95 % interval of each mean."""
        ends = [percentile_interval(column) for column in self.curves[1:].T]
        return np.array([low for low, _ in ends]), np.array([high for _, high in ends])

    def number(self, of: Callable[[np.ndarray], float]) -> tuple[float, float, float]:
        """`of` the mean curve, and the ends of its 95 % interval."""
        curves = self.curves
        low, high = percentile_interval(np.array([of(curve) for curve in curves[1:]]))
        return of(curves[0]), low, high


def batch_rows(count: int, size: int) -> Sequence[slice]:
    """The rows of each batch of at most `size`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
