"""A stretch of text is selected; which units are on there and off around it, and where else are they on together?"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.sequence.sequence_samples import (
    SequenceOptions,
    SequenceSamples,
    names_of,
    sequence_samples,
)
from stratascope.tasks.sequence.state_matching import Match, matches, overlaps, selected_units, switched_on
from stratascope.tasks.sequence.state_patterns_drawing import draw
from stratascope.tasks.sequence.text_features import FEATURES, spans, text_features

_TELLING = ("in_speaker_name", "inside_quotes", "inside_brackets", "in_upper_case_word")
"""Where no range is named, a stretch of the first of these that there is: of those long enough that nearest to `_TYPICAL`."""
_SHORTEST, _TYPICAL = 4, 8
_LOOKED = 512
"""Among so many samples a range is chosen, and the share of tokens with the feature is counted."""
_KEPT = 12
"""So many matches are filed with their texts."""
Place = tuple[str, str]


class StatePatternsOptions(SequenceOptions):
    """Which stretches are selected, in which layers, and what counts as on."""

    ranges: tuple[tuple[str | int, int, int], ...] = ()
    """(sample id, first token, token behind the last one); without any, a speaker's name, a quotation, brackets or a word of
    capitals is chosen by the text alone, so that it is the same at every checkpoint."""
    layers: tuple[str, ...] = ()
    """Recurrent layers by the names of the report (`recurrent.l1`); the last one without any."""
    state: Literal["cell", "hidden"] = "cell"
    """`cell`: tanh of the cell state, where the layer has one."""
    threshold: float = Field(default=0.3, gt=0, lt=1)
    both_signs: bool = True
    """Whether a unit below minus the threshold counts as on too; LSTMVis looks above only."""
    off_before: int = Field(default=3, ge=0)
    """A selected unit is off at one or more of so many tokens just before the range, and of `off_after` just behind it; with 1
    at the very next one, as in LSTMVis; 0 asks for nothing."""
    off_after: int = Field(default=3, ge=0)
    shortest: int = Field(default=2, ge=1)
    """A match has so many tokens at least."""
    ranked: int = Field(default=50, ge=1)
    """Of so many matches, the best ones, the share is told that lies in the feature that the range was chosen for."""
    tokens: int = Field(default=256, ge=2)
    """Only the first so many tokens of a sample are looked at."""
    keep_states: bool = False
    """Whether the states of all measured samples are stored, for `export_lstmvis`: 2 bytes a unit and token, at every checkpoint."""


@dataclass(frozen=True)
class Selection:
    """A stretch of one sample, and what it was chosen for."""

    sample: int
    """Its place among the measured samples."""
    start: int
    stop: int
    feature: str = ""


@dataclass
class Matched:
    """What is known of one selection in one layer."""

    units: np.ndarray
    """bool (unit,), the negative ones last."""
    signs: int
    best: list[Match] = field(default_factory=list)
    count: int = 0
    share: dict[int, np.ndarray] = field(default_factory=dict)
    """By sample: float32 (token,), the share of the selected units that are on."""


def selections(samples: SequenceSamples, name: str, options: StatePatternsOptions) -> list[Selection]:
    """The ranges that are meant. Raises DoesNotApply where one lies outside of its sample, or the text offers none."""
    real = samples.real(name)
    if options.ranges:
        ids = [str(item) for item in samples.given.sample_id.tolist()]
        found = []
        for sample_id, start, stop in options.ranges:
            length = int(real[ids.index(str(sample_id))].sum())
            if not 0 <= start < stop <= min(length, options.tokens):
                raise DoesNotApply(f"`ranges`: {start} to {stop} lies outside of sample {sample_id!r}, which has {length} tokens.")  # fmt: skip
            found.append(Selection(ids.index(str(sample_id)), start, stop))
        return found
    if not names_of(samples.probe, name):
        raise DoesNotApply("without the words of the codes no range can be chosen; name some with `ranges`.")
    looked = np.arange(min(len(samples), _LOOKED))
    for feature in _TELLING:
        values = _feature(samples, name, feature, looked, options.tokens)
        stretches = [
            (abs(stop - start - _TYPICAL), place, start, stop)
            for place, row in enumerate(values) for start, stop in spans(row)
            if stop - start >= _SHORTEST and start > 0 and stop < np.isfinite(row).sum()
        ]  # fmt: skip
        if stretches:
            _, place, start, stop = min(stretches)
            return [Selection(place, start, stop, feature)]
    raise DoesNotApply(
        "the text has no speaker's name, quotation, brackets or word of capitals; name a range with `ranges`."
    )


def compute(context: CheckpointContext, options: StatePatternsOptions) -> Findings:
    """Rows by probe, layer and range; arrays `<probe>/<input>/<layer>/<kind>/range_<n>/…`, and with `keep_states` the states."""
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    findings = Findings()
    network = SequenceNetwork.of(context)
    named = tuple(str(sample_id) for sample_id, _, _ in options.ranges) + tuple(map(str, options.sample_ids))
    options = options.model_copy(update={"sample_ids": tuple(dict.fromkeys(named))})
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                _probe(network, probe, options, findings)
            except DoesNotApply as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
    return findings


def foretold(network: Any, probe: Probe, options: StatePatternsOptions) -> str:
    """How much the states take that `keep_states` files at each checkpoint. Raises DoesNotApply without a recurrent layer."""
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork
    from stratascope.tasks.sequence.state_batches import state_batches

    own = SequenceNetwork(
        network.network, network.model, network.folder, network.fixed_batch_size, network.hookable
    )
    samples = sequence_samples(probe, options)
    with own.untouched():
        _, states = next(state_batches(own, samples, np.arange(1), 1, options.tokens))
    wanted = _layers([found.place for found in states], options)
    if not options.keep_states:
        return "a dozen texts for each range, no states (`keep_states` is off)"
    size = sum(2 * found.values[0].numel() for found in states if found.place in wanted) * len(samples)
    return f"states of {len(samples)} samples, {size / 1e6:.3g} MB at each checkpoint before compression (`keep_states`)"


def _probe(network: Any, probe: Probe, options: StatePatternsOptions, findings: Findings) -> None:
    from stratascope.tasks.sequence.state_batches import input_of, state_batches

    samples = sequence_samples(probe, options)
    first, states = next(state_batches(network, samples, np.arange(1), options.batch_size, options.tokens))
    wanted = _layers([found.place for found in states], options)
    inputs = {
        found.place: input_of(samples, first, found, options.tokens) for found in states if found.place in wanted
    }
    by_input: dict[str, list[Place]] = {}
    for place, name in inputs.items():
        if name is None:
            raise DoesNotApply(f"layer {place[0]!r} reads no input of the probe: its states belong to no tokens.")
        by_input.setdefault(name, []).append(place)
    for name, places in by_input.items():
        chosen = selections(samples, name, options)
        found = _matched(network, samples, name, places, chosen, options, findings)
        for (place, number), made in found.items():
            _file(samples, name, place, number, chosen[number], made, options, findings)


def _layers(present: list[Place], options: StatePatternsOptions) -> list[Place]:
    """The layers that are looked at, in the state that was asked for, or in their hidden state where they have no other."""
    layers = list(dict.fromkeys(layer for layer, _ in present))
    for name in options.layers:
        if name not in layers:
            raise DoesNotApply(f"there is no recurrent layer {name!r}; there are {', '.join(layers)}.")
    wanted = options.layers or layers[-1:]
    return [(layer, options.state if (layer, options.state) in present else "hidden") for layer in wanted]


def _matched(
    network: Any, samples: SequenceSamples, name: str, places: list[Place], chosen: list[Selection],
    options: StatePatternsOptions, findings: Findings,
) -> dict[tuple[Place, int], Matched]:  # fmt: skip
    """The selected units, then all matches of all samples, batch by batch: only the best are held."""
    from stratascope.tasks.sequence.state_batches import lengthened, state_batches

    real = samples.real(name)[:, : options.tokens]
    found: dict[tuple[Place, int], Matched] = {}
    own = np.array(sorted({one.sample for one in chosen}))
    for batch, states in state_batches(network, samples, own, options.batch_size, options.tokens):
        for layer in states:
            if layer.place in places:
                on = switched_on(layer.values.numpy(), options.threshold, options.both_signs)
                for number, one in enumerate(chosen):
                    for row in np.flatnonzero(batch == one.sample):
                        units = selected_units(on[row], one.start, one.stop, options.off_before, options.off_after)
                        found[layer.place, number] = Matched(units, layer.values.shape[2])
    kept: dict[Place, list[np.ndarray]] = {place: [] for place in places}
    for batch, states in state_batches(
        network, samples, np.arange(len(samples)), options.batch_size, options.tokens
    ):
        for given in states:
            if given.place not in places:
                continue
            layer = lengthened(given, real.shape[1])
            on = switched_on(layer.values.numpy(), options.threshold, options.both_signs)
            if options.keep_states:
                kept[layer.place].append(
                    np.where(real[batch][..., None], layer.values.numpy(), 0).astype(np.float16)
                )
            for number, one in enumerate(chosen):
                _add(found[layer.place, number], on, real[batch], int(batch[0]), one, options)
    for place, parts in kept.items():
        if parts:
            findings.arrays |= _state_arrays(samples, name, place, np.concatenate(parts), real)
    return found


def _add(
    made: Matched, on: np.ndarray, real: np.ndarray, first: int, one: Selection, options: StatePatternsOptions
) -> None:
    new = [
        match for match in matches(on, real, made.units, options.shortest, first)
        if not overlaps(match, one.sample, one.start, one.stop)
    ]  # fmt: skip
    made.count += len(new)
    made.best = heapq.nsmallest(max(options.ranked, _KEPT), [*made.best, *new])
    wanted = {match.sample for match in made.best[:_KEPT]} | {one.sample}
    for sample in wanted:
        if first <= sample < first + len(on) and made.units.any():
            made.share[sample] = on[sample - first][:, made.units].mean(1, dtype=np.float32)
    made.share = {sample: values for sample, values in made.share.items() if sample in wanted}


def _root(samples: SequenceSamples, name: str, place: Place) -> str:
    parts = (samples.probe.name, name or "input", place[0])
    return "/".join(encode_path_part(part) for part in parts) + f"/{place[1]}"


def _state_arrays(
    samples: SequenceSamples, name: str, place: Place, states: np.ndarray, real: np.ndarray
) -> Mapping[str, NamedArray]:
    root = f"{encode_path_part(samples.probe.name)}/{encode_path_part(name or 'input')}"
    codes = np.asarray(leaves_of(samples.given.inputs)[name])
    found = {
        f"{_root(samples, name, place)}/states": NamedArray(("searched_sample", "token", "unit"), states),
        f"{root}/real": NamedArray(("searched_sample", "token"), real.astype(np.uint8)),
        f"{root}/sample_id": NamedArray(("searched_sample",), samples.given.sample_id),
    }
    if codes.ndim == 2 and codes.dtype.kind in "iu":
        found[f"{root}/tokens"] = NamedArray(("searched_sample", "token"), codes[:, : states.shape[1]])
    return found


def _file(
    samples: SequenceSamples, name: str, place: Place, number: int, one: Selection, made: Matched,
    options: StatePatternsOptions, findings: Findings,
) -> None:  # fmt: skip
    sample_id = samples.given.sample_id[one.sample]
    part = f"state={place[1]};range={number}"
    shared: dict[str, Any] = {
        "probe": samples.probe.name, "layer": place[0], "part": part,
        "convention": f"sample {sample_id}, tokens {one.start} to {one.stop - 1}; threshold {options.threshold:g}",
    }  # fmt: skip
    findings.rows.append(Row("pattern_units", float(made.units.sum()), n=len(made.units), **shared))
    inside, base = _inside(samples, name, one, made.best[: options.ranked], options)
    if not made.units.any():
        reason = "no unit is on throughout the range and off somewhere around it"
        findings.rows += [Row(metric, status="does_not_apply", reason=reason, **shared) for metric in ("pattern_matches", "pattern_precision")]  # fmt: skip
    else:
        findings.rows.append(Row("pattern_matches", float(made.count), n=len(samples), **shared))
        if np.isfinite(inside):
            convention = f"{shared['convention']}; {one.feature}, which holds at {base:.1%} of all tokens"
            findings.rows.append(Row("pattern_precision", inside, n=min(len(made.best), options.ranked), **{**shared, "convention": convention}))  # fmt: skip
        else:
            reason = "the range was named, not chosen for a feature" if not one.feature else "there is no match"
            findings.rows.append(Row("pattern_precision", status="does_not_apply", reason=reason, **shared))
    findings.arrays |= _match_arrays(
        samples,
        name,
        place,
        number,
        one,
        made,
        {"feature": one.feature} | ({"base_rate": base} if one.feature else {}),
    )


def _inside(
    samples: SequenceSamples, name: str, one: Selection, best: list[Match], options: StatePatternsOptions
) -> tuple[float, float]:
    """The share of the best matches of which most tokens lie in the feature, and the share of all tokens that do."""
    if not one.feature:
        return float("nan"), float("nan")
    looked = np.arange(min(len(samples), _LOOKED))
    base = float(np.nanmean(_feature(samples, name, one.feature, looked, options.tokens)))
    if not best:
        return float("nan"), base
    values = _feature(samples, name, one.feature, np.array([match.sample for match in best]), options.tokens)
    shares = [np.nanmean(row[match.start : match.stop]) for row, match in zip(values, best, strict=True)]
    return float((np.array(shares) > 0.5).mean()), base


def _feature(samples: SequenceSamples, name: str, feature: str, places: np.ndarray, tokens: int) -> np.ndarray:
    """float64 (sample, token): one feature of the text of the samples at `places`."""
    words = [samples.words(int(place), name) for place in places]
    return text_features(words, samples.real(name)[places], {feature: FEATURES[feature]})[feature][:, :tokens]


def _match_arrays(
    samples: SequenceSamples,
    name: str,
    place: Place,
    number: int,
    one: Selection,
    made: Matched,
    facts: dict[str, Any],
) -> Mapping[str, NamedArray]:
    """The selection itself first, then the best matches: where, their texts, and the share of selected units at each token."""
    root = f"{_root(samples, name, place)}/range_{number}"
    chosen = [
        Match((-float(one.stop - one.start), float("nan")), one.sample, one.start, one.stop),
        *made.best[:_KEPT],
    ]
    rows = [match.sample for match in chosen]
    codes = np.asarray(leaves_of(samples.given.inputs)[name])
    numbers = np.arange(len(made.units))[made.units]
    found = {
        "unit": NamedArray(("selected_unit",), (numbers % made.signs).astype(np.int64), facts),
        "sign": NamedArray(("selected_unit",), np.where(numbers < made.signs, 1, -1).astype(np.int64)),
        "place": NamedArray(("match", "side"), np.array([[match.start, match.stop] for match in chosen], np.int64)),
        "others": NamedArray(("match",), np.array([match.others for match in chosen], np.float32)),
        "sample_id": NamedArray(("match",), samples.given.sample_id[rows]),
        "real": NamedArray(("match", "token"), samples.real(name)[rows].astype(np.uint8)),
    }  # fmt: skip
    if made.units.any():
        found["share"] = NamedArray(("match", "state_token"), np.stack([made.share[row] for row in rows]))
    if codes.ndim == 2 and codes.dtype.kind in "iu":
        found["tokens"] = NamedArray(("match", "token"), codes[rows])
    return {f"{root}/{key}": array for key, array in found.items()}


ANALYSIS = register(
    Analysis(
        name="state_patterns", version=1, scope="checkpoint", title="State patterns",
        question="Where else is the network in the same state as in this phrase?",
        options=StatePatternsOptions, compute=compute, draw=draw, foretell=foretold, needs=frozenset({"network"}),
        metrics=(
            Metric("pattern_units", "count", "[0, ∞)", "How many units are beyond the threshold at every token of the selected range, and not throughout the few tokens before and behind it; with `both_signs` a unit counts for each of its signs.", "Strobelt et al. 2018, section 5", "order of the samples"),
            Metric("pattern_matches", "count", "[0, ∞)", "How many other stretches of at least `shortest` tokens have all of these units on.", "Strobelt et al. 2018, section 5", "order of the samples"),
            Metric("pattern_precision", "1", "[0, 1]", "Of the best matches, up to `ranked` of them (the longest, of equals those with the fewest other units on), the share that lies for its larger part in the feature for which the range was chosen; `convention` tells how often the feature holds at all.", "", "order of the samples"),
        ),
    )
)  # fmt: skip
