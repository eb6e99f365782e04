"""The pictures of influence at single checkpoints: how much samples train themselves, and whom test samples lean on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.layer_heatmaps import COLUMNS
from stratascope.tasks.representation.pictures import figure_key, table_of, worded


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each training probe self-influence over the steps; for each test probe whether proponents share its class."""
    yield from _own(view)
    yield from _proponents(view)


def _own(view: View) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    every = view.metric("self_influence")
    for probe in sorted(every["probe"].unique()):
        rows = every[every["probe"] == probe]
        kinds = {"": "mean", "quantile=0.5": "median", "quantile=0.95": "95 of 100 below"}
        chosen = rows[rows["part"].isin(kinds)]
        series = {
            kinds[part]: (list(own["step"]), list(own["value"]))
            for part in kinds
            if len(own := chosen[chosen["part"] == part])
        }
        mean, high = rows[rows["part"] == ""], rows[rows["part"] == "quantile=0.95"]
        peak = mean.loc[mean["value"].idxmax()]
        by_class = rows[rows["part"].str.startswith("class=") & (rows["step"] == mean["step"].max())]
        top = by_class.loc[by_class["value"].idxmax()] if len(by_class) else None
        numbers = {
            "n": int(mean["n"].iloc[-1]), "peak": peak["value"], "peak_step": int(peak["step"]), "last": mean["value"].iloc[-1],
            "step": int(mean["step"].iloc[-1]), "high": high["value"].iloc[-1],
            "weights": mean["convention"].iloc[-1].partition("weights=")[2],
            "top": f"the class with most is {top['part'][6:]} with {top['value']:.3g}" if top is not None else "classes are not known",
        }  # fmt: skip
        yield worded(
            WORDS["own"], numbers, key=figure_key("self-influence", probe),
            title=f"Self-influence of training samples, probe {probe}",
            svg=lines(series, "squared gradient norm", logarithmic=True), run=view.run, probe=probe,
            table=table_of(rows, COLUMNS),
        )  # fmt: skip


def _proponents(view: View) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    rows = view.metric("proponent_same_class_fraction")
    if not len(rows):
        return
    series = {
        f"{probe} on {part.removeprefix('train=')}": (list(own["step"]), list(own["value"]))
        for (probe, part), own in rows.groupby(["probe", "part"])
    }
    last = rows.iloc[-1]
    numbers = {
        "first": rows["value"].iloc[0], "last": last["value"], "step": int(last["step"]), "n": int(last["n"]),
        "probe": last["probe"],
    }  # fmt: skip
    yield worded(
        WORDS["proponents"], numbers, key="proponents", title="Do test samples lean on training samples of their class?",
        svg=lines(series, "share of the class"), run=view.run, table=table_of(rows, COLUMNS),
    )  # fmt: skip


WORDS: dict[str, dict[str, str]] = {
    "own": {
        "shows": "How far a step on a training sample's own loss would lower that loss, for a step size of 1: the squared norm of its gradient. Mean, median and upper end over the samples.",
        "reading": "All fall as the samples are learned. A mean far above the median is the work of few samples, which the rest of the training does not help to learn.",
        "caution": "Of {n} samples, by the weights of {weights}. The mean peaks at step {peak_step} with {peak:.3g} and ends at {last:.3g} at step {step}, where 95 of 100 samples lie below {high:.3g}; {top}.",
        "audience": "For those who look for samples that the network can only learn by heart.",
        "practitioner": "Check the labels of the samples on top first: the page of the influence over the training shows them.",
        "researcher": "In closed form for the last layer: the squared error signal times the squared features (and 1 for the bias). It grows with the features' norm, so compare steps with care.",
    },
    "proponents": {
        "shows": "For the chosen test samples: of the training samples whose gradients point most the way of theirs, which share has the same class.",
        "reading": "Near 1, a test sample is pulled by its own class, as it should be. A share that falls late in training marks gradients that are small and mixed.",
        "caution": "From {first:.2f} to {last:.2f} at step {step} on probe {probe}, over {n} test samples only. When gradients are nearly zero their order says little.",
        "audience": "For a first check that influence means anything on this network.",
        "practitioner": "If it stays low, do not read the proponents' pictures as explanations.",
        "researcher": "With cross-entropy and the last layer alone, samples of one class share the sign of the error signal, so a high share is in part built in; the option weights: all is the stricter test.",
    },
}
