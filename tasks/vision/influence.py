"""Which training samples pull a test sample's loss down or up at a checkpoint, and which train mostly themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.given_samples import GivenSamples, given_samples, with_targets
from stratascope.tasks.representation.features import chosen_rows
from stratascope.tasks.representation.losses import mean_interval
from stratascope.tasks.representation.outputs import class_part
from stratascope.tasks.vision.chosen_samples import rows_of_ids
from stratascope.tasks.vision.influence_drawing import draw
from stratascope.tasks.vision.influence_scores import (
    Products,
    products_of_all,
    products_of_last_layer,
    same_class_share,
)
from stratascope.tasks.vision.sample_gradients import LossKind, trained_parameters

if TYPE_CHECKING:
    from stratascope.tasks.vision.image_network import ImageNetwork

_METRICS = ("self_influence", "proponent_same_class_fraction")
_FILED = (0.5, 0.95)


class InfluenceOptions(Options):
    """Which samples are held against which, and by which weights."""

    samples: int = Field(default=8, ge=1)
    """So many test samples of each probe at most, the classes in proportion."""
    sample_ids: tuple[str | int, ...] = ()
    """These test samples and no others, by the ids that the probe gives them."""
    train_samples: int = Field(default=500, ge=2)
    """So many samples of each probe with role `train` at most, the classes in proportion."""
    weights: Literal["last_layer", "all"] = "last_layer"
    """`last_layer` takes the gradients by the last linear layer alone, which costs hardly more than running the samples;
    `all` takes every weight, one gradient a sample."""
    proponents: int = Field(default=5, ge=1)
    """So many training samples of highest influence are asked for their class."""
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    """So many samples go through the network at once; no part of the result."""


def compute(context: CheckpointContext, options: InfluenceOptions) -> Findings:
    """Rows for each probe; arrays `<probe>/<train probe>/inner_product` (influence_sample, train_sample) and
    `<train probe>/own_product` (train_sample,), without the step size, with the samples' ids and classes.
    """
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    try:
        work = _Work(ImageNetwork.of(context), context, options)
    except DoesNotApply as reason:
        findings.rows += _unknown("", str(reason))
        return findings
    with work.network.untouched():
        for name, train_probe in context.probes.items():
            if train_probe.role != "train":
                continue
            try:
                train = with_targets(given_samples(train_probe, chosen_rows(train_probe, options.train_samples, options.seed)), context.subject.task)  # fmt: skip
            except DoesNotApply as reason:
                findings.rows += _unknown(name, str(reason))
                continue
            _one_train_probe(work, name, train, findings)
    return findings


class _Work:
    """What is the same for all probes of a checkpoint."""

    def __init__(self, network: ImageNetwork, context: CheckpointContext, options: InfluenceOptions) -> None:
        from stratascope.tasks.capture.layers import last_linear

        self.network, self.context, self.options = network, context, options
        self.kind = LossKind.of(context.subject)
        self.parameters = trained_parameters(network.network)
        self.layer = last_linear(network.network)
        if not any(probe.role == "train" for probe in context.probes.values()):
            raise DoesNotApply(
                "influence needs a probe with role `train`, whose samples the network was trained on."
            )
        if options.weights == "last_layer" and self.layer is None:
            raise DoesNotApply("this network has no linear layer: take `weights: all`.")

    def products(self, test: GivenSamples, train: GivenSamples) -> Products:
        options = self.options
        if options.weights == "all":
            return products_of_all(self.network, test, train, self.kind, self.parameters, options.batch_size)
        assert self.layer is not None
        return products_of_last_layer(self.network, test, train, self.kind, self.layer, options.batch_size)

    def convention(self) -> str:
        return "weights=all" if self.options.weights == "all" else f"weights={self.layer}"


def _one_train_probe(work: _Work, name: str, train: GivenSamples, findings: Findings) -> None:
    context, options = work.context, work.options
    own: np.ndarray | None = None
    for probe_name, probe in context.probes.items():
        if probe.role == "train":
            continue
        try:
            test = with_targets(given_samples(probe, asked_rows(probe, options)), context.subject.task)
            products = work.products(test, train)
        except DoesNotApply as reason:
            findings.rows += _unknown(probe_name, str(reason))
            continue
        own = products.own
        findings.arrays |= _pair_arrays(probe_name, name, test, products)
        findings.rows += _pair_rows(work, probe_name, name, test, train, products)
    if own is None:
        try:
            own = work.products(train.part(slice(0, 1)), train).own
        except DoesNotApply as reason:
            findings.rows += _unknown(name, str(reason))
            return
    findings.arrays |= _train_arrays(name, train, own)
    findings.rows += _own_rows(work, name, train, own)


def asked_rows(probe: Probe, options: InfluenceOptions) -> np.ndarray:
    """Places of the test samples, by class and then by a digest of their ids. Raises DoesNotApply for an unknown id."""
    if options.sample_ids:
        return rows_of_ids(probe, options.sample_ids)
    rows = chosen_rows(probe, options.samples, options.seed)
    targets = probe.targets
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
        return rows
    return rows[np.argsort(targets[rows], kind="stable")]


def _own_rows(work: _Work, name: str, train: GivenSamples, own: np.ndarray) -> list[Row]:
    about: dict[str, Any] = {"probe": name, "n": len(own), "convention": f"rate=1;{work.convention()}"}
    if not np.isfinite(own).all():
        reason = f"the gradients of {int((~np.isfinite(own)).sum())} of {len(own)} samples are not finite"
        return [Row("self_influence", status="failed", reason=reason, **about)]
    low, high = mean_interval(own, np.arange(len(own)))
    rows = [Row("self_influence", float(own.mean()), low=low, high=high, estimator="95 % normal over samples", **about)]  # fmt: skip
    for share in _FILED:
        rows.append(Row("self_influence", float(np.quantile(own, share)), part=f"quantile={share:g}", **about))
    classes = train.classes
    for value in np.unique(classes) if classes is not None else ():
        inside = own[classes == value]
        part = class_part(int(value), train.class_names)
        rows.append(Row("self_influence", float(inside.mean()), part=part, **(about | {"n": len(inside)})))
    return rows


def _pair_rows(
    work: _Work, probe: str, train_name: str, test: GivenSamples, train: GivenSamples, products: Products
) -> list[Row]:
    about: dict[str, Any] = {
        "probe": probe, "part": f"train={train_name}", "n": len(test), "convention": work.convention(),
    }  # fmt: skip
    if test.classes is None or train.classes is None:
        reason = "the probes' targets are no classes"
        return [Row("proponent_same_class_fraction", status="does_not_apply", reason=reason, **about)]
    if not np.isfinite(products.pairs).all():
        reason = "some gradients are not finite"
        return [Row("proponent_same_class_fraction", status="failed", reason=reason, **about)]
    shares = same_class_share(products.pairs, test.classes, train.classes, work.options.proponents)
    return [Row("proponent_same_class_fraction", float(shares.mean()), **about)]


def _pair_arrays(probe: str, train_name: str, test: GivenSamples, products: Products) -> dict[str, NamedArray]:
    sample = "influence_sample"
    found = {
        f"{probe}/{encode_path_part(train_name)}/inner_product": NamedArray(
            (sample, "train_sample"), products.pairs.astype(np.float32), {"train_probe": train_name}
        ),
        f"{probe}/sample_id": NamedArray((sample,), test.sample_id),
    }  # fmt: skip
    if test.classes is not None:
        found[f"{probe}/target"] = NamedArray((sample,), test.classes)
    return found


def _train_arrays(name: str, train: GivenSamples, own: np.ndarray) -> dict[str, NamedArray]:
    sample = "train_sample"
    found = {
        f"{name}/own_product": NamedArray((sample,), own.astype(np.float32)),
        f"{name}/train_sample_id": NamedArray((sample,), train.sample_id),
    }
    if train.classes is not None:
        found[f"{name}/train_target"] = NamedArray((sample,), train.classes)
    return found


def _unknown(probe: str, reason: str) -> list[Row]:
    return [Row(metric, probe=probe, status="does_not_apply", reason=reason) for metric in _METRICS]


ANALYSIS = register(
    Analysis(
        name="influence", version=1, scope="checkpoint", title="Influence of training samples",
        question="Which training samples does a step on a test sample lean on, and which train mostly themselves?",
        options=InfluenceOptions, compute=compute, draw=draw, needs=frozenset({"network", "gradients"}),
        metrics=(
            Metric("self_influence", "loss per step size", "[0, ∞)", "Squared norm of the gradient of a training sample's own loss, without the step size: mean over the samples, by class, and quantiles (`quantile=…`). By default of the last linear layer's weights alone; the convention says which.", "Pruthi et al. 2020, section 3", "permutation of units and samples"),
            Metric("proponent_same_class_fraction", "fraction", "[0, 1]", "Share of the training samples of highest influence on a test sample that have its class, mean over the test samples.", "", "scale of the loss; order of the samples"),
        ),
    )
)  # fmt: skip
