"""Whether the answers of a network follow concepts that people have words for, layer by layer (TCAV)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from stratascope.errors import ConfigurationError, DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.given_samples import given_samples
from stratascope.tasks.representation.features import chosen_rows
from stratascope.tasks.representation.outputs import class_part
from stratascope.tasks.vision.chosen_samples import rows_of_ids
from stratascope.tasks.vision.concept_layers import concept_layers, layer_products
from stratascope.tasks.vision.concept_pictures import SYNTHETIC, Synthetic, laid_over
from stratascope.tasks.vision.concept_vectors import (
    HeldAgainst,
    RandomSets,
    held_against,
    holm,
    p_value,
)
from stratascope.tasks.vision.concepts_drawing import draw

if TYPE_CHECKING:
    from stratascope.tasks.capture.layers import LayerInfo
    from stratascope.tasks.vision.image_network import ImageNetwork

_METRICS = ("tcav_score", "concept_sensitivity", "concept_p_value", "concept_accuracy")
_LEAST_SET = 6


class ConceptsOptions(Options):
    """Which concepts are looked for, where, and against how much chance."""

    concepts: dict[str, str | tuple[str | int, ...]] = {}
    """By name: ids of the probe's samples that show the concept, or `module:name` of a callable that returns pictures, uint8
    (sample, y, x, channel) or float (sample, channel, y, x) normalised as the probe is."""
    synthetic: tuple[Synthetic, ...] = SYNTHETIC
    """Built-in patterns that are laid over the probe's own pictures; `noise` is there as a control."""
    strength: float = Field(default=0.5, gt=0, le=1)
    """How much of a picture such a pattern makes; 1 leaves nothing of the picture."""
    layers: tuple[str, ...] = ()
    """Names, globs, `re:…` or `type:…`; without any, four weighted layers from the first to the last."""
    features: Literal["full", "pooled"] = "full"
    """`pooled` takes the mean over a layer's places: directions then say what, not where."""
    concept_size: int = Field(default=30, ge=_LEAST_SET)
    """So many samples of a concept, and so many of each random set."""
    random_sets: int = Field(default=20, ge=3)
    """Each concept is held against so many random sets, and each of these, as if it were a concept, against the others."""
    pool: int = Field(default=300, ge=3 * _LEAST_SET)
    """The random sets are drawn from so many samples of the probe."""
    classes: tuple[int, ...] = ()
    """Which outputs are asked about; without any, the first ten classes of the probe."""
    samples_per_class: int = Field(default=20, ge=1)
    """The gradient of a class's output is taken at so many samples of the class."""
    penalty: float = Field(default=0.01, gt=0)
    """Of the linear classifier, in units of the activations' variance."""
    significance: float = Field(default=0.05, gt=0, lt=1)
    """Concepts whose corrected p-value is above this are drawn in grey."""
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    """So many samples go through the network at once; no part of the result."""


@dataclass(frozen=True)
class ConceptSet:
    """The samples of one concept."""

    name: str
    inputs: np.ndarray
    pool_rows: np.ndarray
    """int64: samples of the pool that it was made of; no opponent may hold them."""


def compute(context: CheckpointContext, options: ConceptsOptions) -> Findings:
    """Rows by layer, concept and class; arrays `<probe>/score`, `sensitivity` and `p_value` (layer, concept, class[, random_set]),
    `accuracy` (layer, concept, random_set), `random_sensitivity` (layer, random_set, class), with the names of the axes.
    """
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    network = ImageNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                work = _Work.of(network, probe, options, Path(context.subject.folder))
            except (DoesNotApply, ConfigurationError) as reason:
                findings.rows += _unknown(name, str(reason))
                continue
            findings.rows += [
                Row("concept_accuracy", probe=name, part=f"concept={concept}", status="does_not_apply", reason=reason)
                for concept, reason in work.refused.items()
            ]  # fmt: skip
            if work.concepts:
                _one_probe(work, findings)
    return findings


