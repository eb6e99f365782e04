"""Independent streams of random numbers: one for each purpose, each a pure function of where it is used.

Nothing depends on a running generator: the order of an epoch, the noise of a step and the corruption of a sample
follow from the seed and from the epoch, the step or the sample's id alone. So a run can go on in the middle, and a
subset of the data or another batch order changes nothing else.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import xxhash

from stratascope.tasks.training.config import TrainConfig

Purpose = Literal["weights", "samples", "order", "corruption", "augmentation", "dropout", "noise"]
SEED_PURPOSES: tuple[Purpose, ...] = (
    "weights", "samples", "order", "corruption", "augmentation", "dropout", "noise"
)  # fmt: skip
_NUMBERS: dict[str, int] = {purpose: number for number, purpose in enumerate(SEED_PURPOSES, start=1)}


def base_seed(config: TrainConfig, purpose: Purpose) -> int:
    """The seed of `purpose`: its own one, or the run's."""
    own = getattr(config.seeds, purpose)
    return config.seed if own is None else int(own)


def derived_seed(seed: int, purpose: Purpose, *place: int) -> int:
    """A seed for one place (an epoch, a step) of one purpose: below 2⁵³, so that a float64 column holds it too."""
    state = np.random.SeedSequence([seed, _NUMBERS[purpose], *place]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(11))


def stream(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """The random numbers of one place (an epoch, a step) of one purpose."""
    return np.random.default_rng([seed, _NUMBERS[purpose], *place])


def sample_stream(seed: int, purpose: Purpose, kind: int, sample_id: int | str) -> np.random.Generator:
    """The random numbers of one sample: they depend on its id, not on which other samples there are.

    `kind` tells apart several draws for one sample.
    """
    whole = isinstance(sample_id, int | np.integer)
    number = int(sample_id) if whole else xxhash.xxh3_64_intdigest(str(sample_id).encode())
    counter = [0, number % 2**64, kind, int(whole)]
    return np.random.Generator(np.random.Philox(key=derived_seed(seed, purpose), counter=counter))


def batch_order(batch_seed: int, count: int) -> np.ndarray:
    """The order int64 (sample,) in which an epoch goes through `count` samples, from the trace's `batch_seed`."""
    return np.random.default_rng(batch_seed).permutation(count)
