"""The picture of a training's own record, with what the audit finds of the probes' gradients at its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.pictures import leading_probe, worded

_LABELS = {"loss": "loss", "gradient_norm": "gradient norm", "rate": "step size"}


def draw(view: View, options: Any) -> Iterator[Figure]:
    """One figure: for each recorded column its median and quartiles over the steps, one below the other."""
    arrays = view.arrays()
    columns = [name for name in _LABELS if name in arrays]
    if not columns:
        return
    steps = arrays["stretch_step"]
    probes = sorted({name.split("/")[0] for name in arrays if name.endswith("/mean_norm")})
    table: dict[str, list[Any]] = {"step": steps.tolist()}
    for name in columns:
        for place, quartile in enumerate(("lower_quartile", "median", "upper_quartile")):
            table[f"{name}_{quartile}"] = arrays[name][:, place].astype(float).tolist()
    yield worded(
        WORDS["trace"], _numbers(arrays, columns, probes, view), key="trace", title="The training's own record",
        svg=_picture(arrays, columns, probes), run=view.run, table=table,
    )  # fmt: skip


def _numbers(arrays: dict[str, np.ndarray], columns: list[str], probes: list[str], view: View) -> dict[str, Any]:
    steps = arrays["stretch_step"]
    said = "the trace has no gradient norms"
    if "gradient_norm" in columns:
        medians = arrays["gradient_norm"][:, 1]
        last = medians[np.isfinite(medians)][-1]
        said = f"the batches' median gradient norm ends at {last:.3g}"
        if probes:
            probe = leading_probe(view, probes)
            mean = arrays[f"{probe}/mean_norm"]
            said += f", that of the mean gradient of probe {probe} at {mean[np.isfinite(mean)][-1]:.3g}"
    loss = ""
    if "loss" in columns:
        medians = arrays["loss"][:, 1]
        medians = medians[np.isfinite(medians)]
        loss = f"the batches' loss went from {medians[0]:.3g} to {medians[-1]:.3g}; "
    return {"first": int(steps[0]), "last": int(steps[-1]), "points": len(steps), "loss": loss, "norms": said}


def _picture(arrays: dict[str, np.ndarray], columns: list[str], probes: list[str]) -> str:
    from matplotlib.figure import Figure as Canvas

    from stratascope.tasks.report.style import COLOURS, INK, quiet, step_axis, to_svg

    canvas = Canvas(figsize=(6.4, 2.1 * len(columns) + 0.4), dpi=72, layout="constrained")
    every = arrays["stretch_step"]
    for number, name in enumerate(columns):
        axes = canvas.add_subplot(len(columns), 1, number + 1)
        quiet(axes)
        quartiles = arrays[name]
        known = np.isfinite(quartiles[:, 1])
        axes.fill_between(every[known], quartiles[known, 0], quartiles[known, 2], color=COLOURS[0], alpha=0.2, linewidth=0)  # fmt: skip
        axes.plot(every[known], quartiles[known, 1], color=COLOURS[0], linewidth=1.4, label="batches")
        if name == "gradient_norm":
            for place, probe in enumerate(probes, 1):
                colour = COLOURS[place % len(COLOURS)]
                axes.plot(arrays["step"], arrays[f"{probe}/mean_norm"], "o-", color=colour, markersize=3.5, linewidth=1.2, label=f"mean gradient, {probe}")  # fmt: skip
                axes.plot(arrays["step"], arrays[f"{probe}/median_norm"], "s:", color=colour, markersize=3, linewidth=1, label=f"median sample, {probe}")  # fmt: skip
            if probes:
                axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))  # fmt: skip
        shown = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
        positive = shown[np.isfinite(shown)]
        label = _LABELS[name]
        if len(positive) and positive.min() > 0 and positive.max() / positive.min() > 20:
            axes.set_yscale("log")
            label += ", logarithmic"
        step_axis(axes, [int(step) for step in every])
        if number < len(columns) - 1:
            axes.set_xlabel("")
        axes.set_ylabel(label, fontsize=9.5)
    return to_svg(canvas)


WORDS: dict[str, dict[str, str]] = {
    "trace": {
        "shows": "What the training recorded of its batches: the median over stretches of updates, with the quartiles as a pale band. Where the trace has gradient norms, those that the audit finds on the probes stand beside them.",
        "reading": "A spike in the loss that has a spike of the gradient at the same steps is a step that went wrong. In expectation the batches' norm lies between that of the mean gradient and the root mean square of single samples, which a few large ones pull above the median.",
        "caution": "Steps {first} to {last} in {points} stretches: {loss}{norms}. The record is of training mode, with dropout, augmentation and batch statistics; the probes are seen in evaluation mode.",
        "audience": "For those who compare the log of a training with what its checkpoints say.",
        "practitioner": "If the batches' norm stays far above the probes' mean gradient, noise drives the steps: a smaller rate or a larger batch is due.",
        "researcher": "For batches of B samples the expected squared norm is |G|² + tr Σ/B; with the noise scale of the same steps B can be read off, or the difference that training mode makes. Clipping is not in the recorded norm where the trace is of this package.",
    },
}
