"""How strongly the probe's loss pulls at each layer's weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from stratascope.errors import AnalysisError, DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.probes import Probe, stratified_sample
from stratascope.tasks.analysis import Analysis, Findings, Metric, Options, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.gradients_drawing import draw

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stratascope.storage.model_spec import ModelSpec


_BATCH_SIZE = 64
"""So many samples go through the network at once; no part of the result beyond rounding."""


class GradientsOptions(Options):
    """The gradient is that of the mean loss over at most `max_samples` of the probe, in proportion to the classes."""

    max_samples: int = Field(default=512, ge=1)
    seed: int = Field(default=0, ge=0)
    precision: Literal["model", "float64"] = "model"
    """`float64` costs about five times as much, and pays where a network sits in a minimum of the probe's loss."""


Batch = tuple[Any, np.ndarray, np.ndarray | None]
"""Inputs (sample, …), targets (sample, …), and the mask of real tokens."""


def mean_gradient(
    network: nn.Module,
    batches: Iterator[Batch],
    model: ModelSpec,
    task: str,
    loss: str,
    folder: Path | None = None,
    fixed_batch_size: int | None = None,
) -> tuple[dict[str, Tensor | None], int]:
    """The gradient of the mean loss over all rows of `batches`, by parameter, and the number of rows.

    None for a parameter that the loss does not depend on. The network computes in its own precision; the gradients
    of the batches are added up in float64, since they cancel, near a minimum to a thousandth of their size. What
    float32 loses within a batch stays below 1e-5 of the norm until then; a network in float64 (five times slower
    on a processor, hence not the default) loses nothing that counts. Batches are filled up for a network that takes
    `fixed_batch_size` samples only. Takes no hook and leaves the parameters' `.grad` as it was. Raises DoesNotApply,
    AnalysisError.
    """
    import torch

    from stratascope.tasks.models.network import as_tensor, call_network, select_output
    from stratascope.tasks.representation.losses import counted_rows, losses_of

    trained = {name: item for name, item in network.named_parameters() if item.requires_grad}
    if not trained:
        raise DoesNotApply("the network has no parameter that takes a gradient.")
    dtype = next(iter(trained.values())).dtype
    totals: dict[str, Tensor | None] = dict.fromkeys(trained)
    count = 0
    with torch.enable_grad():
        for inputs, targets, mask in batches:
            given = as_tensor(_filled(inputs, fixed_batch_size), dtype)
            output = select_output(call_network(network, given, model, folder), model.output)[: len(targets)].cpu()
            if not output.requires_grad:
                raise DoesNotApply("no gradient reaches the network's weights from its outputs.")
            rows = counted_rows(output, torch.as_tensor(targets), mask, task)
            if not len(rows.owner):
                continue
            losses = losses_of(rows, task, loss, folder)
            if not losses.requires_grad:
                raise AnalysisError(f"loss {loss!r} carries no gradient: compute it with torch from the outputs.")
            # A mean stands for its rows, so that batches of any size add up to the mean over all.
            total = losses.sum() if losses.ndim else losses * len(rows.owner)
            found = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
            for name, gradient in zip(trained, found, strict=True):
                if gradient is not None:
                    before = totals[name]
                    totals[name] = gradient.double() if before is None else before + gradient.double()
            count += len(rows.owner)
    if not count:
        raise DoesNotApply("no target counts: all are padding.")
    return {name: None if total is None else total / count for name, total in totals.items()}, count


def compute(context: CheckpointContext, options: GradientsOptions) -> Findings:
    """Rows by tensor, by layer (part ""), and for the whole network (layer ""); in evaluation mode."""
    import torch

    from stratascope.tasks.intake.facts import open_network

    findings = Findings()
    subject = context.subject
    folder = Path(subject.folder)
    assert context.file is not None
    loaded = open_network(
        context.file, subject.source, folder, context.facts.get("weights_digest"), context.device
    )
    precision = subject.source.model.compute_dtype if options.precision == "model" else options.precision
    network = loaded.module.to(getattr(torch, precision))
    size = loaded.traits.fixed_batch_size
    for name, probe in context.probes.items():
        try:
            if subject.task == "none":
                raise DoesNotApply("the task is 'none': there is no loss to differentiate.")
            if probe.targets is None:
                raise DoesNotApply(f"probe {name!r} has no targets.")
            gradients, count = mean_gradient(
                network, _batches(probe, options, size or _BATCH_SIZE), subject.source.model, subject.task,
                subject.loss, folder, size,
            )  # fmt: skip
        except DoesNotApply as reason:
            findings.rows += [
                Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                for metric in ANALYSIS.metrics
            ]
            continue
        weights = {key: float(item.detach().double().norm()) for key, item in network.named_parameters()}
        norms = {key: None if item is None else float(item.norm()) for key, item in gradients.items()}
        findings.rows += gradient_rows(name, norms, weights, count)
    return findings


