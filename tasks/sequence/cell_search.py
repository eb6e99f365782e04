"""The search for units that follow a feature: half of the samples proposes a unit for each, the other half tests it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from stratascope.errors import DoesNotApply
from stratascope.tasks.representation.resampling import bootstrap_counts, percentile_interval
from stratascope.tasks.sequence.cell_association import (
    AssociationSums,
    area_under_curve,
    holm,
    pairing_p_values,
    rank_correlation,
)
from stratascope.tasks.sequence.found_cells import QUANTILES
from stratascope.tasks.sequence.given_features import FeatureTable
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.sequence_samples import SequenceSamples
from stratascope.tasks.sequence.state_batches import UnitStates, input_of, lengthened, state_batches

Place = tuple[str, str]
GROUPS = 8
"""The values of a numeric feature fall into at most so many groups, of about equal size."""
_ROUNDS = 200


@dataclass
class Scan:
    """What all units of one layer and kind of state have to do with all features."""

    place: Place
    proposing: np.ndarray
    """float64 (unit, feature): correlations on the half that proposes."""
    testing: np.ndarray
    z: np.ndarray
    """(unit, feature): of the proposing half, by the exact variance over exchanges of samples."""


@dataclass
class Candidate:
    """The unit that was proposed for a feature, and what the other half says of it."""

    feature: int
    place: Place
    unit: int
    sign: float
    """Of its correlation on the half that proposed it."""
    score: float
    low: float
    high: float
    secondary: float
    """Area under the curve of a boolean feature, rank correlation of a numeric one; in the proposed direction."""
    p_value: float
    samples: int
    profile: np.ndarray
    """(group, quantile): the unit's state where the feature has the values `edges` (group, 2)."""
    edges: np.ndarray
    corrected: float = float("nan")


@dataclass
class Tested:
    """The samples of the testing half that are held: the proposed unit of each feature, and the features."""

    places: np.ndarray
    states: np.ndarray
    """float32 (sample, time, feature): of the unit proposed for each."""
    features: np.ndarray
    real: np.ndarray


@dataclass
class Search:
    """What was found for one input of a probe."""

    table: FeatureTable
    scans: list[Scan] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    tested: Tested | None = None


def scan(
    network: SequenceNetwork, samples: SequenceSamples, tables: Mapping[str, FeatureTable], size: int, tokens: int
) -> dict[str, list[Scan]]:
    """The scans of each input's layers, over all samples, every other one of which proposes. Raises DoesNotApply."""
    sums: dict[tuple[str, Place], list[AssociationSums]] = {}
    inputs: dict[Place, str | None] = {}
    real = {name: torch.from_numpy(samples.real(name)[:, :tokens]) for name in tables}
    rows = np.arange(len(samples))
    for places, states in state_batches(network, samples, rows, size, tokens):
        centred: dict[str, Tensor] = {}
        for given in states:
            found = given
            if found.place not in inputs:
                inputs[found.place] = input_of(samples, places, found, tokens)
            name = inputs[found.place]
            if name is None or name not in tables:
                continue
            if name not in centred:
                # Without its mean an absent value can count as 0.
                centred[name] = torch.from_numpy(
                    tables[name].values(places) - tables[name].centre.astype(np.float32)
                )
            values = centred[name][:, :tokens]
            found = lengthened(found, values.shape[1])
            if (name, found.place) not in sums:
                shape = found.values.shape[2], values.shape[2], found.values.shape[1]
                sums[name, found.place] = [
                    AssociationSums.empty(*shape),
                    AssociationSums.empty(*shape, with_z=False),
                ]
            counts = found.real & real[name][places]
            for half in (0, 1):
                chosen = torch.from_numpy(places % 2 == half)
                sums[name, found.place][half].add(found.values[chosen], values[chosen], counts[chosen])
    scans: dict[str, list[Scan]] = {}
    for (name, place), (proposing, testing) in sums.items():
        made = Scan(place, proposing.correlations(), testing.correlations(), proposing.permutation_z())
        scans.setdefault(name, []).append(made)
    if not scans:
        raise DoesNotApply("no recurrent layer reads an input of which features are known.")
    return scans


def proposals(scans: list[Scan], features: int) -> Iterator[tuple[int, Scan, int]]:
    """(feature, scan, unit) with the largest |r| of the proposing half, for each feature that has one."""
    for feature in range(features):
        best: tuple[float, Scan, int] | None = None
        for one in scans:
            sizes = np.abs(np.nan_to_num(one.proposing[:, feature]))
            unit = int(sizes.argmax())
            if sizes[unit] > 0 and (best is None or sizes[unit] > best[0]):
                best = float(sizes[unit]), one, unit
        if best is not None:
            yield feature, best[1], best[2]


