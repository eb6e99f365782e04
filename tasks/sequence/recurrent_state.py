"""What recurrent layers hold and for how long: gates, states, time constants, units that are still or say the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.sequence.recurrent_state_drawing import draw
from stratascope.tasks.sequence.sequence_samples import SHOWN, SequenceOptions

if TYPE_CHECKING:
    from stratascope.tasks.sequence.recurrent_passes import LayerStates, StatePass
    from stratascope.tasks.sequence.recurrent_statistics import UnitClusters

_FEW_UNITS = 32
"""Layers of at most so many units have a row for each."""
_LARGEST_RESIDUAL = 1e-3
_STATISTICS = ["mean", "std", "min", "max"]
_BOUND = "time constants of more than 10 million steps count as 10 million"
_MODES = f"of the eigenvalues of the recurrent weights, as if the cell were linear; {_BOUND}"


class RecurrentStateOptions(SequenceOptions):
    """Which samples are measured and shown, and what counts as saturated, still and redundant."""

    left_below: float = Field(default=0.1, ge=0, le=1)
    """A gate is saturated on the left below this share of its range. Karpathy, Johnson and Fei-Fei 2015."""
    right_above: float = Field(default=0.9, ge=0, le=1)
    """And on the right above this one."""
    still_below: float = Field(default=1e-3, ge=0)
    """A unit is still where its hidden state never moves by more than this, over all samples and steps."""
    redundant_above: float = Field(default=0.95, gt=0, lt=1)
    """Units say the same where the absolute correlation of every two of them is above this."""
    trace_mib: float = Field(default=256.0, ge=0)
    """Raw traces of the shown samples are stored where they take at most so many MiB before compression."""
    most_units: int = Field(default=1024, ge=1)
    """Pairs of units and eigenvalues are looked at in layers of at most so many units."""

    @model_validator(mode="after")
    def _ends_are_apart(self) -> RecurrentStateOptions:
        if self.left_below > self.right_above:
            raise ValueError("`left_below` must not be above `right_above`")
        return self


def compute(context: CheckpointContext, options: RecurrentStateOptions) -> Findings:
    """Rows by layer and direction; arrays below `<probe>/<layer>/`, see `_layer_arrays`, and what the shown samples are."""
    from stratascope.tasks.sequence.recurrent_passes import MIB, StateLimits, states_of
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    findings = Findings()
    ends = (options.left_below, options.right_above)
    limits = StateLimits(ends, options.most_units, int(options.trace_mib * MIB))
    spectra: dict[str, dict[str, np.ndarray]] = {}
    network = SequenceNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                found = states_of(network, probe, options, limits)
            except DoesNotApply as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
                continue
            findings.rows.append(_bytes_row(name, found))
            findings.arrays |= found.samples.shown_arrays()
            for layer in found.layers:
                _file(findings, name, layer, found, options, spectra)
    return findings


def _bytes_row(probe: str, found: StatePass) -> Row:
    if found.refused:
        return Row("trace_bytes", probe=probe, status="does_not_apply", reason=found.refused)
    return Row("trace_bytes", float(found.bytes), probe=probe, n=len(found.samples))


def _file(
    findings: Findings, probe: str, layer: LayerStates, found: StatePass, options: RecurrentStateOptions,
    spectra: dict[str, dict[str, np.ndarray]],
) -> None:  # fmt: skip
    """Everything of one layer, or the reason why there is nothing."""
    about: dict[str, Any] = {"layer": layer.layer, "probe": probe, "n": found.measured}
    problem = _problem(layer)
    residual = Row("recurrent_residual", layer.residual, estimator="largest of the first batch", **about)
    if np.isfinite(layer.residual):
        findings.rows.append(residual)
    if problem:
        metrics = [metric.name for metric in ANALYSIS.metrics if metric.name not in ("recurrent_residual", "trace_bytes")]  # fmt: skip
        if not np.isfinite(layer.residual):
            metrics.append("recurrent_residual")
        findings.rows += [Row(name, status="failed", reason=problem, **about) for name in metrics]
        return
    spectrum = _spectrum(layer, options, spectra)
    moving = _ranges(layer) > options.still_below
    clusters, correlation = _clusters(layer, moving, options)
    constants, source = _constants(layer, spectrum)
    findings.rows += list(_gate_rows(layer, about))
    findings.rows += list(_constant_rows(layer, constants, source, spectrum, options, about))
    findings.rows += list(_unit_rows(layer, moving, clusters, options, about))
    findings.rows += list(_spectrum_rows(spectrum, options, about))
    arrays = _layer_arrays(layer, constants, source, spectrum, found.layers.index(layer))
    if correlation is not None and clusters is not None:
        arrays["correlation"] = NamedArray(("hidden_unit", "other_unit"), correlation.astype(np.float32))
        arrays["unit_order"] = NamedArray(("hidden_unit",), clusters.order)
        arrays["unit_cluster"] = NamedArray(("hidden_unit",), clusters.cluster)
    findings.arrays |= {f"{probe}/{layer.layer}/{name}": array for name, array in arrays.items()}


def _problem(layer: LayerStates) -> str:
    """Why nothing can be said of `layer`; empty where something can."""
    if layer.sums.steps == 0:
        return "no step of any sample is real: all is padding"
    if not np.isfinite(layer.sums.hidden.table()).all():
        return "the hidden states are not all finite"
    if not layer.residual <= _LARGEST_RESIDUAL:
        return (
            f"the unrolled states differ from the layer's own output by {layer.residual:.2g} of its largest value: "
            "it does not compute what torch's layer of this kind does"
        )
    return ""


def _ranges(layer: LayerStates) -> np.ndarray:
    """float64 (unit,): how far each unit's hidden state moves."""
    table = layer.sums.hidden.table()
    return table[3] - table[2]