def _batches(probe: Probe, options: GradientsOptions, size: int) -> Iterator[Batch]:
    chosen = stratified_sample(probe.targets, len(probe), options.max_samples, options.seed)
    for start in range(0, len(chosen), size):
        rows = chosen[start : start + size]
        span = slice(int(rows[0]), int(rows[-1]) + 1)
        inside = rows - span.start
        assert probe.targets is not None
        mask = probe.target_mask_at(span)
        yield _taken(probe.inputs_at(span), inside), probe.targets[rows], None if mask is None else mask[inside]


def _taken(inputs: Any, rows: np.ndarray) -> Any:
    if isinstance(inputs, dict):
        return {name: _taken(values, rows) for name, values in inputs.items()}
    return inputs[rows]


def _filled(inputs: Any, size: int | None) -> Any:
    """`inputs` with their first sample repeated up to `size`."""
    if isinstance(inputs, dict):
        return {name: _filled(values, size) for name, values in inputs.items()}
    missing = 0 if size is None else size - len(inputs)
    return np.concatenate([inputs, np.repeat(inputs[:1], missing, axis=0)]) if missing > 0 else inputs


def gradient_rows(probe: str, norms: dict[str, float | None], weights: dict[str, float], count: int) -> list[Row]:
    """`gradient_norm` and `gradient_to_weight_ratio` from the norms of each tensor's gradient and of itself."""
    rows: list[Row] = []
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for full in norms:
        layer, _, tensor = full.rpartition(".")
        groups[layer, f"tensor={tensor}"].append(full)
        if layer:
            groups[layer, ""].append(full)
        groups["", ""].append(full)
    for (layer, part), members in groups.items():
        shared: dict[str, Any] = {"probe": probe, "layer": layer, "part": part, "n": count}
        known = [norm for name in members if (norm := norms[name]) is not None]
        size = math.hypot(*(weights[name] for name in members))
        norm = math.hypot(*known)
        rows += _pair(norm if known else None, size, shared)
    return rows


def _pair(norm: float | None, size: float, shared: dict[str, Any]) -> list[Row]:
    metrics = ("gradient_norm", "gradient_to_weight_ratio")
    if norm is None:
        reason = "the loss does not depend on it"
        return [Row(metric, status="does_not_apply", reason=reason, **shared) for metric in metrics]
    if not math.isfinite(norm):
        return [Row(metric, status="failed", reason="the gradient is not finite", **shared) for metric in metrics]
    rows = [Row(metrics[0], norm, **shared)]
    if size > 0 and math.isfinite(size):
        return [*rows, Row(metrics[1], norm / size, **shared)]
    return [*rows, Row(metrics[1], status="does_not_apply", reason="the weights are all zero", **shared)]


ANALYSIS = register(
    Analysis(
        name="gradients", version=1, scope="checkpoint", title="Gradients", question="Does every layer still learn?",
        options=GradientsOptions, compute=compute, draw=draw, needs=frozenset({"network", "gradients"}), default=True,
        metrics=(
            Metric("gradient_norm", "loss per weight", "[0, ∞)", "Euclidean norm of the gradient of the probe's mean loss, by tensor (`part`), by layer (no part) and for the whole network (no layer).", "", "permutation of units and samples"),
            Metric("gradient_to_weight_ratio", "1", "[0, ∞)", "That norm divided by the Frobenius norm of the same weights.", "", "permutation of units and samples"),
        ),
    )
)  # fmt: skip
