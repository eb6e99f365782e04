"""Two groups of networks before the same samples: who is right where, who agrees with whom, and how sure they are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.archive import LOGICAL_DTYPE, join_path, widened
from stratascope.storage.names import step_directory
from stratascope.storage.probes import Probe
from stratascope.storage.store import Store

_SLICE = 4_096
"""So many samples are held at once, of one run after the other."""


@dataclass
class GroupAnswers:
    """What the runs of one group answer; `answer` is what most of them say."""

    predicted: np.ndarray
    """int32 (run, sample): the class with the highest score."""
    answer: np.ndarray
    """int32 (sample,): the class most runs vote for; of equal votes the one with the higher mean probability."""
    votes: np.ndarray
    """float32 (sample,): share of the runs that vote for it."""
    probability: np.ndarray
    """float32 (sample,): its softmax probability, mean over the runs."""
    target_probability: np.ndarray
    """float32 (sample,): that of the true class."""
    losses: np.ndarray = field(default_factory=lambda: np.empty(0))
    """float64 (sample,): the loss, mean over the runs; empty where the loss gives its mean alone."""


def answers_of(store: Store, runs: Sequence[tuple[str, int]], probe: Probe) -> GroupAnswers:
    """The stored outputs of `runs` (run, step) on `probe`, voted on. Raises DoesNotApply where they are no class scores."""
    targets = class_targets(probe)
    count = len(probe)
    places = [_place(store, run, step, probe) for run, step in runs]
    predicted = np.empty((len(runs), count), np.int32)
    answer = np.empty(count, np.int32)
    votes, probability, target_probability = (np.empty(count, np.float32) for _ in range(3))
    for start in range(0, count, _SLICE):
        rows = slice(start, min(start + _SLICE, count))
        mean: np.ndarray | None = None
        ballots: np.ndarray | None = None
        for number, (run, place) in enumerate(places):
            chances = _softmax(_read(store, place, rows), run)
            if mean is None or ballots is None:
                mean, ballots = np.zeros_like(chances), np.zeros_like(chances)
            if chances.shape != mean.shape:
                raise DoesNotApply(
                    f"run {run!r} scores {chances.shape[1]} classes, others of its group {mean.shape[1]}."
                )
            predicted[number, rows] = chances.argmax(1)
            ballots[np.arange(len(chances)), predicted[number, rows]] += 1.0
            mean += chances
        assert mean is not None
        assert ballots is not None
        mean /= len(places)
        if targets[rows].max(initial=0) >= mean.shape[1]:
            raise DoesNotApply(
                f"the targets run to {targets.max()}, but there are scores of {mean.shape[1]} classes."
            )
        # A mean probability is below 1: it decides between equal votes only.
        chosen = (ballots + mean * (1 - 1e-9)).argmax(1)
        here = np.arange(len(chosen))
        answer[rows] = chosen
        votes[rows] = ballots[here, chosen] / len(places)
        probability[rows] = mean[here, chosen]
        target_probability[rows] = mean[here, targets[rows]]
    return GroupAnswers(predicted, answer, votes, probability, target_probability)


def class_targets(probe: Probe) -> np.ndarray:
    """The true class of every sample of `probe`, int64 (sample,). Raises DoesNotApply where it has none."""
    if probe.targets is None:
        raise DoesNotApply(f"probe {probe.name!r} has no targets.")
    if probe.targets.ndim != 1 or probe.targets.dtype.kind not in "iub":
        raise DoesNotApply(f"the targets of probe {probe.name!r} are no classes of samples.")
    if len(probe.targets) and probe.targets.min() < 0:
        raise DoesNotApply(f"probe {probe.name!r} has targets below 0.")
    return probe.targets.astype(np.int64)


def _place(store: Store, run: str, step: int, probe: Probe) -> tuple[str, str]:
    place = join_path("runs", run, step_directory(step), "activations", probe.name, "@output", "full")
    if not store.has_array(place):
        raise DoesNotApply(f"the outputs of run {run!r} on probe {probe.name!r} are not in the archive.")
    shape = store.array_info(place)[1]
    if len(shape) != 2 or shape[0] != len(probe):
        raise DoesNotApply(f"the outputs of run {run!r} have shape {shape}; expected scores (sample, class).")
    return run, place


def _read(store: Store, place: str, rows: slice) -> np.ndarray:
    kind = store.array_info(place)[3].get(LOGICAL_DTYPE)
    return np.asarray(widened(store.read_slice(place, rows.start, rows.stop), kind), np.float64)


def _softmax(scores: np.ndarray, run: str) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise DoesNotApply(f"run {run!r} has outputs that are not finite.")
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


@dataclass(frozen=True)
class Disagreement:
    """Share of samples on which two runs answer differently, mean over the pairs; NaN where there is no pair."""

    within_a: float
    within_b: float
    between: float


def disagreement(first: np.ndarray, second: np.ndarray) -> Disagreement:
    """How often runs of `first` (run, sample) and `second` (run, sample) differ, within and between the groups.

    Fort, Hu and Lakshminarayanan (2019) call it the disagreement in function space, there divided by the error.
    """

    def mean(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return float(np.mean([(one != other).mean() for one, other in pairs])) if pairs else float("nan")

    return Disagreement(
        mean(list(itertools.combinations(first, 2))),
        mean(list(itertools.combinations(second, 2))),
        mean(list(itertools.product(first, second))),
    )


KINDS = ("only_a", "only_b", "both_wrong")


def shown_samples(a: GroupAnswers, b: GroupAnswers, targets: np.ndarray, most: int) -> dict[str, np.ndarray]:
    """Of each kind of disagreement at most `most` samples, those first on which the less sure group is surest.

    The kinds are `only_a` and `only_b` right, and `both_wrong` with different answers.
    """
    differ = a.answer != b.answer
    surest = np.minimum(a.probability, b.probability)
    right_a, right_b = a.answer == targets, b.answer == targets
    masks = (differ & right_a, differ & right_b, differ & ~right_a & ~right_b)
    found = {}
    for kind, mask in zip(KINDS, masks, strict=True):
        places = np.flatnonzero(mask)
        found[kind] = places[np.argsort(-surest[places], kind="stable")][:most]
    return found
