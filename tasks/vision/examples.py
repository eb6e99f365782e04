"""Samples that show what a network does at each step: surely right, surely wrong, undecided, changed, and their training kin."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import DamagedStoreError, DoesNotApply, StoreError
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, CaptureRequest, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.representation.features import (
    FeatureOptions,
    Reduction,
    chosen_rows,
    degenerate,
    layer_names,
    read_features,
    sound_patterns,
)
from stratascope.tasks.representation.losses import wilson_interval
from stratascope.tasks.vision.examples_drawing import draw
from stratascope.tasks.vision.telling_samples import KINDS, nearest_others, probabilities, telling_samples

_METRICS = ("nearest_same_class_fraction", "sure_fraction")
LAST_LINEAR = "@last_linear:input"


class ExamplesOptions(Options):
    """How many samples are kept of each kind, and where their nearest training samples are looked for."""

    pictures: int = Field(default=6, ge=1)
    """So many samples of each kind and step."""
    layer: str = LAST_LINEAR
    """The layer in which nearest training samples are found."""
    reduction: Reduction = "pooled"
    distance: Literal["cosine", "euclidean"] = "cosine"
    neighbours: int = Field(default=5, ge=1)
    """So many nearest training samples of each sample."""
    sure_above: float = Field(default=0.9, gt=0, lt=1)
    """An answer with at least this probability counts as sure."""
    max_samples: int = Field(default=2000, ge=2)
    """So many samples of each probe at most, the classes in proportion."""
    seed: int = Field(default=0, ge=0)

    @field_validator("layer")
    @classmethod
    def _layer_is_named(cls, value: str) -> str:
        return sound_patterns((value,))[0]


def request_of(options: ExamplesOptions) -> CaptureRequest:
    return CaptureRequest(layers=(options.layer, "@output"), keep=(options.reduction,))


def compute(context: SeriesContext, options: ExamplesOptions) -> Findings:
    """Rows for each step and probe; arrays `<probe>/<kind>` (step, rank) of sample numbers, -1 where there is none, with
    `<kind>_number`, `predicted` and `probability` (step, sample); `<probe>/<layer>/nearest` and `distance` (step,
    examples_sample, neighbour) of training samples.
    """
    findings = Findings()
    for name, probe in context.probes.items():
        rows = chosen_rows(probe, options.max_samples, options.seed)
        try:
            _answers(context, name, probe, rows, options, findings)
        except DoesNotApply as reason:
            findings.rows.append(Row("sure_fraction", probe=name, status="does_not_apply", reason=str(reason)))
    trains = [name for name, probe in context.probes.items() if probe.role == "train"]
    for name, probe in context.probes.items():
        if probe.role == "train":
            continue
        if not trains:
            missing = "there is no probe with role `train` to look for nearest samples in"
            findings.rows.append(Row("nearest_same_class_fraction", probe=name, status="does_not_apply", reason=missing))  # fmt: skip
        for train in trains:
            _nearest(context, name, train, options, findings)
    return findings


def _outputs(context: SeriesContext, step: int, name: str, rows: np.ndarray) -> np.ndarray:
    try:
        found = context.at(step).outputs(name)
    except DamagedStoreError:
        raise
    except StoreError:
        raise DoesNotApply(f"the outputs of step {step} are not stored") from None
    if found.ndim != 2 or found.shape[1] < 2:
        raise DoesNotApply("the outputs are no scores of two classes or more for each sample")
    if not np.isfinite(found).all():
        raise DoesNotApply(f"some outputs of step {step} are not finite")
    return found[rows]


def _answers(
    context: SeriesContext,
    name: str,
    probe: Probe,
    rows: np.ndarray,
    options: ExamplesOptions,
    findings: Findings,
) -> None:
    if (
        context.subject.task != "classification"
        or probe.targets is None
        or probe.targets.ndim != 1
        or probe.targets.dtype.kind not in "iub"
    ):
        raise DoesNotApply(
            "right and wrong are told of classes only: the task is another, or there are no targets"
        )
    targets = probe.targets[rows].astype(np.int64)
    steps = sorted(context.steps)
    first: np.ndarray | None = None
    previous: np.ndarray | None = None
    chosen = {kind: np.full((len(steps), options.pictures), -1, np.int64) for kind in KINDS}
    numbers = {kind: np.full((len(steps), options.pictures), np.nan, np.float32) for kind in KINDS}
    predicted, sure = [], []
    for place, step in enumerate(steps):
        now = probabilities(_outputs(context, step, name, rows))
        for kind in KINDS:
            before = first if kind == "changed_since_first" else previous
            members, values = telling_samples(kind, now, targets, before, options.pictures)
            chosen[kind][place, : len(members)] = members
            numbers[kind][place, : len(members)] = values
        predicted.append(now.argmax(1))
        sure.append(now.max(1))
        findings.rows += _sure_rows(name, step, now, targets, options)
        first = now if first is None else first
        previous = now
    sample, at = "examples_sample", "step"
    found = {
        "step": NamedArray((at,), np.array(steps, np.int64)),
        "sample_id": NamedArray((sample,), probe.sample_id[rows]),
        "target": NamedArray((sample,), targets),
        "predicted": NamedArray((at, sample), np.array(predicted, np.int64)),
        "probability": NamedArray((at, sample), np.array(sure, np.float32)),
    }
    for kind in KINDS:
        found[kind] = NamedArray((at, "rank"), chosen[kind])
        found[f"{kind}_number"] = NamedArray((at, "rank"), numbers[kind])
    findings.arrays |= {f"{name}/{item}": array for item, array in found.items()}


def _sure_rows(name: str, step: int, now: np.ndarray, targets: np.ndarray, options: ExamplesOptions) -> list[Row]:
    sure = now.max(1) >= options.sure_above
    right = now.argmax(1) == targets
    rows = []
    for part, inside in (("answer=right", right), ("answer=wrong", ~right)):
        count = int(inside.sum())
        about: dict[str, Any] = {"probe": name, "part": part, "step": step, "n": count}
        if not count:
            rows.append(Row("sure_fraction", status="does_not_apply", reason="no answer is so", **about))
            continue
        hits = int((sure & inside).sum())
        low, high = wilson_interval(hits, count)
        rows.append(
            Row("sure_fraction", hits / count, low=low, high=high, estimator="95 % Wilson", convention=f"sure={options.sure_above:g}", **about)
        )  # fmt: skip
    return rows


def _nearest(context: SeriesContext, name: str, train: str, options: ExamplesOptions, findings: Findings) -> None:
    """Nearest training samples at every step; a step at which they cannot be told has a row that says why."""
    probe, from_train = context.probes[name], context.probes[train]
    asked = FeatureOptions(
        layers=(options.layer,), reduction=options.reduction, max_samples=options.max_samples, seed=options.seed
    )
    rows = chosen_rows(probe, options.max_samples, options.seed)
    train_rows = chosen_rows(from_train, options.max_samples, options.seed)
    layer, orders, distances, sound = options.layer, [], [], []
    for step in sorted(context.steps):
        about: dict[str, Any] = {"probe": name, "part": f"train={train}", "step": step}
        try:
            at = context.at(step)
            layer = layer_names(at, name, asked.layers)[0]
            here = read_features(at, asked, name, layer, rows)
            there = read_features(at, asked, train, layer, train_rows)
            trouble = degenerate(here.values) or degenerate(there.values, 1)
            if trouble:
                raise DoesNotApply(trouble)
            order, far = nearest_others(
                here.values, there.values, min(options.neighbours, len(train_rows)), options.distance
            )
        except DoesNotApply as reason:
            findings.rows.append(
                Row(
                    "nearest_same_class_fraction",
                    status="does_not_apply",
                    reason=str(reason),
                    layer=layer,
                    **about,
                )
            )
            continue
        orders.append(order)
        distances.append(far.astype(np.float32))
        sound.append(step)
        findings.rows.append(_same_class_row(here.classes, there.classes, order, layer, about, options))
    if not sound:
        return
    place = f"{name}/{encode_path_part(layer)}/{encode_path_part(train)}"
    sample = "examples_sample"
    findings.arrays |= {
        f"{place}/step": NamedArray(("step",), np.array(sound, np.int64)),
        f"{place}/nearest": NamedArray(("step", sample, "neighbour"), np.array(orders, np.int32)),
        f"{place}/distance": NamedArray(("step", sample, "neighbour"), np.array(distances)),
        f"{place}/sample_id": NamedArray((sample,), probe.sample_id[rows]),
        f"{place}/train_sample_id": NamedArray(("train_sample",), from_train.sample_id[train_rows]),
    }


def _same_class_row(
    classes: np.ndarray | None,
    train_classes: np.ndarray | None,
    order: np.ndarray,
    layer: str,
    about: dict[str, Any],
    options: ExamplesOptions,
) -> Row:
    metric = "nearest_same_class_fraction"
    if classes is None or train_classes is None:
        return Row(
            metric, status="does_not_apply", reason="the probes' targets are no classes", layer=layer, **about
        )
    same = (train_classes[order] == classes[:, None]).mean(1)
    half = 1.959964 * float(same.std(ddof=1)) / np.sqrt(len(same)) if len(same) > 1 else np.nan
    mean = float(same.mean())
    return Row(
        metric, mean, low=max(0.0, mean - half), high=min(1.0, mean + half), layer=layer, n=len(same),
        estimator="95 % normal over samples", convention=f"k={order.shape[1]};{options.distance}", **about,
    )  # fmt: skip


_ORDER = "order of the samples"
ANALYSIS = register(
    Analysis(
        name="examples", version=1, scope="series", title="Examples",
        question="Which samples is the network sure of, rightly and wrongly, and what of the training data is nearest to them?",
        options=ExamplesOptions, compute=compute, draw=draw, needs=frozenset({"activations"}), request=request_of,
        metrics=(
            Metric("nearest_same_class_fraction", "fraction", "[0, 1]", "Share of a sample's nearest training samples in a layer (`train=…` names their probe) that have its class, mean over the samples.", "", f"{_ORDER}; rotation and uniform scaling of the features"),
            Metric("sure_fraction", "fraction", "[0, 1]", "Share of the right (`answer=right`) and of the wrong (`answer=wrong`) answers that the network gives with a probability of at least `sure_above`.", "interval: Wilson 1927, eq. 4", _ORDER),
        ),
    )
)  # fmt: skip
