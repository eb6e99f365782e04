"""The few samples that are looked at closely: the same ones at every checkpoint, with noise that belongs to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply, did_you_mean
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import NamedArray, Options
from stratascope.tasks.given_samples import classes_of
from stratascope.tasks.representation.features import chosen_rows


class SampleOptions(Options):
    """Which samples of each probe are looked at."""

    samples: int = Field(default=8, ge=1)
    """So many at most, the classes in proportion; the choice depends on the samples' ids and on `seed` alone."""
    sample_ids: tuple[str | int, ...] = ()
    """These and no others, by the ids that the probe gives them."""
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    """So many images, or altered copies of images, go through the network at once; no part of the result."""


@dataclass(frozen=True)
class ImageSamples:
    """Chosen samples of a probe whose inputs are images, ordered by class and then by a digest of their ids."""

    probe: str
    rows: np.ndarray
    """int64 (sample,): their places in the probe."""
    inputs: np.ndarray
    """float32 (sample, channel, y, x), normalised as the network was trained on."""
    targets: np.ndarray | None
    """(sample, …); None where the probe has none."""
    sample_id: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> np.ndarray | None:
        """int64 (sample,): the class of each; None where the targets are no classes of whole samples."""
        return classes_of(self.targets)


def chosen_samples(probe: Probe, options: SampleOptions) -> ImageSamples:
    """The samples that `options` mean. Raises DoesNotApply where the inputs are no images, or an id is not there."""
    inputs = probe.inputs
    if isinstance(inputs, dict):
        raise DoesNotApply(f"the inputs of probe {probe.name!r} have several parts; images are one array.")
    if len(inputs.shape) != 4 or np.dtype(inputs.dtype).kind not in "fiub" or probe.kind == "text":
        shape = ", ".join(str(size) for size in inputs.shape[1:])
        raise DoesNotApply(
            f"a sample of probe {probe.name!r} has the shape ({shape}); an image has (channel, y, x)."
        )
    rows = rows_of_ids(probe, options.sample_ids) if options.sample_ids else _rows(probe, options)
    if not len(rows):
        raise DoesNotApply(f"probe {probe.name!r} has no samples.")
    values = np.concatenate([np.asarray(probe.inputs_at(slice(int(row), int(row) + 1))) for row in rows])
    targets = None if probe.targets is None else probe.targets[rows]
    return ImageSamples(
        probe.name, rows, values.astype(np.float32), targets, probe.sample_id[rows], probe.class_names
    )


def _rows(probe: Probe, options: SampleOptions) -> np.ndarray:
    rows = chosen_rows(probe, options.samples, options.seed)
    targets = probe.targets
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
        return rows
    return rows[np.argsort(targets[rows], kind="stable")]


def rows_of_ids(probe: Probe, wanted: Sequence[str | int]) -> np.ndarray:
    """int64 (sample,): where in `probe` the samples called `wanted` stand. Raises DoesNotApply, with the nearest ids."""
    places = {str(name): row for row, name in enumerate(probe.sample_id.tolist())}
    for name in wanted:
        if str(name) not in places:
            raise DoesNotApply(
                f"`sample_ids`: probe {probe.name!r} has no sample {str(name)!r}."
                + did_you_mean(str(name), list(places)[:5000])
            )
    return np.array([places[str(name)] for name in dict.fromkeys(wanted)], np.int64)


def normal_noise(sample_id: object, draws: slice, shape: tuple[int, ...], seed: int, purpose: str) -> np.ndarray:
    """float32 (draw, *shape): standard normal numbers that belong to a sample, to a draw and to a purpose.

    The same at every checkpoint, in every batch and wherever the sample stands, so that maps differ by the weights alone;
    asking for the draws in several slices gives the same numbers.
    """
    return np.stack(
        [
            sample_generator(sample_id, seed, purpose, draw).standard_normal(shape, np.float32)
            for draw in range(draws.start or 0, draws.stop)
        ]
    )


def sample_generator(sample_id: object, seed: int, purpose: str, draw: int = 0) -> np.random.Generator:
    """Random numbers that belong to one sample, one purpose and one draw."""
    import xxhash

    key = xxhash.xxh3_128_intdigest(f"{sample_id}\x00{purpose}\x00{draw}".encode(), seed=seed)
    return np.random.Generator(np.random.Philox(key=key))


def sample_arrays(samples: ImageSamples, dimension: str) -> dict[str, NamedArray]:
    """`<probe>/sample_id` and, where there are classes, `<probe>/target`, both (sample,), as an analysis files them."""
    found = {f"{samples.probe}/sample_id": NamedArray((dimension,), samples.sample_id)}
    if samples.classes is not None:
        found[f"{samples.probe}/target"] = NamedArray((dimension,), samples.classes)
    return found
