"""The pictures of the triage: the path of the weights with its suspects, and all distances at a glance."""

from __future__ import annotations

from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View

_MOST_SHOWN = 120
"""A matrix of more checkpoints than this shows an even choice of them."""


def path_figure(view: View) -> Figure | None:
    """How far the weights went, stride by stride, above how badly each checkpoint fits."""
    if len(view.metric("distance_to_first")) < 2:
        return None
    scores = view.metric("misplaced_score")
    rows = view.rows[view.rows["step"] >= 0]
    return Figure(
        key="path",
        title="How far the weights have moved, and which step does not fit",
        svg=_path(view),
        run=view.run,
        shows="Above: the distance of each checkpoint's weights from the first checkpoint and from the one before. Below: the misplaced score of each step, with the line at 1 that it should stay under.",
        reading="The distance from the first rises and bends as training settles. A bar above the line marks a checkpoint whose weights do not fit between its neighbours: swapped, taken from another run, or saved under the wrong step.",
        caution=_path_caution(view),
        audience="For whoever has to trust that the files are in order.",
        practitioner=_path_advice(view),
        researcher="Distances come from a seeded count sketch of 1,024 numbers over all parameters, about 3 % relative error. The score leaves out biases and norm gains, which all initialisations share, and combines kinship, detour and best place; on 330 sound series of small networks with eleven optimiser settings none exceeded 1, while 99 % of adjacent swaps in converging runs did (benchmarks/triage.py).",
        table={name: rows[name].tolist() for name in ("step", "metric", "value", "other_step", "reason")},
        headline=bool(len(scores) and scores["value"].max() > 1),
    )  # fmt: skip


def _path(view: View) -> str:
    from matplotlib.figure import Figure as Drawing

    from stratascope.tasks.report.style import COLOURS, INK, quiet, step_axis, to_svg

    scores = view.metric("misplaced_score")
    drawing = Drawing(figsize=(5.9, 4.6 if len(scores) else 3.2), dpi=72, layout="constrained")
    panels: Any = drawing.subplots(
        2 if len(scores) else 1, 1, sharex=True, squeeze=False, height_ratios=[2.4, 1] if len(scores) else [1]
    )
    upper = panels[0, 0]
    first, previous = view.metric("distance_to_first"), view.metric("distance_to_previous")
    for rows, name, colour, marker in (
        (first, "from the first checkpoint", COLOURS[0], "o"), (previous, "from the one before", COLOURS[1], "s")
    ):  # fmt: skip
        upper.plot(
            rows["step"], rows["value"], color=colour, marker=marker, markersize=3.2, linewidth=1.7, label=name
        )
    upper.set_ylabel("Euclidean distance")
    upper.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=10, labelcolor=INK)
    for panel in panels[:, 0]:
        quiet(panel)
    if len(scores):
        _scores(panels[1, 0], upper, scores, first)
    step_axis(panels[-1, 0], list(first["step"]))
    if len(scores):
        upper.set_xlabel("")
    return to_svg(drawing)


