"""Whether attention between a source and a target follows an alignment that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.sequence.alignment_error_drawing import draw
from stratascope.tasks.sequence.attention_passes import CapturedOptions, attention_passes
from stratascope.tasks.sequence.sequence_samples import SHOWN, SequenceSamples, sequence_samples, token_count

if TYPE_CHECKING:
    from stratascope.tasks.sequence.attention_calls import AttentionCall
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

FIRST, LAST = "alignment", "alignment_end"
"""The inputs of a probe that hold the reference."""
_METRICS = ("alignment_accuracy", "alignment_mass", "alignment_error_rate")


class AlignmentErrorOptions(CapturedOptions):
    """Which samples are measured and shown. The probe brings the reference: inputs `alignment` int64 (sample, target token), the
    place in the source that each token of the target comes from, −1 for none, and, where it is several places,
    `alignment_end` with the last of them. The network is given them too, and leaves them alone."""

    rounds: int = Field(default=200, ge=20)
    """Of the bootstrap over samples."""


def compute(context: CheckpointContext, options: AlignmentErrorOptions) -> Findings:
    """Rows by layer and head; arrays `<probe>/<layer>/weights` float16 (shown_sample, head, query, key) and
    `accuracy_by_place` float32 (head, query), `<probe>/alignment` and `alignment_end` (shown_sample, query).
    """
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    findings = Findings()
    network: Any = None
    for name, probe in context.probes.items():
        try:
            if FIRST not in leaves_of(probe.inputs):
                raise DoesNotApply(f"probe {name!r} has no reference: give it as an input `{FIRST}`, int64 (sample, target token).")  # fmt: skip
            samples = sequence_samples(probe, options)
            first, last = reference_of(samples)
            network = network or SequenceNetwork.of(context)
            with network.untouched():
                _measure(network, samples, (first, last), options, findings)
        except DoesNotApply as reason:
            findings.rows += [Row(metric, probe=name, status="does_not_apply", reason=str(reason)) for metric in _METRICS]  # fmt: skip
    return findings


def reference_of(samples: SequenceSamples) -> tuple[np.ndarray, np.ndarray]:
    """int64 (sample, target token) twice: the first and the last place of each token's reference, −1 for none.

    Raises DoesNotApply where the probe's inputs of that name are no such reference.
    """
    leaves = leaves_of(samples.given.inputs)
    first = np.asarray(leaves[FIRST])
    last = np.asarray(leaves.get(LAST, first))
    for name, values in ((FIRST, first), (LAST, last)):
        if values.ndim != 2 or values.dtype.kind not in "iu" or values.shape != first.shape:
            shape = " x ".join(str(size) for size in values.shape)
            raise DoesNotApply(f"input {name!r} is {values.dtype} of {shape}; a reference is int64 (sample, target token).")  # fmt: skip
    first, last = first.astype(np.int64), last.astype(np.int64)
    if ((last < first) & (first >= 0)).any():
        raise DoesNotApply(
            f"`{LAST}` lies before `{FIRST}` for {int(((last < first) & (first >= 0)).sum())} tokens."
        )
    if not (first >= 0).any():
        raise DoesNotApply("no token of the measured samples has a reference.")
    return first, last


def _measure(
    network: SequenceNetwork, samples: SequenceSamples, reference: tuple[np.ndarray, np.ndarray],
    options: AlignmentErrorOptions, findings: Findings,
) -> None:  # fmt: skip
    import torch

    from stratascope.tasks.sequence.alignment_scores import alignment_counts

    first, last = (torch.from_numpy(values) for values in reference)
    counts: dict[str, list[np.ndarray]] = {}
    places: dict[str, np.ndarray] = {}
    shown: dict[str, list[np.ndarray]] = {}
    about: dict[str, dict[str, Any]] = {}
    for rows, found in attention_passes(network, samples, options):
        for call, attention in found:
            if not _is_between(call, samples, reference):
                continue
            if attention.weights.shape[1] > 1:
                # The heads' mean is one more alignment, which may be better than any head's.
                attention = type(attention)(
                    torch.cat([attention.weights, attention.weights.mean(1, keepdim=True)], 1), attention.allowed
                )
            values = alignment_counts(attention, first[rows], last[rows])
            about.setdefault(call.layer, {"query_input": call.query_input or "", "key_input": call.key_input or "", "residual": call.residual})  # fmt: skip
            counts.setdefault(call.layer, []).append(values.sum(-1).cpu().numpy())
            total = values[:2].sum(1).cpu().numpy()
            places[call.layer] = places.get(call.layer, 0) + total
            kept = attention.weights[: max(0, samples.shown - rows.start)]
            shown.setdefault(call.layer, []).append(kept.half().cpu().numpy())
    if not counts:
        tokens = reference[0].shape[1]
        raise DoesNotApply(f"no attention has {tokens} queries, one for each token of the reference, and the source's tokens as keys.")  # fmt: skip
    place = encode_path_part(samples.probe.name)
    findings.arrays[f"{place}/sample_id"] = NamedArray((SHOWN,), samples.given.sample_id[: samples.shown])
    for name, kept_places in zip((FIRST, LAST), reference, strict=True):
        findings.arrays[f"{place}/{name}"] = NamedArray((SHOWN, "query"), kept_places[: samples.shown])
    for layer, parts in counts.items():
        _file(samples.probe.name, layer, np.concatenate(parts, 1), options, findings)
        root = f"{place}/{encode_path_part(layer)}"
        dims = (SHOWN, "head", "query", "key")
        findings.arrays[f"{root}/weights"] = NamedArray(dims, np.concatenate(shown[layer]), about[layer])
        tokens, hits = places[layer]
        with np.errstate(invalid="ignore"):
            accuracy = (hits / tokens).astype(np.float32)
        findings.arrays[f"{root}/accuracy_by_place"] = NamedArray(("head", "query"), accuracy)


def _is_between(call: AttentionCall, samples: SequenceSamples, reference: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether `call` has a query for each token of the reference, and keys that its places may be."""
    leaves = leaves_of(samples.given.inputs)
    queries, keys = call.weights.shape[2], call.weights.shape[3] - call.added_keys
    source = call.key_input
    fits = source is None or source not in leaves or token_count(leaves[source]) == keys
    return call.kind != "self" and queries == reference[0].shape[1] and fits and int(reference[1].max()) < keys


