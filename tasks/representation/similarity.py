"""How alike a run's layers are: each layer over the steps, and all layers at a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import DoesNotApply
from stratascope.storage.digests import identity_of
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext, SeriesContext
from stratascope.tasks.representation.decomposition import decomposed_samples
from stratascope.tasks.representation.features import sound_patterns
from stratascope.tasks.representation.pictures import even_choice
from stratascope.tasks.representation.similarity_drawing import draw
from stratascope.tasks.representation.similarity_measures import INVARIANCES, MEASURES, Measure
from stratascope.tasks.representation.similarity_pairs import Item, Pairs, chosen_layers, read_item, token_of

_PIECE_BYTES = 1 << 18
"""Of pieces of kernel matrices, for each item that is compared."""


class PairOptions(Options):
    """Which layers are compared, by which measures, and how sure the numbers are to be."""

    layers: tuple[str, ...] = ("*",)
    """Names, globs or `re:…` of the layers that `decomposition` keeps."""
    measures: tuple[str, ...] = ("cka", "procrustes_distance")
    """By these the pairs are compared that stand in the ledger."""
    matrices: tuple[str, ...] = ("cka",)
    """By these all pairs are, for the pictures."""
    bootstrap: int = Field(default=50, ge=0)
    """Rounds behind each interval in the ledger; 0 files none."""
    permutations: int = Field(default=20, ge=0)
    """Rounds of shuffled samples behind each null at the newest step; 0 files none."""
    memory: int = Field(default=800, ge=1)
    """So many MiB of layers may be held at once."""
    seed: int = Field(default=0, ge=0)

    @field_validator("layers")
    @classmethod
    def _layers_are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return sound_patterns(value)

    @field_validator("measures", "matrices")
    @classmethod
    def _measures_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in MEASURES:
                raise ValueError(f"there is no measure {name!r}; there are {', '.join(MEASURES)}")
        return tuple(dict.fromkeys(value))

    @property
    def every_measure(self) -> list[Measure]:
        """Those of either list."""
        return [MEASURES[name] for name in dict.fromkeys(self.measures + self.matrices)]


class SimilarityOptions(PairOptions):
    """What is compared within a run."""

    max_steps: int = Field(default=200, ge=2)
    """Of more checkpoints than these an even choice is compared, the first and the last among them."""
    layer_steps: int = Field(default=12, ge=0)
    """At so many steps, evenly chosen, all layers are compared with each other; the last is among them."""
    all_pairs: bool = False
    """Whether every layer at every step is compared with every other (measures by kernels only)."""


@dataclass
class _Probe:
    """What is compared of one probe, and where the results go."""

    context: SeriesContext
    options: SimilarityOptions
    probe: str
    findings: Findings
    steps: list[int] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    held: dict[tuple[int, str], Item] = field(default_factory=dict)
    """Items that are read again later."""

    def at(self, step: int) -> CheckpointContext:
        return self.context.at(step)

    @property
    def layer_steps(self) -> list[int]:
        most = self.options.layer_steps
        return even_choice(self.steps, most) if most > 1 else self.steps[-1:] if most else []

    def refuse(self, step: int, layer: str, reason: str) -> None:
        """File why nothing is found at `step` of `layer`, or of none."""
        for name in self.options.measures:
            about: dict[str, Any] = {"part": MEASURES[name].part, "layer": layer, "probe": self.probe}
            about["step"] = step
            self.findings.rows.append(Row(MEASURES[name].metric, status="does_not_apply", reason=reason, **about))

    @cached_property
    def tokens(self) -> list[str]:
        """For each step what stands for all that its numbers depend on."""
        return [token_of(self.at(step)) for step in self.steps]

    @property
    def origin(self) -> dict[str, Any]:
        """What the numbers depend on, beside them in the archive: by it is told whether they can be taken over."""
        options = self.options.model_dump(mode="json", include={"bootstrap", "seed"})
        return {
            "options": identity_of({"version": ANALYSIS.version, **options}), "layers": self.layers, "steps": self.steps,
            "weights_digests": [str(self.context.facts.get(step, {}).get("weights_digest")) for step in self.steps],
            "tokens": self.tokens,
        }  # fmt: skip

    def earlier(self, *place: str) -> tuple[np.ndarray, dict[str, Any]] | None:
        """The array at `place` that was filed the last time, and its origin, where it was made by the same options."""
        found = self.context.earlier("similarity", self.probe, *place)
        if found is None or found[1].get("origin", {}).get("options") != self.origin["options"]:
            return None
        return found[0], found[1]["origin"]

    @property
    def place(self) -> str:
        return encode_path_part(self.probe)


def compute(context: SeriesContext, options: SimilarityOptions) -> Findings:
    """Arrays `<probe>/<measure>/step_by_step` (layer, step, other_step), with `…_low` and `…_high`, `layer_by_layer`
    (layer_step, layer, other_layer) and, where asked for, `all_pairs` (step, layer, other_step, other_layer).

    In the ledger each layer is held against the step before (no part), the first (`against=first`) and the last one
    (`against=last`), and at the newest step against each other layer (`against=layer`). Each layer of each step is read
    once. What was filed before of steps that are unchanged is taken over. Raises DoesNotApply where nothing can be
    compared.
    """
    from threadpoolctl import threadpool_limits

    findings = Findings()
    reasons = []
    # Sums in BLAS depend on the number of threads: with one, every worker files the same bytes.
    with threadpool_limits(limits=1):
        for name in context.probes:
            here = _Probe(context, options, name, findings)
            try:
                _choose(here)
            except DoesNotApply as reason:
                reasons.append(str(reason))
                continue
            _compare(here)
    if not findings.arrays:
        raise DoesNotApply(" ".join(dict.fromkeys(reasons)) or "there is no probe.")
    return findings


def _choose(here: _Probe) -> None:
    """The steps whose layers saw the same samples, and the layers."""
    samples: dict[int, np.ndarray] = {}
    reasons: dict[int, str] = {}
    for step in even_choice(here.context.steps, here.options.max_steps):
        try:
            samples[step] = decomposed_samples(here.at(step), here.probe)
        except DoesNotApply as error:
            reasons[step] = str(error)
    if not samples:
        raise DoesNotApply(next(iter(reasons.values()), f"there is no checkpoint for probe {here.probe!r}"))
    newest = samples[max(samples)]
    here.steps += [step for step, identities in samples.items() if np.array_equal(identities, newest)]
    for step in samples.keys() - set(here.steps):
        reasons[step] = "other samples were decomposed at this step than at the newest"
    for step, reason in sorted(reasons.items()):
        here.refuse(step, "", reason)
    here.layers = chosen_layers((here.at(step) for step in reversed(here.steps)), here.probe, here.options.layers)
    if not here.layers:
        raise DoesNotApply(
            f"no layer that is kept of probe {here.probe!r} matches {', '.join(here.options.layers)}"
        )


def _compare(here: _Probe) -> None:
    options = here.options
    shape = (len(here.layers), len(here.steps), len(here.steps))
    every = {item.name: Pairs(item, options.bootstrap, options.permutations, options.seed) for item in options.every_measure}  # fmt: skip
    found = {name: _Found.of(here, pairs.measure, shape) for name, pairs in every.items()}
    for number, layer in enumerate(here.layers):
        items = _read(here, layer)
        for name, pairs in every.items():
            _over_steps(here, pairs, items, found[name], number)
        # Or this layer would still be held while the next one is read.
        del items
    steps, layers = np.asarray(here.steps, np.int64), np.asarray(here.layers)
    here.findings.arrays[f"{here.place}/step"] = NamedArray(("step",), steps, {"probe": here.probe})
    here.findings.arrays[f"{here.place}/layer"] = NamedArray(("layer",), layers, {"probe": here.probe})
    for name, result in found.items():
        about = {"probe": here.probe, "measure": name, "origin": here.origin}
        for end, values in (("", result.value), ("_low", result.low), ("_high", result.high)):
            if name in options.measures or not end:
                dims = ("layer", "step", "other_step")
                path = f"{here.place}/{name}/step_by_step{end}"
                here.findings.arrays[path] = NamedArray(dims, values, about)
    for name, pairs in every.items():
        if name in options.matrices or here.layer_steps:
            _over_layers(here, pairs)
        if options.all_pairs and name in options.matrices and pairs.measure.kernel:
            _over_everything(here, pairs)


def _read(here: _Probe, layer: str) -> list[Item | None]:
    """The layer at each step; None, and a row that says why, where there is none."""
    items: list[Item | None] = []
    for step in here.steps:
        try:
            item = read_item(here.at(step), here.probe, layer)
            _check_memory(here, [*items, item])
        except DoesNotApply as reason:
            items.append(None)
            here.refuse(step, layer, str(reason))
            continue
        items.append(item)
        if step in here.layer_steps or here.options.all_pairs:
            here.held[step, layer] = item
    return items


def _check_memory(here: _Probe, items: Sequence[Item | None]) -> None:
    held = {id(item): item.bytes + _PIECE_BYTES for item in (*items, *here.held.values()) if item is not None}
    if sum(held.values()) > here.options.memory << 20:
        raise DoesNotApply(
            f"the layers that are compared at once take more than {here.options.memory} MiB: allow more (`memory`), or "
            "compare fewer steps (`max_steps`, `layer_steps`) or layers"
        )


# -- each layer over the steps ---------------------------------------------------------------------------


def _filed(count: int) -> list[tuple[str, int, int]]:
    """(part, place, other place) of the pairs of steps that stand in the ledger."""
    pairs: list[tuple[str, int, int]] = []
    for place in range(count):
        # Step after step, so that what neighbours share need not be found twice.
        pairs += [("", place, place - 1), ("against=first", place, 0)] if place else []
        pairs += [("against=last", place, count - 1)] if place < count - 1 else []
    return pairs


def _needed(measure: Measure, options: SimilarityOptions, count: int) -> tuple[np.ndarray, np.ndarray]:
    """bool (step, other_step): whose values are found, and which pairs are filed."""
    filed = np.zeros((count, count), bool)
    if measure.name in options.measures:
        for _, place, other in _filed(count):
            filed[place, other] = filed[other, place] = True
    return np.ones_like(filed) if measure.name in options.matrices else filed, filed


@dataclass
class _Found:
    """float64 (layer, step, other_step), NaN where nothing is known yet."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, here: _Probe, measure: Measure, shape: tuple[int, int, int]) -> _Found:
        """What was filed before and is still true, of what is filed now."""
        needed, filed = _needed(measure, here.options, shape[1])
        ends = [
            _taken_over(here, f"{measure.name}/step_by_step{end}", shape, mask)
            for end, mask in (("", needed), ("_low", filed), ("_high", filed))
        ]
        return cls(*ends)


