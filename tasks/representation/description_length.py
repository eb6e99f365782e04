"""How many bits it takes to tell the labels of a probe's samples, given its features: online (prequential) code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stratascope.tasks.representation.probe_classifiers import LogisticPath

FRACTIONS = (0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Up to which share of the samples each block reaches; Voita and Titov 2020, section 3.2, begin at a tenth of a percent."""
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class OnlineCode:
    """The code's length, sample by sample."""

    bits: np.ndarray
    """float64 (sample,): what each sample's label costs, in the order in which they are told."""
    classes: int
    model_bits: float
    """What it costs to tell the penalty."""

    @property
    def length(self) -> float:
        """Bits per sample."""
        return float((self.bits.sum() + self.model_bits) / len(self.bits))

    @property
    def uniform_length(self) -> float:
        """Bits per sample of a code that knows the number of classes and nothing else."""
        return float(np.log2(self.classes))


def block_ends(samples: int, fractions: Sequence[float]) -> list[int]:
    """Where each block ends, ascending and different; the last one ends with the samples."""
    ends = {min(samples, max(1, round(share * samples))) for share in fractions} | {samples}
    return sorted(ends)


def online_code(
    features: np.ndarray,
    places: np.ndarray,
    strength: float,
    choices: int = 1,
    fractions: Sequence[float] = FRACTIONS,
) -> OnlineCode:
    """The prequential code of classes `places` (sample,) given `features` (sample, feature). Voita and Titov 2020, eq. 3.

    The first block is told by the uniform code, each later one by the probabilities of a probe that was trained on all
    blocks before it, with C = `strength`; that C was one of `choices` costs log2 `choices` bits. The probe's
    probabilities of t samples are mixed with one more sample's worth of the uniform distribution, so that a class not
    seen yet costs log2(K (t + 1)) bits and not infinitely many. The samples are told in the order in which they stand.
    """
    classes = int(places.max()) + 1
    ends = block_ends(len(places), fractions)
    found = np.full(len(places), np.log2(classes))
    for start, end in pairwise(ends):
        if len(np.unique(places[:start])) < 2:
            continue
        path = LogisticPath(classes, (strength,), _TOLERANCE)
        for model in path.fits(features[:start], places[:start]):
            given = model.probabilities(features[start:end])[np.arange(end - start), places[start:end]]
            found[start:end] = -np.log2((start * given + 1.0 / classes) / (start + 1))
    return OnlineCode(found, classes, float(np.log2(choices)))
