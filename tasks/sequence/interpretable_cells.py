"""Which single units of a recurrent network follow something that people can name, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import ConfigurationError, DoesNotApply
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.sequence.found_cells import QUANTILES
from stratascope.tasks.sequence.interpretable_cells_drawing import draw
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, SequenceSamples, sequence_samples
from stratascope.tasks.sequence.text_features import FEATURES, spans

DIMENSION = "example"


class InterpretableCellsOptions(SequenceOptions):
    """Which features are looked for, in how many samples. Half of the samples proposes units, the other half tests them."""

    max_samples: int = Field(default=512, ge=4)
    shown: int = Field(default=3, ge=0)
    """So many texts are drawn for each feature: those of the testing half in which it changes most, unless `sample_ids` names some."""
    built_in: tuple[str, ...] = tuple(FEATURES)
    """Features of the text that are looked for."""
    features: dict[str, str] = {}
    """More of them by name: `re:…` (inside the matches), `module:name` (a function from the words of a sample to as many
    numbers), `input:…` (an input of the probe) or `targets`."""
    tokens: int = Field(default=128, ge=2)
    """Only the first so many tokens of a sample are looked at; the memory for each unit grows with its square."""
    tested_samples: int = Field(default=256, ge=2)
    """Of the testing half, so many samples at most."""
    permutations: int = Field(default=99_999, ge=99)
    """Exchanges of the texts of samples for each p-value."""
    level: float = Field(default=0.001, gt=0, lt=1)
    """A feature counts as tracked where its corrected p-value is below."""

    @field_validator("built_in")
    @classmethod
    def _are_features(cls, wanted: tuple[str, ...]) -> tuple[str, ...]:
        for name in wanted:
            if name not in FEATURES:
                raise ValueError(f"there is no feature {name!r}; there are {', '.join(FEATURES)}")
        return wanted

    @field_validator("features")
    @classmethod
    def _are_sources(cls, given: dict[str, str]) -> dict[str, str]:
        from stratascope.tasks.sequence.given_features import checked_source

        try:
            return {name: checked_source(name, source) for name, source in given.items()}
        except ConfigurationError as error:
            raise ValueError(str(error)) from None


def compute(context: CheckpointContext, options: InterpretableCellsOptions) -> Findings:
    """Rows by probe, feature and its proposed unit; arrays `<probe>/<input>/<layer>/<kind>/{correlation,
    proposing_correlation, z}` (unit, feature) and `<probe>/<input>/found/…` (feature, …).
    """
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    findings = Findings()
    network = SequenceNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                _probe(network, probe, options, Path(context.subject.folder), findings)
            except DoesNotApply as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
    return findings


def _probe(
    network: Any, probe: Probe, options: InterpretableCellsOptions, folder: Path, findings: Findings
) -> None:
    from stratascope.tasks.sequence.cell_search import Search, candidates, scan, tested
    from stratascope.tasks.sequence.given_features import FeatureTable, feature_table
    from stratascope.tasks.sequence.recurrent_capture import recurrent_modules

    recurrent_modules(network.network)
    samples = sequence_samples(probe, options)
    tables: dict[str, FeatureTable] = {}
    reasons: list[str] = []
    for name in samples.inputs:
        try:
            tables[name] = feature_table(samples, options.built_in, options.features, folder, name)
        except DoesNotApply as reason:
            reasons.append(str(reason))
    if not tables:
        raise DoesNotApply("; ".join(dict.fromkeys(reasons)))
    scans = scan(network, samples, tables, options.batch_size, options.tokens)
    for name, found in scans.items():
        chosen, held = tested(
            network, samples, name, tables[name], found, options.tested_samples, options.batch_size, options.tokens
        )
        made = candidates(chosen, held, tables[name], options.permutations, options.seed)
        _file(Search(tables[name], found, made, held), samples, name, options, findings)


def _file(
    search: Any, samples: SequenceSamples, name: str, options: InterpretableCellsOptions, findings: Findings
) -> None:
    table, probe = search.table, samples.probe.name
    root = f"{encode_path_part(probe)}/{encode_path_part(name or 'input')}"
    features: dict[str, Any] = {"features": list(table.names), "titles": list(table.titles)}
    for one in search.scans:
        place = f"{root}/{encode_path_part(one.place[0])}/{one.place[1]}"
        for what, values in (("correlation", one.testing), ("proposing_correlation", one.proposing), ("z", one.z)):
            findings.arrays[f"{place}/{what}"] = NamedArray(
                ("unit", "feature"), values.astype(np.float32), features
            )
    for candidate in search.candidates:
        findings.rows += _rows(candidate, table, probe, options)
    tracked = sum(item.corrected < options.level for item in search.candidates)
    findings.rows.append(
        Row("tracked_features", float(tracked), probe=probe, part=f"input={name}" if name else "", n=len(search.candidates),
            convention=f"corrected p below {options.level:g}")
    )  # fmt: skip
    findings.arrays |= {
        f"{root}/found/{key}": array for key, array in _found(search, samples, name, options).items()
    }


def _rows(candidate: Any, table: Any, probe: str, options: InterpretableCellsOptions) -> list[Row]:
    layer, kind = candidate.place
    feature = table.names[candidate.feature]
    boolean = bool(table.boolean[candidate.feature])
    shared: dict[str, Any] = {
        "probe": probe, "layer": layer, "part": f"feature={feature};state={kind};unit={candidate.unit}",
        "n": candidate.samples,
    }  # fmt: skip
    way = "falls" if candidate.sign < 0 else "rises"
    secondary = "cell_feature_auc" if boolean else "cell_feature_rank_correlation"
    values: tuple[tuple[str, float, dict[str, Any]], ...] = (
        ("cell_feature_score", candidate.score, {"low": candidate.low, "high": candidate.high, "estimator": "Pearson, interval by bootstrap over samples"}),
        (secondary, candidate.secondary, {}),
        ("cell_feature_p_value", candidate.corrected, {"estimator": f"{options.permutations:,} exchanges of samples, Holm over {len(table.names)} features"}),
    )  # fmt: skip
    rows = []
    for metric, value, more in values:
        if np.isfinite(value):
            rows.append(Row(metric, float(value), convention=f"the unit {way} with the feature", **shared, **more))
        else:
            reason = "unit or feature is the same everywhere in the testing half"
            rows.append(Row(metric, status="does_not_apply", reason=reason, **shared))
    return rows


def _found(
    search: Any, samples: SequenceSamples, name: str, options: InterpretableCellsOptions
) -> Mapping[str, NamedArray]:
    """Of each feature with a proposed unit: which, how its states lie by the feature's value, and some texts."""
    table, held, made = search.table, search.tested, search.candidates
    facts = {
        "features": [table.names[item.feature] for item in made], "titles": [table.titles[item.feature] for item in made],
        "layers": [item.place[0] for item in made], "kinds": [item.place[1] for item in made],
        "boolean": [bool(table.boolean[item.feature]) for item in made], "left_out": dict(table.left_out),
        "quantiles": list(QUANTILES),
    }  # fmt: skip
    examples = np.stack([_examples(held, number, samples, options) for number in range(len(made))])
    states = np.stack([held.states[rows, :, number] for number, rows in enumerate(examples)])
    values = np.stack([held.features[rows, :, number] for number, rows in enumerate(examples)])
    numbers = np.array(
        [[c.unit, c.sign, c.score, c.low, c.high, c.secondary, c.p_value, c.corrected] for c in made]
    )
    given = held.places[examples]
    found = {
        "numbers": NamedArray(("feature", "number"), numbers, facts | {"number": ["unit", "sign", "score", "low", "high", "secondary", "p_value", "corrected"]}),
        "profile": NamedArray(("feature", "group", "quantile"), np.stack([item.profile for item in made]).astype(np.float32)),
        "profile_edges": NamedArray(("feature", "group", "side"), np.stack([item.edges for item in made]).astype(np.float32)),
        "states": NamedArray(("feature", DIMENSION, "token"), states.astype(np.float16)),
        "values": NamedArray(("feature", DIMENSION, "token"), values.astype(np.float32)),
        "real": NamedArray(("feature", DIMENSION, "token"), held.real[examples].astype(np.uint8)),
        "sample_id": NamedArray(("feature", DIMENSION), samples.given.sample_id[given]),
    }  # fmt: skip
    codes = np.asarray(leaves_of(samples.given.inputs)[name])
    if codes.ndim == 2 and codes.dtype.kind in "iu":
        found["tokens"] = NamedArray(("feature", DIMENSION, "token"), codes[given, : states.shape[2]])
    return found