def _taken_over(here: _Probe, path: str, shape: tuple[int, ...], needed: np.ndarray) -> np.ndarray:
    """float64 (layer, step, other_step): earlier numbers whose both sides are unchanged, else NaN."""
    values = np.full(shape, np.nan)
    before = here.earlier(*path.split("/"))
    if before is None:
        return values
    mine, old = _unchanged(here, before[1])
    for number, layer in enumerate(here.layers):
        if layer in before[1]["layers"]:
            known = before[0][before[1]["layers"].index(layer)]
            values[number][np.ix_(mine, mine)] = known[np.ix_(old, old)]
    values[:, ~needed] = np.nan
    return values


def _unchanged(here: _Probe, origin: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """The places of the steps that were there before, now and then."""
    then = {token: place for place, token in enumerate(origin["tokens"])}
    mine = [place for place, token in enumerate(here.tokens) if token in then]
    return mine, [then[here.tokens[place]] for place in mine]


def _over_steps(here: _Probe, pairs: Pairs, items: list[Item | None], found: _Found, number: int) -> None:
    measure = pairs.measure
    needed, _ = _needed(measure, here.options, len(items))
    value, low, high = found.value[number], found.low[number], found.high[number]
    missing = needed & np.isnan(value)
    if missing.any():
        value[missing] = pairs.matrix(items, missing)[missing]
    if measure.name not in here.options.measures:
        return
    newest = len(items) - 1
    for part, place, other in _filed(len(items)):
        for one, two, way in (
            (place, other, ""), *(() if measure.symmetric else ((other, place, "direction=from_other"),)),
        ):  # fmt: skip
            first, second = items[one], items[two]
            if first is None or second is None:
                continue
            if np.isnan(low[one, two]):
                ends = pairs.interval(first, second, value[one, two])
                low[one, two], high[one, two] = ends
                if measure.symmetric:
                    low[two, one], high[two, one] = ends
            here.findings.rows += pairs.rows(
                first, second, value[one, two], (low[one, two], high[one, two]), ";".join(filter(None, (part, way))),
                null=place == newest, step=here.steps[place], other_step=here.steps[other],
            )  # fmt: skip


# -- all layers at a step, and everything ----------------------------------------------------------------


def _over_layers(here: _Probe, pairs: Pairs) -> None:
    measure, options = pairs.measure, here.options
    steps, layers = here.layer_steps, here.layers
    if not steps:
        return
    values = np.full((len(steps), len(layers), len(layers)), np.nan)
    known: dict[str, np.ndarray] = {}
    before = here.earlier(measure.name, "layer_by_layer")
    if before is not None and before[1]["layers"] == layers:
        known = dict(zip(before[1]["layer_step_tokens"], before[0], strict=True))
    tokens = [here.tokens[here.steps.index(step)] for step in steps]
    for number, step in enumerate(steps):
        if measure.name in options.matrices or step == here.steps[-1]:
            items = [here.held.get((step, layer)) for layer in layers]
            values[number] = known.get(tokens[number], values[number])
            missing = np.isnan(values[number])
            if missing.any():
                values[number][missing] = pairs.matrix(items, missing)[missing]
    if measure.name in options.matrices:
        about = {"probe": here.probe, "measure": measure.name, "steps": steps, "origin": {**here.origin, "layer_step_tokens": tokens}}  # fmt: skip
        dims = ("layer_step", "layer", "other_layer")
        here.findings.arrays[f"{here.place}/{measure.name}/layer_by_layer"] = NamedArray(dims, values, about)
    if measure.name not in options.measures:
        return
    items = [here.held.get((here.steps[-1], layer)) for layer in layers]
    for one in range(len(layers)):
        for other in range(one + 1 if measure.symmetric else 0, len(layers)):
            first, second = items[one], items[other]
            if first is not None and second is not None and one != other:
                value = values[-1, one, other]
                here.findings.rows += pairs.rows(
                    first, second, value, pairs.interval(first, second, value), "against=layer", null=True,
                    other_layer=second.layer,
                )  # fmt: skip


def _over_everything(here: _Probe, pairs: Pairs) -> None:
    """Every layer at every step with every other: those that were taken over are not computed again."""
    steps, layers = here.steps, here.layers
    shape = (len(steps), len(layers), len(steps), len(layers))
    values = np.full(shape, np.nan)
    before = here.earlier(pairs.measure.name, "all_pairs")
    if before is not None and before[1]["layers"] == layers:
        mine, old = _unchanged(here, before[1])
        every = range(len(layers))
        values[np.ix_(mine, every, mine, every)] = before[0][np.ix_(old, every, old, every)]
    count = len(steps) * len(layers)
    flat = values.reshape(count, count)
    missing = np.isnan(flat)
    if missing.any():
        items = [here.held.get((step, layer)) for step in steps for layer in layers]
        flat[missing] = pairs.matrix(items, missing)[missing]
    about = {"probe": here.probe, "measure": pairs.measure.name, "origin": here.origin}
    dims = ("step", "layer", "other_step", "other_layer")
    here.findings.arrays[f"{here.place}/{pairs.measure.name}/all_pairs"] = NamedArray(
        dims, flat.reshape(shape), about
    )


def metrics() -> tuple[Metric, ...]:
    """One for each name under which measures are filed."""
    found: dict[str, Metric] = {}
    for item in MEASURES.values():
        blind = "; ".join(INVARIANCES[kind] for kind in INVARIANCES if kind in item.invariances)
        unit = "rad" if item.metric == "shape_distance" else "1"
        found.setdefault(item.metric, Metric(item.metric, unit, item.range, item.definition, item.source, blind))
    return tuple(found.values())


ANALYSIS = register(
    Analysis(
        name="similarity", version=1, scope="series", title="Similarity", question="Which layers changed, when, and which do the same?",
        options=SimilarityOptions, compute=compute, draw=draw, metrics=metrics(), builds_on=("decomposition",),
    )
)  # fmt: skip
