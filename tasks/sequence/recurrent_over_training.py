"""How memory comes to be: time constants, saturation, gradients by lag and still units from checkpoint to checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext, SeriesContext
from stratascope.tasks.representation.resampling import bootstrap_counts, percentile_interval
from stratascope.tasks.sequence.lags import length_holding
from stratascope.tasks.sequence.recurrent_over_training_drawing import draw

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_METRICS = ("time_constant_spread", "long_memory_fraction")


class RecurrentOverTrainingOptions(Options):
    """Which samples are read says `recurrent_state`, which loss steps `gradient_through_time`."""

    long_above: float = Field(default=20.0, gt=0)
    """A unit has a long memory where its time constant is above so many steps."""
    still_below: float = Field(default=1e-3, ge=0)
    """A unit is still where its hidden state never moves by more than this."""
    rounds: int = Field(default=400, ge=20)
    """Of the bootstrap over units."""
    seed: int = Field(default=0, ge=0)


@dataclass
class _Layer:
    """What is gathered of one layer: (step, values), in the order of the steps."""

    lines: dict[str, list[tuple[int, np.ndarray]]] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, step: int, values: np.ndarray, about: dict[str, Any] | None = None) -> None:
        self.lines.setdefault(name, []).append((step, values))
        self.about.setdefault(name, about or {})


def compute(context: SeriesContext, options: RecurrentOverTrainingOptions) -> Findings:
    """Rows by probe, layer and step; below `<probe>/<layer>/` arrays `time_constant` (step, unit), `saturation` (step, gate,
    side), `radius` (step, block), `still` (step,), `gradient_<state>` (step, lag). Their attribute `step` lists the steps.

    Raises DoesNotApply where the run has one checkpoint only, or no recurrent state is filed.
    """
    if len(context.steps) < 2:
        count = "one checkpoint" if context.steps else "no checkpoint"
        raise DoesNotApply(f"a course over the training needs two checkpoints or more; the run has {count}.")
    findings = Findings()
    steps = [context.at(step) for step in sorted(context.steps)]
    for probe in context.probes:
        layers: dict[str, _Layer] = {}
        for checkpoint in steps:
            _gather(checkpoint, probe, options, layers)
        for name, layer in layers.items():
            findings.rows += list(_rows(probe, name, layer, options))
            findings.arrays |= _arrays(probe, name, layer, len(steps))
        if not layers:
            reason = "`recurrent_state` filed nothing for this probe; it says why"
            findings.rows += [
                Row(metric, probe=probe, status="does_not_apply", reason=reason) for metric in _METRICS
            ]
    if not findings.arrays:
        raise DoesNotApply("no recurrent state is filed at any checkpoint; `recurrent_state` says why.")
    return findings


def _gather(
    checkpoint: CheckpointContext, probe: str, options: RecurrentOverTrainingOptions, layers: dict[str, _Layer]
) -> None:
    step = checkpoint.step
    for path in checkpoint.found_arrays("recurrent_state", probe):
        name, _, kind = path.rpartition("/")
        if not name or kind not in ("time_constant", "saturation", "eigenvalues", "hidden_statistics"):
            continue
        layer = layers.setdefault(name, _Layer())
        values = checkpoint.found("recurrent_state", probe, *path.split("/"))
        about = checkpoint.found_attributes("recurrent_state", probe, *path.split("/"))
        assert values is not None
        if kind == "time_constant":
            middle = values[int(np.abs(np.array(about["quantile"]) - 0.5).argmin())]
            layer.add(kind, step, middle, {"source": about["source"]})
        elif kind == "saturation":
            layer.add(kind, step, values.mean(2), {"gate": about["gate"], "ends": about["ends"]})
        elif kind == "eigenvalues":
            layer.add("radius", step, np.hypot(values[..., 0], values[..., 1]).max(1), {"block": about["gate"]})
        else:
            places = [about["statistic"].index(end) for end in ("max", "min")]
            still = values[places[0]] - values[places[1]] <= options.still_below
            layer.add("still", step, np.array(still.mean()), {"units": len(still)})
    for path in checkpoint.found_arrays("gradient_through_time", probe):
        if path.endswith("/profile"):
            name, state = path[: -len("/profile")].rsplit("/", 1)
            values = checkpoint.found("gradient_through_time", probe, *path.split("/"))
            about = checkpoint.found_attributes("gradient_through_time", probe, *path.split("/"))
            assert values is not None
            facts = {"window": about["window"], "loss_step": about["loss_step"]}
            layers.setdefault(name, _Layer()).add(f"gradient_{state}", step, values[0], facts)


def spread(constants: np.ndarray) -> float:
    """The 90 % quantile of `constants` (unit,) over the units by the 10 % quantile."""
    low, high = np.quantile(np.log(constants), (0.1, 0.9))
    return float(np.exp(high - low))


def _rows(probe: str, layer: str, found: _Layer, options: RecurrentOverTrainingOptions) -> Iterator[Row]:
    line = found.lines.get("time_constant", [])
    about: dict[str, Any] = {"layer": layer, "probe": probe, "estimator": "interval by bootstrap over units"}
    if not line:
        reason = "the layer has no time constants; `recurrent_state` says why"
        yield from (Row(metric, layer=layer, probe=probe, status="does_not_apply", reason=reason) for metric in _METRICS)  # fmt: skip
        return
    first_step, first = line[0]
    for step, constants in line:
        about |= {"step": step, "n": len(constants)}
        drawn = _drawn(len(constants), options)
        own = np.array([spread(constants[places]) for places in drawn])
        low, high = percentile_interval(own)
        yield Row("time_constant_spread", spread(constants), low=low, high=high, **about)
        if step != first_step and len(first) == len(constants):
            # The same units are drawn for both: they are pairs.
            before = np.array([spread(first[places]) for places in drawn])
            low, high = percentile_interval(own / before)
            yield Row(
                "time_constant_spread", spread(constants) / spread(first), part="against=first", low=low, high=high,
                other_step=first_step, **about,
            )  # fmt: skip
        long = constants > options.long_above
        low, high = percentile_interval(np.array([long[places].mean() for places in drawn]))
        convention = f"above {options.long_above:g} steps"
        yield Row("long_memory_fraction", float(long.mean()), low=low, high=high, convention=convention, **about)


def _drawn(units: int, options: RecurrentOverTrainingOptions) -> list[np.ndarray]:
    counts = bootstrap_counts(units, options.rounds, options.seed)
    return [np.repeat(np.arange(units), row) for row in counts]


def _arrays(probe: str, layer: str, found: _Layer, checkpoints: int) -> dict[str, NamedArray]:
    """What is not filed at all checkpoints has a dimension of steps of its own."""
    dims: dict[str, tuple[str, ...]] = {
        "time_constant": ("unit",), "saturation": ("gate", "side"), "radius": ("block",), "still": (),
    }  # fmt: skip
    arrays = {}
    for name, line in found.lines.items():
        values = _stacked([item for _, item in line])
        if values is not None:
            about = found.about[name] | {"step": [step for step, _ in line]}
            if name.startswith("gradient_"):
                lengths = [length_holding(item, 0.5) for _, item in line]
                about["half_length"] = [length if np.isfinite(length) else None for length in lengths]
            place = f"{probe}/{encode_path_part(layer)}/{name}"
            inner = dims.get(name, (f"{name}_lag",))
            step = "step" if len(line) == checkpoints else f"{name}_step"
            arrays[place] = NamedArray((step, *inner), values.astype(np.float32), about)
    return arrays


def _stacked(items: Sequence[np.ndarray]) -> np.ndarray | None:
    """(step, …); shorter profiles are filled up with NaN. None where checkpoints differ in another way."""
    if items[0].ndim == 1:
        width = max(len(item) for item in items)
        return np.stack([np.pad(item.astype(np.float64), (0, width - len(item)), constant_values=np.nan) for item in items])  # fmt: skip
    return np.stack(items) if len({item.shape for item in items}) == 1 else None


_INVARIANT = "permutation of units and samples"

ANALYSIS = register(
    Analysis(
        name="recurrent_over_training", version=1, scope="series", title="Memory over training",
        question="When in training does a recurrent network come to remember, and for how long?",
        options=RecurrentOverTrainingOptions, compute=compute, draw=draw,
        builds_on=("recurrent_state", "gradient_through_time"),
        metrics=(
            Metric("time_constant_spread", "1", "[1, ∞)", "How wide the memory time constants of a layer's units lie: their 90 % quantile by their 10 % quantile, of each unit the median over samples. `against=first` is this number by that at the first checkpoint: above 1 the distribution has widened.", "Tallec and Ollivier 2018; Mahto et al. 2021", f"{_INVARIANT}; the unit of time"),
            Metric("long_memory_fraction", "fraction", "[0, 1]", "Share of a layer's units whose memory time constant is above `long_above` steps (20 unless configured).", "Mahto et al. 2021", _INVARIANT),
        ),
    )
)  # fmt: skip