def _scores(lower: Any, upper: Any, scores: Any, first: Any) -> None:
    from stratascope.tasks.report.style import COLOURS, INK

    steps, values = scores["step"].to_numpy(), scores["value"].to_numpy()
    wrong = values > 1
    for chosen, colour in ((~wrong, COLOURS[8]), (wrong, COLOURS[4])):
        lower.vlines(steps[chosen], 0, values[chosen], color=colour, linewidth=2.4)
        lower.plot(steps[chosen], values[chosen], "o", color=colour, markersize=4)
    lower.axhline(1, color=INK, linewidth=1, linestyle="--", alpha=0.7)
    lower.set_ylim(0, max(1.5, float(values.max()) * 1.18))
    if values.max() > 20:
        lower.set_yscale("symlog", linthresh=1, linscale=1)
        lower.set_yticks([0, 1, 10, 100] if values.max() > 60 else [0, 1, 10])
        lower.set_yticklabels(["0", "1", "10", "100"][: len(lower.get_yticks())])
        lower.set_ylim(0, float(values.max()) * 2)
    lower.set_ylabel("misplaced\nscore")
    at = dict(zip(first["step"], first["value"], strict=True))
    shown = [step for step in steps[wrong] if step in at]
    upper.plot(
        shown, [at[step] for step in shown], "o", markersize=11, markerfacecolor="none", markeredgewidth=1.8,
        color=COLOURS[4],
    )  # fmt: skip
    upper.set_ylim(0, float(first["value"].max()) * (1.2 if shown else 1.05) or 1.0)
    for group in _neighbours(shown, list(steps))[:5]:
        middle = group[len(group) // 2]
        few = ", ".join(f"{step:,}" for step in group[:3]) + (" …" if len(group) > 3 else "")
        few = f"step{'s' * (len(group) > 1)} {few}"
        highest = max(at[step] for step in group)
        upper.annotate(
            few, (middle, highest), (0, 10), textcoords="offset points", ha="center", fontsize=10, color=INK
        )


def _neighbours(chosen: list[int], steps: list[int]) -> list[list[int]]:
    """`chosen`, those that follow each other among `steps` together: they share one label."""
    groups: list[list[int]] = []
    for step in chosen:
        if groups and steps.index(step) - steps.index(groups[-1][-1]) <= 2:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _count(view: View, metric: str) -> int:
    rows = view.metric(metric)
    return int((rows["value"] > 0).sum())


def _path_caution(view: View) -> str:
    scores = view.metric("misplaced_score")
    steps = len(view.metric("distance_to_first"))
    gaps = view.metric("missing_steps")["value"].sum()
    counts = f"{steps} checkpoints: {_count(view, 'duplicate_of')} repeat an earlier one, {_count(view, 'shared_tensors')} share single tensors with a step that they should not, and {int(gaps)} steps of a regular series are missing."
    if not len(scores):
        return f"{counts} Too few for a score: five are needed."
    worst = scores.loc[scores["value"].idxmax()]
    if worst["value"] > 1:
        return f"{counts} Step {int(worst['step'])} fits worst, with a score of {worst['value']:.2f}; where a swap is seen, either of the two may be the wrong one."
    spread = view.metric("distance_to_previous")["value"]
    ratio = float(spread.max() / spread.min()) if len(spread) and spread.min() > 0 else float("inf")
    return f"{counts} No step scores above 1 (the highest is {worst['value']:.2f} at step {int(worst['step'])}). Strides differ by a factor of {ratio:.3g}; a swap of two steps that hardly differ cannot be seen."


def _path_advice(view: View) -> str:
    scores = view.metric("misplaced_score")
    wrong = [int(step) for step in scores.loc[scores["value"] > 1, "step"]]
    if not wrong:
        return "The files are in the order in which the network learned: the other pages can be read as a history."
    shown = ", ".join(map(str, wrong[:5])) + (" and more" if len(wrong) > 5 else "")
    return f"Compare the files of step {shown} with the training log and save or download them again before you believe any trend on the other pages."


def matrix_figure(view: View) -> Figure | None:
    """Distances between all checkpoints as a map."""
    from stratascope.tasks.report.style import heatmap

    apart = view.arrays().get("distances")
    steps = [int(step) for step in view.metric("distance_to_first")["step"]]
    if apart is None or len(apart) < 3 or len(apart) != len(steps):
        return None
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST_SHOWN)).round().astype(int))
    names = [f"{steps[place]:,}" for place in chosen]
    shown = apart[np.ix_(chosen, chosen)]
    far = np.unravel_index(int(apart.argmax()), apart.shape)
    turns = int(sum((np.diff(row[place:]) < 0).sum() for place, row in enumerate(apart)))
    pairs = max(1, len(apart) * (len(apart) - 1) // 2 - (len(apart) - 1))
    thinned = f" {len(chosen)} of {len(steps)} checkpoints are shown." if len(chosen) < len(steps) else ""
    return Figure(
        key="distances",
        title="How far every checkpoint lies from every other",
        svg=heatmap(shown, names, names, "Euclidean distance", "training step", "training step"),
        run=view.run,
        shows="The distance between the weights of each pair of checkpoints; dark is near.",
        reading="In a sound run the dark band along the diagonal widens smoothly towards the end. A checkpoint that does not belong draws a bright cross; a dark spot away from the diagonal is a copy.",
        caution=f"The farthest pair are steps {steps[int(far[0])]} and {steps[int(far[1])]} at {apart.max():.3g}; {turns} of {pairs} times a later checkpoint lies nearer than the one before it, which noise or a wrong file can cause.{thinned}",
        audience="For those who look for copies, swaps and restarts in a long series.",
        practitioner="Blocks along the diagonal are phases of training: a sharp edge between two of them is where a restart, a change of rate or a wrong file began.",
        researcher="Near stationarity all pairs become equally far, and the map turns flat: distances then tell nothing about order. Read rows against a random walk, whose squared distance grows with the number of strides.",
        table={"step": [steps[place] for place in chosen for _ in chosen], "other_step": [steps[place] for _ in chosen for place in chosen], "distance": shown.reshape(-1).tolist()},
    )  # fmt: skip