def _spectrum(
    layer: LayerStates, options: RecurrentStateOptions, known: dict[str, dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """complex128 (unit,) by gate; empty where the layer is too wide. The same for all probes and calls of a layer."""
    from stratascope.tasks.sequence.recurrent_statistics import recurrent_blocks, sorted_eigenvalues

    name = layer.layer.partition("#")[0]
    if name not in known:
        wide = layer.weights.units > options.most_units
        blocks = {} if wide else recurrent_blocks(layer.weights)
        known[name] = {gate: sorted_eigenvalues(block) for gate, block in blocks.items()}
    return known[name]


def _clusters(
    layer: LayerStates, moving: np.ndarray, options: RecurrentStateOptions
) -> tuple[UnitClusters | None, np.ndarray | None]:
    from stratascope.tasks.sequence.recurrent_statistics import unit_clusters

    correlation = layer.sums.correlation(moving)
    return (
        (None, None) if correlation is None else (unit_clusters(correlation, options.redundant_above), correlation)
    )


def _constants(layer: LayerStates, spectrum: dict[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """float64 (quantile, unit) in steps, and whence they come: `gate` or `eigenvalues`; empty where not known."""
    from stratascope.tasks.sequence.recurrent_statistics import KEEP, QUANTILES, mode_time_constants

    if layer.sums.cell in KEEP:
        return layer.sums.sample_time_constants(), "gate"
    modes = mode_time_constants(spectrum["candidate"]) if spectrum else np.empty(0)
    return np.tile(modes, (len(QUANTILES), 1)), "eigenvalues"


def _gate_rows(layer: LayerStates, about: dict[str, Any]) -> Iterator[Row]:
    """Means over units; low and high are the least and the most of a single unit."""
    sums = layer.sums
    if not sums.gates:
        for metric in ("left_saturated_fraction", "right_saturated_fraction", "gate_mean"):
            yield Row(
                metric, status="does_not_apply", reason="a plain rectified cell has no gate and no bound", **about
            )
        return
    saturation = sums.saturation()
    means = (sums.gate_total / sums.steps).numpy()
    for place, gate in enumerate(sums.gates):
        shared = about | {"part": f"gate={gate}", "estimator": "mean over units"}
        low, high = sums.ends
        for side, metric, bound in ((0, "left_saturated_fraction", low), (1, "right_saturated_fraction", high)):
            values = saturation[place, side]
            yield Row(
                metric, float(values.mean()), low=float(values.min()), high=float(values.max()),
                convention=f"{'below' if side == 0 else 'above'} {bound:g} of the range; low and high are single units", **shared,
            )  # fmt: skip
        yield Row("gate_mean", float(means[place].mean()), low=float(means[place].min()), high=float(means[place].max()), convention="low and high are single units", **shared)  # fmt: skip


def _constant_rows(
    layer: LayerStates, constants: np.ndarray, source: str, spectrum: dict[str, np.ndarray],
    options: RecurrentStateOptions, about: dict[str, Any],
) -> Iterator[Row]:  # fmt: skip
    from stratascope.tasks.sequence.recurrent_statistics import QUANTILES, mode_time_constants, time_constants

    if constants.size == 0:
        reason = f"the layer has more than {options.most_units} units, for which no eigenvalues are taken (`most_units`)"
        yield Row("memory_time_constant", status="does_not_apply", reason=reason, **about)
        return
    by_gate = source == "gate"
    pooled = time_constants(layer.sums.mean_log_keep()) if by_gate else mode_time_constants(spectrum["candidate"])
    convention = f"of the mean logarithm of the gate that keeps; {_BOUND}" if by_gate else _MODES
    for share in QUANTILES:
        yield Row(
            "memory_time_constant", float(np.quantile(pooled, share)), part=f"quantile={share:g}",
            estimator="quantile over units", convention=convention, **about,
        )  # fmt: skip
    if len(pooled) <= _FEW_UNITS:
        for unit, value in enumerate(pooled):
            low, high = constants[[0, -1], unit].tolist() if by_gate else (math.nan, math.nan)
            yield Row(
                "memory_time_constant", float(value), part=f"unit={unit}", convention=convention,
                estimator="all steps; low and high hold the middle 80 % of the samples" if by_gate else "one mode",
                low=low, high=high, **about,
            )  # fmt: skip


def _unit_rows(
    layer: LayerStates, moving: np.ndarray, clusters: UnitClusters | None, options: RecurrentStateOptions,
    about: dict[str, Any],
) -> Iterator[Row]:  # fmt: skip
    bound = f"a range of at most {options.still_below:g}"
    yield Row("still_fraction", float((~moving).mean()), convention=bound, **about)
    if clusters is None:
        reason = (
            f"the layer has more than {options.most_units} units, of which no pairs are compared (`most_units`)"
        )
        yield Row("redundant_fraction", status="does_not_apply", reason=reason, **about)
    else:
        convention = f"|correlation| above {options.redundant_above:g}, complete linkage"
        yield Row("redundant_fraction", clusters.redundant / len(moving), convention=convention, **about)
    for name, state in (("hidden", layer.sums.hidden), ("cell_state", layer.sums.state)):
        if state is not None:
            spread = state.table()[1]
            yield Row(
                "state_deviation", float(spread.mean()), low=float(spread.min()), high=float(spread.max()),
                part=f"of={name}", estimator="mean over units", convention="low and high are single units", **about,
            )  # fmt: skip


def _spectrum_rows(
    spectrum: dict[str, np.ndarray], options: RecurrentStateOptions, about: dict[str, Any]
) -> Iterator[Row]:
    if not spectrum:
        reason = f"the layer has more than {options.most_units} units (`most_units`)"
        yield Row("recurrent_spectral_radius", status="does_not_apply", reason=reason, **about)
    for gate, values in spectrum.items():
        yield Row("recurrent_spectral_radius", float(np.abs(values).max()), part=f"gate={gate}", **about)


def _layer_arrays(
    layer: LayerStates, constants: np.ndarray, source: str, spectrum: dict[str, np.ndarray], place: int
) -> dict[str, NamedArray]:
    """`gate_histogram` int64 (gate, unit, bin), `saturation` float32 (gate, side, unit), `time_constant` float32
    (quantile, unit) over samples, `mean_log_keep` float64 (unit,), `hidden_statistics` and `cell_state_statistics`
    float32 (statistic, unit), `eigenvalues` float32 (gate, unit, part); of the shown samples `hidden`, `cell_state` and
    `gates` float16, NaN in padding. What each row is, stands in the attributes; `place` is
    the layer's place in the order in which they ran.
    """
    from stratascope.tasks.sequence.recurrent_statistics import QUANTILES, gate_range

    sums = layer.sums
    facts = {"cell": sums.cell, "residual": layer.residual, "reason": layer.reason, "place": place}
    facts |= {} if layer.input is None else {"input": layer.input}
    found = {
        "hidden_statistics": NamedArray(("statistic", "hidden_unit"), sums.hidden.table().astype(np.float32), {"statistic": _STATISTICS} | facts)
    }  # fmt: skip
    if sums.state is not None:
        table = sums.state.table().astype(np.float32)
        found["cell_state_statistics"] = NamedArray(("statistic", "unit"), table, {"statistic": _STATISTICS})
    if sums.gates:
        about = {"gate": list(sums.gates), "range": [list(gate_range(gate)) for gate in sums.gates]}
        found["gate_histogram"] = NamedArray(("gate", "unit", "bin"), sums.histogram.numpy(), about | facts)
        ends = {"side": ["left", "right"], "ends": list(sums.ends)}
        found["saturation"] = NamedArray(("gate", "side", "unit"), sums.saturation(), about | ends)
    if constants.size:
        values = constants.astype(np.float32)
        found["time_constant"] = NamedArray(("quantile", "unit"), values, {"quantile": list(QUANTILES), "source": source})  # fmt: skip
        if source == "gate":
            found["mean_log_keep"] = NamedArray(("unit",), sums.mean_log_keep())
    if spectrum:
        pairs = np.stack([np.stack([values.real, values.imag], -1) for values in spectrum.values()])
        about = {"gate": list(spectrum), "part": ["real", "imaginary"]}
        found["eigenvalues"] = NamedArray(("block", "unit", "part"), pairs.astype(np.float32), about)
    for name, values in layer.shown.items():
        found[name] = _narrowed(name, values, facts | ({"gate": list(sums.gates)} if name == "gates" else {}))
    return found


def _narrowed(name: str, values: np.ndarray, facts: dict[str, Any]) -> NamedArray:
    """As float16; how many values are too large for it is said."""
    largest = float(np.finfo(np.float16).max)
    over = int((np.abs(values) > largest).sum())
    dims = {"hidden": ("time", "hidden_unit"), "cell_state": ("time", "unit"), "gates": ("time", "gate", "unit")}[
        name
    ]
    narrow = np.clip(values, -largest, largest).astype(np.float16)
    return NamedArray((SHOWN, *dims), narrow, facts | {"overflow_count": over})


_BATCH = "order of the samples; batch size up to rounding; permutation of the units"

ANALYSIS = register(
    Analysis(
        name="recurrent_state", version=1, scope="checkpoint", title="Recurrent state and memory",
        question="What do recurrent layers hold, and for how long?",
        options=RecurrentStateOptions, compute=compute, draw=draw, needs=frozenset({"network"}),
        metrics=(
            Metric("recurrent_residual", "fraction", "[0, inf)", "Largest difference between a recurrent layer's own output (h, h_n and c_n) and that of its unrolled equations, relative to the largest value of that output: a test of itself, on the first batch.", "", "order of the samples"),
            Metric("memory_time_constant", "steps", "(0, 1e7]", "τ = -1 / mean log f of a unit, f its forget gate, of a GRU its update gate (1 keeps): after τ steps 1/e of what it held is left on the direct path. Of plain cells -1 / log of the modulus of the eigenvalues λ of the recurrent weights. Median and quantiles over units.", "Tallec and Ollivier 2018; Mahto et al. 2021", _BATCH),
            Metric("left_saturated_fraction", "fraction", "[0, 1]", "Share of real steps in which a gate lies in the lowest tenth (an option) of its range; mean over units.", "Karpathy, Johnson and Fei-Fei 2015, section 4.2", _BATCH),
            Metric("right_saturated_fraction", "fraction", "[0, 1]", "Share of real steps in which a gate lies in the highest tenth (an option) of its range; mean over units.", "Karpathy, Johnson and Fei-Fei 2015, section 4.2", _BATCH),
            Metric("gate_mean", "value", "[-1, 1]", "Mean of a gate over real steps and units; the candidate runs from -1 to 1, the others from 0.", "", _BATCH),
            Metric("still_fraction", "fraction", "[0, 1]", "Share of units whose hidden state never moves by more than a thousandth (an option), over all samples and real steps.", "", _BATCH),
            Metric("redundant_fraction", "fraction", "[0, 1)", "Share of units that could go if of each cluster of units, any two of which have an absolute correlation above 0.95 (an option), one stayed.", "", f"{_BATCH}; sign and scale of a unit"),
            Metric("recurrent_spectral_radius", "value", "[0, inf)", "Largest modulus of the eigenvalues of the block of recurrent weights that acts on a gate.", "Pascanu, Mikolov and Bengio 2013", "change of basis of the hidden state"),
            Metric("state_deviation", "value", "[0, inf)", "Standard deviation of the hidden or the cell state over samples and real steps; mean over units.", "", _BATCH),
            Metric("trace_bytes", "bytes", "[0, inf)", "What the raw traces of the shown samples take before compression, known before anything runs.", "", ""),
        ),
    )
)  # fmt: skip