def tested(
    network: SequenceNetwork, samples: SequenceSamples, name: str, table: FeatureTable, scans: list[Scan], most: int,
    size: int, tokens: int,
) -> tuple[list[tuple[int, Scan, int]], Tested]:  # fmt: skip
    """The proposals, and the states of their units in at most `most` samples of the other half."""
    chosen = list(proposals(scans, len(table.names)))
    rows = np.arange(1, len(samples), 2)[:most]
    if not chosen or not len(rows):
        raise DoesNotApply("no unit varies together with any feature, or there is one sample only.")
    states = []
    real = samples.real(name)[rows, :tokens]
    length = real.shape[1]
    for _, found in state_batches(network, samples, rows, size, tokens):
        by_place: dict[Place, UnitStates] = {item.place: lengthened(item, length) for item in found}
        states.append(torch.stack([by_place[one.place].values[:, :, unit] for _, one, unit in chosen], -1))
    held = torch.cat(states).numpy()
    features = table.values(rows)[:, :length, [feature for feature, _, _ in chosen]]
    return chosen, Tested(rows, np.where(real[..., None], held, 0), features, real)


def candidates(
    chosen: list[tuple[int, Scan, int]], held: Tested, table: FeatureTable, permutations: int, seed: int
) -> list[Candidate]:
    """The proposed units with their scores and p-values on the held samples; Holm's correction over the features."""
    values = held.features.astype(np.float64)
    known = np.isfinite(values) & held.real[..., None]
    count = np.maximum(known.sum((0, 1)), 1)
    centred = np.where(known, values - np.where(known, values, 0).sum((0, 1)) / count, 0.0)
    p_values = pairing_p_values(held.states, centred, permutations, seed)
    found = []
    for number, (feature, one, unit) in enumerate(chosen):
        sign = float(np.sign(one.proposing[unit, feature]))
        states = sign * held.states[..., number].astype(np.float64)
        boolean = bool(table.boolean[feature])
        candidate = _candidate(
            feature, one.place, unit, sign, states, values[..., number], known[..., number], boolean, seed
        )
        candidate.p_value = float(p_values[number]) if np.isfinite(candidate.score) else float("nan")
        found.append(candidate)
    for candidate, corrected in zip(found, holm(np.array([item.p_value for item in found])), strict=True):
        candidate.corrected = float(corrected)
    return found


def _candidate(
    feature: int, place: Place, unit: int, sign: float, states: np.ndarray, values: np.ndarray, known: np.ndarray,
    boolean: bool, seed: int,
) -> Candidate:  # fmt: skip
    """What the held samples say of one proposal, apart from its p-value; NaN where nothing is known of the feature."""
    score, low, high, secondary = (float("nan"),) * 4
    profile, edges = np.full((GROUPS, len(QUANTILES)), np.nan), np.full((GROUPS, 2), np.nan)
    if known.any():
        score, low, high = _score(states, values, known, seed)
        measure = (
            area_under_curve(states[known], values[known] > 0)
            if boolean
            else rank_correlation(states[known], values[known])
        )
        secondary = measure if np.isfinite(score) else float("nan")
        profile, edges = _profile(sign * states[known], values[known], boolean)
    return Candidate(
        feature, place, unit, sign, score, low, high, secondary, float("nan"), len(states), profile, edges
    )  # fmt: skip


def _score(states: np.ndarray, values: np.ndarray, known: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Pearson's r over the known positions, with a bootstrap over samples."""
    weights = known.astype(np.float64)
    clean = np.where(known, values, 0.0)
    sums = np.stack([
        weights.sum(1), (weights * states).sum(1), clean.sum(1), (weights * states**2).sum(1), (clean**2).sum(1),
        (states * clean).sum(1),
    ], -1)  # fmt: skip
    drawn = _r(bootstrap_counts(len(sums), _ROUNDS, seed) @ sums)
    return float(_r(sums.sum(0))), *percentile_interval(drawn)


def _r(sums: np.ndarray) -> np.ndarray:
    count, state, value, square, value_square, cross = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (square / count - (state / count) ** 2) * (value_square / count - (value / count) ** 2)
        found = (cross / count - state / count * (value / count)) / np.sqrt(spread)
    return np.where(spread > 1e-20, np.clip(found, -1, 1), np.nan)


def _profile(states: np.ndarray, values: np.ndarray, boolean: bool) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the states for no and yes, or for `GROUPS` ranges of the values; NaN where a group is empty."""
    profile, edges = np.full((GROUPS, len(QUANTILES)), np.nan), np.full((GROUPS, 2), np.nan)
    if boolean:
        bounds = [(0.0, 0.0), (1.0, 1.0)]
    else:
        cuts = np.unique(np.quantile(values, np.linspace(0, 1, GROUPS + 1), method="lower"))
        bounds = list(pairwise(cuts.tolist()))
    for group, (low, high) in enumerate(bounds):
        last = group == len(bounds) - 1
        inside = (values >= low) & ((values <= high) if last or low == high else (values < high))
        if inside.any():
            profile[group] = np.quantile(states[inside], QUANTILES)
            edges[group] = low, high if last or low == high else values[inside].max()
    return profile, edges
