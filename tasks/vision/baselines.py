"""Pictures that stand for "nothing there", which attribution along a path or by occlusion starts from."""

from __future__ import annotations

from typing import Literal

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.probes import Probe

Baseline = Literal["black", "mean", "blur", "zero"]
BASELINES: tuple[Baseline, ...] = ("black", "mean", "blur", "zero")
_MOST_AVERAGED = 1000


def baseline_of(name: Baseline, inputs: np.ndarray, probe: Probe) -> np.ndarray:
    """float32 (sample, channel, y, x): the baseline of each of `inputs`, normalised like them.

    `black` is what a black picture becomes by the probe's normalisation (zero in the network's own numbers is
    the mean picture's grey instead: featurevis P7). `mean` is the mean picture of the probe's first 1,000 samples by id.
    `blur` is each picture under a Gaussian of an eighth of its shorter side. `zero` is zero. Raises DoesNotApply for
    `black` where the normalisation is not known.
    """
    if name == "zero":
        return np.zeros_like(inputs, dtype=np.float32)
    if name == "black":
        if probe.normalization is None:
            raise DoesNotApply(
                f"baseline 'black': how probe {probe.name!r} was normalised is not known; use `mean`, `blur` or `zero`, "
                "or give the probe `denormalize`."
            )
        channels = inputs.shape[1]
        mean, std = (
            np.broadcast_to(np.asarray(part, np.float32), (channels,))
            for part in (probe.normalization.mean, probe.normalization.std)
        )
        return np.broadcast_to((-mean / std)[None, :, None, None], inputs.shape).astype(np.float32)
    if name == "mean":
        order = np.argsort([str(item) for item in probe.sample_id.tolist()], kind="stable")[:_MOST_AVERAGED]
        chosen = np.sort(order)
        total = np.zeros(inputs.shape[1:], np.float64)
        for start in range(0, len(probe), 1024):
            rows = chosen[(chosen >= start) & (chosen < start + 1024)]
            if len(rows):
                total += np.asarray(probe.inputs_at(slice(start, start + 1024)))[rows - start].sum(0, np.float64)
        return np.broadcast_to((total / len(chosen)).astype(np.float32), inputs.shape).copy()
    from scipy.ndimage import gaussian_filter

    width = min(inputs.shape[2:]) / 8
    return gaussian_filter(inputs.astype(np.float32), (0, 0, width, width), mode="nearest")
