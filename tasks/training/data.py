"""The data of a run: which samples it sees, what is spoilt in them, and what its twin sees instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stratascope.errors import ConfigurationError
from stratascope.storage.probes import Probe, build_probe
from stratascope.tasks.models.network import as_tensor
from stratascope.tasks.training.config import TrainConfig, TwinSpec
from stratascope.tasks.training.corruption import corrupt_images, corrupt_labels
from stratascope.tasks.training.seeds import base_seed, stream


@dataclass(frozen=True)
class Samples:
    """Inputs (a tensor, or a mapping of tensors) and targets, in step with their ids.

    `original` holds the targets (sample, …) before any corruption, `redrawn` (bool) where a label was drawn again.
    """

    inputs: Any
    targets: Tensor
    sample_id: np.ndarray
    original: np.ndarray
    redrawn: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> Samples:
        """The samples at the places `rows`, in that order."""
        index = torch.from_numpy(np.asarray(rows, np.int64))
        return Samples(
            rows_of(self.inputs, index),
            self.targets[index],
            self.sample_id[rows],
            self.original[rows],
            self.redrawn[rows],
        )


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from, what it is tested on, and the samples that it leaves out (None: none)."""

    train: Samples
    test: Samples
    held_out: Samples | None
    digests: dict[str, str]


def map_inputs(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`change` of the tensor, or of each tensor of the mapping."""
    if isinstance(inputs, dict):
        return {name: map_inputs(part, change) for name, part in inputs.items()}
    return change(inputs)


def rows_of(inputs: Any, rows: Any) -> Any:
    """The part of all inputs that `rows` (a slice, a number or an index tensor) picks."""
    return map_inputs(inputs, lambda part: part[rows])


def load_data(config: TrainConfig, folder: Path) -> TrainingData:
    """The data of `config`, spoilt as it says. Raises ProbeError, ConfigurationError."""
    training = build_probe("train", config.train, folder)
    testing = build_probe("test", config.test, folder)
    classes = _class_count(training)
    spread = _spread(training) if config.corruption.pixels == "gaussian" else (0.0, 1.0)
    whole = _samples(training, config, classes, testing=False, spread=spread)
    test = _samples(testing, config, classes, testing=True, spread=spread)
    train, held_out = whole, None
    count = config.samples
    if count is not None and count > len(whole):
        raise ConfigurationError(f"`samples: {count}` is more than the {len(whole)} that `train` has.")
    if count is not None and count < len(whole):
        order = stream(base_seed(config, "samples"), "samples").permutation(len(whole))
        train, held_out = whole.take(order[:count]), whole.take(order[count:])
    return TrainingData(train, test, held_out, {"train": training.digest, "test": testing.digest})


def twin_data(data: TrainingData, spec: TwinSpec) -> TrainingData:
    """`data` with one training sample exchanged. Raises ConfigurationError where there is no such sample."""
    if spec.source == "same":
        return data
    source = data.held_out if spec.source == "held_out" else data.test
    if source is None:
        raise ConfigurationError(
            "`twin: {source: held_out}` needs a sample that the run leaves out, but it trains on all of them: give "
            "`samples`, or take one of the test set with `source: test`."
        )
    for key, place, there in (("replace", spec.replace, len(data.train)), ("index", spec.index, len(source))):
        if place >= there:
            raise ConfigurationError(f"`twin: {{{key}: {place}}}` is beyond the last of {there} samples.")
    both = _joined(data.train, source.take(np.array([spec.index])))
    rows = np.arange(len(data.train))
    rows[spec.replace] = len(data.train)
    return replace(data, train=both.take(rows))


def _joined(first: Samples, second: Samples) -> Samples:
    def both(one: Any, other: Any) -> Any:
        if isinstance(one, dict):
            return {name: both(one[name], other[name]) for name in one}
        return torch.cat((one, other))

    return Samples(
        both(first.inputs, second.inputs),
        torch.cat((first.targets, second.targets)),
        np.concatenate((first.sample_id, second.sample_id)),
        np.concatenate((first.original, second.original)),
        np.concatenate((first.redrawn, second.redrawn)),
    )


def _samples(
    probe: Probe, config: TrainConfig, classes: int, testing: bool, spread: tuple[float, float]
) -> Samples:
    if probe.targets is None:
        raise ConfigurationError(f"training needs targets: the data set of {probe.name!r} has none.")
    seed = base_seed(config, "corruption")
    share = 0.0 if testing else config.corruption.labels
    targets, redrawn = corrupt_labels(probe.targets, probe.sample_id, share, classes, seed)
    inputs = _all_inputs(probe)
    if config.corruption.pixels != "none":
        if isinstance(inputs, dict):
            raise ConfigurationError("`corruption: {pixels: …}` needs images, but the inputs are a mapping.")
        inputs = corrupt_images(inputs, probe.sample_id, config.corruption.pixels, seed, spread, testing)
    tensors = as_tensor(inputs)
    if config.memory_format == "channels_last":
        tensors = map_inputs(tensors, _channels_last)
    return Samples(tensors, as_tensor(targets), probe.sample_id, probe.targets, redrawn)


def _all_inputs(probe: Probe) -> Any:
    """All inputs of the probe as arrays."""
    whole = getattr(probe, "inputs_at", None)
    return probe.inputs if whole is None else whole(slice(0, len(probe)))


def _spread(probe: Probe) -> tuple[float, float]:
    """Mean and standard deviation of all inputs; of no use where they are a mapping, which is refused later."""
    inputs = _all_inputs(probe)
    if isinstance(inputs, dict):
        return 0.0, 1.0
    return float(inputs.mean(dtype=np.float64)), float(inputs.std(dtype=np.float64))


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def _class_count(probe: Probe) -> int:
    if probe.targets is None or probe.targets.dtype.kind not in "iu":
        return 0
    return max(len(probe.class_names), int(probe.targets.max(initial=-1)) + 1)