def head_names(count: int) -> list[str]:
    """What the last axis of `count` is called: the heads, and their mean where there are several."""
    return ["0"] if count == 1 else [*(str(head) for head in range(count - 1)), "mean"]


def _file(probe: str, layer: str, counts: np.ndarray, options: AlignmentErrorOptions, findings: Findings) -> None:
    """Rows from `counts` (count, sample, head)."""
    from stratascope.tasks.sequence.alignment_scores import alignment_scores, resampled_shares

    for place, head in enumerate(head_names(counts.shape[2])):
        own = counts[:, :, place]
        scores = alignment_scores(own.sum(1))
        about: dict[str, Any] = {"probe": probe, "layer": layer}
        if not scores.tokens or not np.isfinite(own).all():
            reason = "the weights are not finite, or no query with a reference has any"
            findings.rows += [Row(metric, part=f"head={head}", status="does_not_apply", reason=reason, **about) for metric in _METRICS]  # fmt: skip
            continue
        ends = resampled_shares(own, options.rounds, options.seed)
        about |= {"n": scores.tokens, "convention": f"{own.shape[1]} samples"}
        for metric, value, (low, high) in zip(_METRICS, (scores.accuracy, scores.mass, scores.error_rate), ends, strict=True):  # fmt: skip
            estimator = "over tokens; 95 % bootstrap over samples"
            findings.rows.append(Row(metric, value, part=f"head={head}", low=low, high=high, estimator=estimator, **about))  # fmt: skip
        if place == 0:
            findings.rows.append(Row("alignment_accuracy", scores.chance, part="null=uniform", **about))


_ORDER = "order of the samples; batch size up to rounding; any increasing change of a row's weights for accuracy and error rate"
ANALYSIS = register(
    Analysis(
        name="alignment_error", version=1, scope="checkpoint", title="Alignment",
        question="Does attention look at the place in the source that a target token comes from?",
        options=AlignmentErrorOptions, compute=compute, draw=draw, needs=frozenset({"network"}),
        metrics=(
            Metric("alignment_accuracy", "fraction", "[0, 1]", "Share of the target tokens with a reference whose strongest source place lies within it, by head, and for the `mean` of the heads. `null=uniform` is what a place drawn from the real ones would have.", "own; for single places 1 less the alignment error rate", _ORDER),
            Metric("alignment_mass", "fraction", "[0, 1]", "Weight on the places of the reference, mean over the target tokens that have one.", "own", "order of the samples; batch size up to rounding"),
            Metric("alignment_error_rate", "fraction", "[0, 1]", "1 − (links in S + links in P) / (links + size of S): a link is a target token with a reference and its strongest source place, P are all places of the references, S those of references with a single place.", "Och and Ney 2003, eq. 5", _ORDER),
        ),
    )
)  # fmt: skip