def _examples(held: Any, number: int, samples: SequenceSamples, options: InterpretableCellsOptions) -> np.ndarray:
    """Which of the held samples are drawn: those that were named, else those in which the feature changes most often and,
    of equals, varies most, the first ones of equals."""
    if options.sample_ids:
        named = np.flatnonzero(held.places < samples.shown)[: options.shown]
        if len(named):
            return named
    values = held.features[:, :, number]
    known = np.nan_to_num(values, nan=0.0)
    runs = (
        np.array([len(spans(row)) for row in known])
        if set(np.unique(known)) <= {0.0, 1.0}
        else np.zeros(len(known))
    )
    spread = known.std(1)
    order = np.lexsort((np.arange(len(known)), -spread, -np.minimum(runs, 2)))
    return order[: min(options.shown, len(order))]


_KEPT = (
    "a positive factor on the unit, or a number added to it; order of the samples; the batch size up to rounding"
)

ANALYSIS = register(
    Analysis(
        name="interpretable_cells", version=1, scope="checkpoint", title="Interpretable cells",
        question="Does a single unit follow quotes, names, lines or a feature of your own?",
        options=InterpretableCellsOptions, compute=compute, draw=draw, needs=frozenset({"network"}),
        metrics=(
            Metric("cell_feature_score", "1", "[-1, 1]", "Pearson's correlation of one unit's state (`state=cell`: tanh of an LSTM's cell state; `state=hidden`) with a feature of the text, over the positions of the samples that test, with the sign that the unit had in those that proposed it. The unit is the one with the largest correlation there, of all units of all recurrent layers.", "Karpathy et al. 2015, section 4.1 (the question)", _KEPT),
            Metric("cell_feature_auc", "1", "[0, 1]", "For a feature that is yes or no: how often the unit's state is higher (lower, where it falls with the feature) inside than outside, for the samples that test; 0.5 is chance.", "Hanley and McNeil 1982", _KEPT + "; any increasing change of the unit"),
            Metric("cell_feature_rank_correlation", "1", "[-1, 1]", "For a numeric feature: Spearman's correlation with the unit's state over the positions of the samples that test, in the proposed direction.", "Spearman 1904", _KEPT + "; any increasing change of the unit or of the feature"),
            Metric("cell_feature_p_value", "1", "(0, 1]", "How often exchanging which text goes with which states, whole samples at a time, gives as large a sum of products of state and feature; for the unit that the other half of the samples proposed, corrected by Holm for the number of features.", "Hoeffding 1951; Phipson and Smyth 2010; Holm 1979", _KEPT),
            Metric("tracked_features", "count", "[0, ∞)", "How many features have a unit that follows them with a corrected p-value below `level`; `n` is how many were looked for.", "", _KEPT),
        ),
    )
)  # fmt: skip