@dataclass(frozen=True)
class _Work:
    """What is the same for all layers on one probe."""

    network: ImageNetwork
    probe: Probe
    options: ConceptsOptions
    layers: list[LayerInfo]
    inputs: np.ndarray
    """The pool, then all concepts' samples."""
    concepts: list[tuple[ConceptSet, np.ndarray]]
    """Each with its rows of `inputs`."""
    refused: dict[str, str]
    sets: RandomSets
    explained: np.ndarray
    """Inputs at which gradients are taken."""
    outputs: np.ndarray
    """int64 (explained sample,): whose class's output is asked about."""
    classes: np.ndarray
    """int64 (class,): those that are asked about, ascending."""

    @classmethod
    def of(cls, network: ImageNetwork, probe: Probe, options: ConceptsOptions, folder: Path) -> _Work:
        if isinstance(probe.inputs, dict):
            raise DoesNotApply(f"the inputs of probe {probe.name!r} have several parts; concepts need one array.")
        explained, outputs = _explained(probe, options)
        rows = chosen_rows(probe, options.pool, options.seed)
        size = min(options.concept_size, len(rows) // 3)
        if size < _LEAST_SET:
            raise DoesNotApply(f"probe {probe.name!r} has {len(rows)} samples; at least {3 * _LEAST_SET} are needed.")  # fmt: skip
        pool = given_samples(probe, rows)
        concepts, refused = concept_sets(probe, rows, pool.inputs, options, size, folder)
        stacked, placed, start = [pool.inputs], [], len(rows)
        for concept in concepts:
            placed.append((concept, np.arange(start, start + len(concept.inputs))))
            stacked.append(concept.inputs)
            start += len(concept.inputs)
        sets = RandomSets.drawn(len(rows), options.random_sets, size, options.seed)
        return cls(
            network, probe, options, concept_layers(network, probe, options.layers), np.concatenate(stacked),
            placed, refused, sets, explained, outputs, np.unique(outputs),
        )  # fmt: skip

    def class_label(self, value: int) -> str:
        names = self.probe.class_names
        return str(names[value]) if 0 <= value < len(names) else str(value)


def _explained(probe: Probe, options: ConceptsOptions) -> tuple[np.ndarray, np.ndarray]:
    targets = probe.targets
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
        raise DoesNotApply(f"the targets of probe {probe.name!r} are no classes.")
    present = np.unique(targets)
    wanted = np.array(options.classes, np.int64) if options.classes else present[:10]
    missing = [int(value) for value in wanted if value not in present]
    if missing:
        raise DoesNotApply(f"`classes`: probe {probe.name!r} has no sample of class {missing[0]}.")
    order = chosen_rows(probe, len(probe), options.seed)
    rows = np.concatenate(
        [order[targets[order] == value][: options.samples_per_class] for value in np.unique(wanted)]
    )
    return given_samples(probe, rows).inputs, targets[rows].astype(np.int64)


def concept_sets(
    probe: Probe, pool_rows: np.ndarray, pool: np.ndarray, options: ConceptsOptions, size: int, folder: Path
) -> tuple[list[ConceptSet], dict[str, str]]:
    """All concepts that can be made for `probe`, and why others cannot. `pool` are the inputs at `pool_rows`."""
    found, refused = [], {}
    for name, source in options.concepts.items():
        try:
            if isinstance(source, str):
                pictures = _from_factory(source, probe, folder)
                found.append(ConceptSet(name, pictures[:size], np.array([], np.int64)))
            else:
                rows = rows_of_ids(probe, source)
                if len(rows) < _LEAST_SET:
                    raise DoesNotApply(f"concept {name!r} has {len(rows)} samples; at least {_LEAST_SET} are needed.")  # fmt: skip
                inputs = given_samples(probe, rows).inputs
                found.append(ConceptSet(name, inputs, np.flatnonzero(np.isin(pool_rows, rows))))
        except (DoesNotApply, ConfigurationError) as reason:
            refused[name] = str(reason)
    for kind in options.synthetic:
        if pool.ndim != 4 or np.dtype(pool.dtype).kind not in "fiub" or probe.kind == "text":
            refused[kind] = f"the samples of probe {probe.name!r} are no pictures; name samples under `concepts`."
            continue
        base = np.random.default_rng([options.seed, 0xC0, SYNTHETIC.index(kind)]).permutation(len(pool))[:size]
        pictures = laid_over(pool[base].astype(np.float32), kind, options.strength, options.seed)
        found.append(ConceptSet(kind, pictures, base))
    return found, refused


def _from_factory(source: str, probe: Probe, folder: Path) -> np.ndarray:
    from stratascope.storage.factories import load_object

    pictures = np.asarray(load_object(source, folder)())
    shape = tuple(probe.inputs.shape[1:])
    if pictures.dtype == np.uint8 and pictures.ndim == 4:
        if probe.normalization is None:
            raise DoesNotApply(
                f"{source!r} returned raw pictures, but how probe {probe.name!r} was normalised is not known."
            )
        raw = pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255
        mean, std = (np.asarray(part, np.float32).reshape(1, -1, 1, 1) for part in (probe.normalization.mean, probe.normalization.std))  # fmt: skip
        pictures = (raw - mean) / std
    if pictures.shape[1:] != shape or len(pictures) < _LEAST_SET:
        raise DoesNotApply(
            f"{source!r} returned {pictures.shape}; expected at least {_LEAST_SET} samples of shape {shape}."
        )
    return pictures.astype(np.float32)


def _one_probe(work: _Work, findings: Findings) -> None:
    options, count = work.options, len(work.classes)
    places = np.searchsorted(work.classes, work.outputs)
    by_layer: list[tuple[str, list[HeldAgainst], list[HeldAgainst]]] = []
    for layer in work.layers:
        try:
            products = layer_products(work.network, layer, work.inputs, work.explained, work.outputs, options.features, options.batch_size)  # fmt: skip
        except DoesNotApply as reason:
            findings.rows += _unknown(work.probe.name, str(reason), layer.name)
            continue
        if not np.isfinite(products.gram).all() or not np.isfinite(products.along).all():
            findings.rows += [Row(metric, layer=layer.name, probe=work.probe.name, status="failed", reason="activations or gradients are not finite") for metric in _METRICS]  # fmt: skip
            continue
        if not products.gradient_norms.any():
            findings.rows += _unknown(
                work.probe.name, "the gradient of every chosen output is zero there", layer.name
            )
            continue
        random = []
        for number in range(len(work.sets)):
            members = work.sets.members(number)
            random.append(
                held_against(
                    products,
                    members,
                    members,
                    work.sets,
                    places,
                    count,
                    options.penalty,
                    skip=number,
                    held_out=False,
                )
            )
        own = [
            held_against(products, rows, concept.pool_rows, work.sets, places, count, options.penalty)
            for concept, rows in work.concepts
        ]
        by_layer.append((layer.name, own, random))
    if by_layer:
        _file(work, by_layer, findings)


def _file(
    work: _Work, by_layer: Sequence[tuple[str, list[HeldAgainst], list[HeldAgainst]]], findings: Findings
) -> None:
    names = [concept.name for concept, _ in work.concepts]
    raw = np.array(
        [
            [
                [
                    p_value(float(one.sensitivity[:, place].mean()), np.array([item.sensitivity[:, place].mean() for item in random]))
                    for place in range(len(work.classes))
                ]
                for one in own
            ]
            for _, own, random in by_layer
        ]
    )  # fmt: skip
    corrected = holm(raw.ravel()).reshape(raw.shape)
    for number, (layer_name, own, _) in enumerate(by_layer):
        for row, (name, one) in enumerate(zip(names, own, strict=True)):
            about: dict[str, Any] = {
                "layer": layer_name, "probe": work.probe.name, "n": len(work.sets),
                "estimator": "middle 95 % over random sets",
            }  # fmt: skip
            findings.rows.append(_spread_row("concept_accuracy", one.accuracy, part=f"concept={name}", **about))
            for column, value in enumerate(work.classes):
                part = f"concept={name};{class_part(int(value), work.probe.class_names)}"
                findings.rows.append(_spread_row("tcav_score", one.scores[:, column], part=part, **about))
                findings.rows.append(_spread_row("concept_sensitivity", one.sensitivity[:, column], part=part, **about))  # fmt: skip
                known = about | {"estimator": "t-test against random sets", "convention": f"holm over {raw.size}"}
                p = float(corrected[number, row, column])
                if math.isfinite(p):
                    findings.rows.append(Row("concept_p_value", p, part=part, **known))
    place, kinds = f"{work.probe.name}/", [("score", "scores"), ("sensitivity", "sensitivity")]
    layer, concept, kind = "concept_layer", "concept", "class"
    arrays = {
        "layer": NamedArray((layer,), np.array([item[0] for item in by_layer])),
        "concept": NamedArray((concept,), np.array(names)),
        "class": NamedArray((kind,), np.array([work.class_label(int(value)) for value in work.classes])),
        "accuracy": NamedArray((layer, concept, "random_set"), np.array([[one.accuracy for one in own] for _, own, _ in by_layer], np.float32)),
        "p_value": NamedArray((layer, concept, kind), corrected),
        "random_sensitivity": NamedArray((layer, "random_set", kind), np.array([[one.sensitivity.mean(0) for one in random] for *_, random in by_layer], np.float32)),
    }  # fmt: skip
    for name, attribute in kinds:
        values = [[getattr(one, attribute).T for one in own] for _, own, _ in by_layer]
        arrays[name] = NamedArray((layer, concept, kind, "random_set"), np.array(values, np.float32))
    findings.arrays |= {place + name: array for name, array in arrays.items()}


def _spread_row(metric: str, values: np.ndarray, **about: Any) -> Row:
    low, high = np.quantile(values, (0.025, 0.975))
    return Row(metric, float(values.mean()), low=float(low), high=float(high), **about)


def _unknown(probe: str, reason: str, layer: str = "") -> list[Row]:
    return [Row(metric, layer=layer, probe=probe, status="does_not_apply", reason=reason) for metric in _METRICS]


_ORDER = "order of the samples; uniform scaling of the layer; scale of the output"
ANALYSIS = register(
    Analysis(
        name="concepts", version=1, scope="checkpoint", title="Concepts",
        question="Do the answers follow concepts that people have words for, and from which layer on?",
        options=ConceptsOptions, compute=compute, draw=draw, needs=frozenset({"network", "gradients"}),
        metrics=(
            Metric("tcav_score", "fraction", "[0, 1]", "Share of a class's samples whose output for that class grows when the layer moves along the concept (`concept=…;class=…`): mean over the random sets that the concept was told from, `low` and `high` their middle 95 %.", "Kim et al. 2018, eq. 2", _ORDER),
            Metric("concept_sensitivity", "1", "[-1, 1]", "Mean cosine between the gradient of the class's output by the layer and the concept's direction.", "Kim et al. 2018, eq. 1, normalised", _ORDER),
            Metric("concept_p_value", "probability", "[0, 1]", "How probable a sensitivity as far from that of random sets is for a further random set, corrected for the number of concepts, classes and layers.", "t-test of one against many: Crawford and Howell 1998; Holm 1979", _ORDER),
            Metric("concept_accuracy", "fraction", "[0, 1]", "How well a linear classifier tells the concept's samples from random ones in the layer, on samples that it was not fitted on; 0.5 is chance.", "Kim et al. 2018, section 3.2", _ORDER),
        ),
    )
)  # fmt: skip
