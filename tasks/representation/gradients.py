"""How strongly the probe's loss pulls at each layer's weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Figure, Findings, Metric, Options, register
from stratascope.tasks.contexts import CheckpointContext, View


class GradientsOptions(Options):
    """The gradient is that of the mean loss over the first `max_samples` probe samples."""

    max_samples: int = Field(default=512, ge=1)
    batch_size: int = Field(default=128, ge=1)


def compute(context: CheckpointContext, options: GradientsOptions) -> Findings:
    """Rows by parameter tensor: `gradient_norm` and `gradient_to_weight_ratio`; the whole network as layer ""."""
    import torch
    from torch.nn import functional

    from stratascope.tasks.models.network import as_tensor, call_network, select_output

    findings = Findings()
    for name, probe in context.probes.items():
        if probe.targets is None:
            raise DoesNotApply(f"probe {name!r} has no targets.")
        network = context.network().eval()
        count = min(len(probe), options.max_samples)
        for start in range(0, count, options.batch_size):
            stop = min(start + options.batch_size, count)
            model = context.subject.source.model
            output = select_output(call_network(network, as_tensor(probe.inputs[start:stop]), model), model.output)
            targets = torch.as_tensor(probe.targets[start:stop])
            if context.subject.task == "regression":
                loss = ((output.reshape(targets.shape) - targets) ** 2).sum() / targets[0].numel()
            else:
                loss = functional.cross_entropy(output.reshape(-1, output.shape[-1]), targets.reshape(-1).long(), reduction="sum") / max(1, targets[0].numel())  # fmt: skip
            (loss / count).backward()
        total = 0.0
        for full, parameter in network.named_parameters():
            if parameter.grad is None:
                continue
            layer, _, tensor = full.rpartition(".")
            norm, size = float(parameter.grad.double().norm()), float(parameter.detach().double().norm())
            total += norm**2
            shared: dict[str, Any] = {"layer": layer, "probe": name, "part": f"tensor={tensor}", "n": count}
            if not np.isfinite(norm):
                findings.rows.append(Row("gradient_norm", status="failed", reason="the gradient is not finite", **shared))  # fmt: skip
                continue
            findings.rows.append(Row("gradient_norm", norm, unit="loss per weight", **shared))
            if size > 0:
                findings.rows.append(Row("gradient_to_weight_ratio", norm / size, unit="1", **shared))
        if np.isfinite(total):
            findings.rows.append(Row("gradient_norm", total**0.5, probe=name, n=count, unit="loss per weight"))
    return findings


def draw(view: View, options: GradientsOptions) -> list[Figure]:
    """Gradient norm of every layer over the steps, and its ratio to the weights."""
    from stratascope.tasks.report.style import heatmap, lines

    figures = []
    whole = view.metric("gradient_norm", layer="")
    if len(whole):
        series = {probe: (list(rows["step"]), list(rows["value"])) for probe, rows in whole.groupby("probe")}
        change = (
            float(whole["value"].iloc[-1] / whole["value"].iloc[0]) if whole["value"].iloc[0] else float("nan")
        )
        words = _WORDS["norm"]
        figures.append(
            Figure(key="gradient-norm", title="Gradient of the whole network", svg=lines(series, "gradient norm", logarithmic=True), run=view.run,
                   caution=words["caution"].format(n=int(whole["n"].iloc[-1]), change=change),
                   table={name: whole[name].tolist() for name in ("step", "probe", "value", "n")},
                   **{name: words[name] for name in ("shows", "reading", "audience", "practitioner", "researcher")})
        )  # fmt: skip
    rows = view.metric("gradient_to_weight_ratio", part="tensor=weight")
    layers, steps = list(dict.fromkeys(rows["layer"])), sorted(set(rows["step"]))
    if layers:
        grid = np.full((len(layers), len(steps)), np.nan)
        for row in rows.itertuples():
            grid[layers.index(row.layer), steps.index(row.step)] = np.log10(max(row.value, 1e-12))
        spread = float(np.nanmax(grid[:, 0]) - np.nanmin(grid[:, 0]))
        words = _WORDS["ratio"]
        figures.append(
            Figure(key="gradient-ratio", title="Gradient relative to weight, by layer", svg=heatmap(grid, layers, [str(s) for s in steps], "log10 of the ratio", "layer", "training step"), run=view.run, headline=True,
                   caution=words["caution"].format(spread=spread, step=steps[0]),
                   table={name: rows[name].tolist() for name in ("step", "layer", "value")},
                   **{name: words[name] for name in ("shows", "reading", "audience", "practitioner", "researcher")})
        )  # fmt: skip
    return figures


_WORDS: dict[str, dict[str, Any]] = {
    "norm": {
        "shows": "The norm of the gradient of the mean probe loss with respect to all weights together.",
        "reading": "It falls as the network settles on what the probe asks. Peaks mark steep places of the loss.",
        "caution": "Taken over {n} samples in evaluation mode, so dropout and batch statistics of training are not in it; from first to last step it changed by a factor of {change:.3g}.",
        "audience": "For people who choose step sizes and schedules.",
        "practitioner": "If it is still large at the end, training longer or with a smaller final rate should pay off.",
        "researcher": "The gradient of the mean, not the mean of per-sample norms: noise cancels, and its level differs from what the optimiser saw in a batch.",
    },
    "ratio": {
        "shows": "For every layer the gradient's norm divided by the weight's norm, as a power of ten.",
        "reading": "Rows of even colour learn at even pace. Much darker rows near the input are the mark of vanishing gradients.",
        "caution": "At step {step} the layers span {spread:.1f} powers of ten; below two is ordinary. With adaptive optimisers the ratio does not tell the size of the update.",
        "audience": "For anyone who debugs a deep network that does not learn.",
        "practitioner": "Where early rows are three or more powers of ten below late ones, add shortcuts or normalisation.",
        "researcher": "Invariant under rescaling a layer only together with its inverse elsewhere; multiply by the rate for the relative update of plain SGD.",
    },
}

ANALYSIS = register(
    Analysis(
        name="gradients", version=1, scope="checkpoint", title="Gradients", question="Does every layer still learn?",
        options=GradientsOptions, compute=compute, draw=draw, needs=frozenset({"network", "gradients"}), default=True,
        metrics=(
            Metric("gradient_norm", "loss per weight", "[0, ∞)", "Norm of the gradient of the mean probe loss for one tensor; layer \"\" is the whole network."),
            Metric("gradient_to_weight_ratio", "1", "[0, ∞)", "That norm divided by the tensor's own norm."),
        ),
    )
)  # fmt: skip
