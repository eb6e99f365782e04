"""The pictures of the outputs: accuracy, loss and confidence over training, by class, and confusion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import step_directory
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.pictures import (
    even_choice,
    figure_key,
    grid_of,
    leading_probe,
    table_of,
    worded,
)

_COLUMNS = ("step", "probe", "part", "value", "low", "high", "n", "unit", "convention")
_DRAWN_CLASSES = 60
_CONFUSION_CLASSES = 30
_FRAMES = 24


def draw(view: View, options: Any) -> list[Figure]:
    """Accuracy, loss and confidence over the steps; for each probe accuracy by class, and confusion by step."""
    figures = [_trend(view, metric) for metric in ("accuracy", "loss", "r_squared")]
    figures.append(_confidence(view))
    for probe in sorted(view.rows["probe"].unique()):
        figures += [_classes(view, probe), _confusion(view, probe)]
    return [figure for figure in figures if figure is not None]


def _trend(view: View, metric: str) -> Figure | None:
    from stratascope.tasks.report.style import lines

    rows = view.metric(metric, part="")
    if not len(rows):
        return None
    series = {probe: (list(group["step"]), list(group["value"])) for probe, group in rows.groupby("probe")}
    bands = {
        probe: (list(group["low"]), list(group["high"]))
        for probe, group in rows.groupby("probe")
        if metric == "accuracy" and group["low"].notna().all()
    }
    rows = rows[rows["probe"] == leading_probe(view, series)]
    last = rows.iloc[-1]
    half = (last["high"] - last["low"]) / 2
    numbers = {
        "n": int(last["n"]),
        "probe": last["probe"],
        "convention": last["convention"] or "loss",
        "margin": f"± {half:.3g}"
        if math.isfinite(half)
        else "no stated margin, since this loss gives its mean alone",
        "best": int(rows.loc[rows["value"].idxmin() if metric == "loss" else rows["value"].idxmax(), "step"]),
        "value": float(last["value"]),
    }
    label = {"accuracy": "fraction right", "r_squared": "R²"}.get(
        metric, f"{numbers['convention']} ({last['unit']})"
    )
    return worded(
        _WORDS[metric],
        numbers,
        key=metric,
        title=f"{_TITLES[metric]} over training",
        svg=lines(series, label, logarithmic=metric == "loss", bands=bands),
        run=view.run,
        table=table_of(view.metric(metric), _COLUMNS),
    )


def _confidence(view: View) -> Figure | None:
    from stratascope.tasks.report.style import lines

    sure, right = view.metric("confidence"), view.metric("accuracy", part="")
    if not len(sure) or not len(right):
        return None
    series = {}
    for probe in sorted(sure["probe"].unique()):
        for name, rows in (("confidence", sure), ("accuracy", right)):
            chosen = rows[rows["probe"] == probe]
            series[f"{name}, {probe}"] = (list(chosen["step"]), list(chosen["value"]))
    every = view.metric("calibration_error")
    error = every[every["probe"] == leading_probe(view, every["probe"].unique())]
    last, worst = error.iloc[-1], error.loc[error["value"].idxmax()]
    numbers = {
        "error": last["value"], "probe": last["probe"], "worst": worst["value"], "step": int(worst["step"]),
        "n": int(last["n"]), "bins": last["convention"],
    }  # fmt: skip
    return worded(
        _WORDS["confidence"],
        numbers,
        key="confidence",
        title="Confidence beside accuracy",
        svg=lines(series, "probability and fraction"),
        run=view.run,
        table=table_of(every, _COLUMNS),
    )


def _classes(view: View, probe: str) -> Figure | None:
    from stratascope.tasks.report.style import heatmap

    rows = view.metric("accuracy", probe=probe)
    rows = rows[rows["part"].str.startswith("class=")]
    parts = list(dict.fromkeys(rows["part"]))
    if not parts or len(parts) > _DRAWN_CLASSES:
        return None
    order = {name: number for number, name in enumerate(view.probes[probe].class_names)}
    parts.sort(key=lambda part: order.get(_shown(part), len(order)))
    grid, steps = grid_of(rows, "part", parts)
    smallest = int(rows["n"].min())
    weakest = int(np.nanargmin(np.where(np.isfinite(grid[:, -1]), grid[:, -1], np.inf)))
    numbers = {
        "n": smallest, "half": 0.98 / math.sqrt(smallest), "worst": _shown(parts[weakest]),
        "value": grid[weakest, -1], "step": steps[-1],
    }  # fmt: skip
    picture = heatmap(
        grid, [_shown(part) for part in parts], [str(step) for step in steps], "fraction right", "class",
        "training step",
    )  # fmt: skip
    return worded(
        _WORDS["classes"],
        numbers,
        key=figure_key("classes", probe),
        title=f"Accuracy by class, probe {probe}",
        svg=picture,
        run=view.run,
        probe=probe,
        table=table_of(rows, _COLUMNS),
    )


def _shown(part: str) -> str:
    from urllib.parse import unquote

    return unquote(part.removeprefix("class="))


def _confusion(view: View, probe: str) -> Figure | None:
    from stratascope.tasks.report.style import moving_heatmap
    from stratascope.tasks.report.text import counted

    steps = even_choice(sorted({int(step) for step in view.metric("accuracy", probe=probe)["step"]}), _FRAMES)
    found = [(step, counts) for step in steps if (counts := _confusion_at(view, step, probe)) is not None]
    if not found or len(found[-1][1]) > _CONFUSION_CLASSES:
        return None
    step, last = found[-1]
    found = [item for item in found if item[1].shape == last.shape]
    classes = view.probes[probe].class_names
    names = list(classes) if len(classes) == len(last) else [str(number) for number in range(len(last))]
    shares = np.stack([counts / np.maximum(1, counts.sum(1, keepdims=True)) for _, counts in found])
    frames = moving_heatmap(
        shares,
        [item[0] for item in found],
        names,
        names,
        "share of the true class",
        "true class",
        "predicted class",
    )
    wrong = last - np.diag(np.diag(last))
    true, taken = np.unravel_index(int(wrong.argmax()), wrong.shape)
    mistake = f"the most frequent mistake, {names[true]} taken for {names[taken]}, happened"
    mistake += f" {counted(int(wrong.max()), 'time')} among {counted(int(wrong.sum()), 'mistake')}"
    sizes = last.sum(1)
    numbers = {
        "mistake": mistake if wrong.any() else "there is no mistake at all",
        "smallest": int(sizes[sizes > 0].min()),
        "step": step,
    }
    rows, columns = np.nonzero(last)
    table = {
        "step": [step] * len(rows),
        "true": [names[row] for row in rows],
        "predicted": [names[column] for column in columns],
        "count": last[rows, columns].tolist(),
    }
    title = f"Confusion, probe {probe}"
    key = figure_key("confusion", probe)
    return worded(
        _WORDS["confusion"], numbers, key=key, title=title, frames=frames, run=view.run, probe=probe, table=table
    )


def _confusion_at(view: View, step: int, probe: str) -> np.ndarray | None:
    place = join_path("runs", view.run, step_directory(step), "outputs", probe, "confusion")
    return view.store.array(place) if view.store.has_array(place) else None


_TITLES = {"accuracy": "Accuracy", "loss": "Loss", "r_squared": "Variance explained"}

_WORDS: dict[str, dict[str, str]] = {
    "accuracy": {
        "shows": "The share of the probe's samples whose highest score is that of the right class, at every audited checkpoint.",
        "reading": "A steady climb that flattens is the usual course. A dip in the middle deserves a look at that checkpoint.",
        "caution": "Probe {probe} counts {n} answers, so its last value is known to about {margin}; smaller differences between checkpoints mean nothing. The highest value stands at step {best}, and a highest value is always partly luck.",
        "audience": "For everyone who decides which checkpoint to keep.",
        "practitioner": "Take the earliest checkpoint on the plateau, unless a later one is better by more than the stated margin.",
        "researcher": "Intervals are Wilson's at 95 % over the probe's samples (for tokens: normal, over samples) and do not cover the spread over seeds. All checkpoints see the same samples, so a paired test is sharper than comparing intervals.",
    },
    "loss": {
        "shows": "The mean {convention} on the probe at every audited checkpoint, on a logarithmic axis where all values are positive.",
        "reading": "Falling is good. A test loss that rises while the training loss falls is overfitting, even where accuracy holds.",
        "caution": "The last mean, over {n} answers of probe {probe}, carries {margin}; a few answers that are very wrong can move it alone. It was lowest at step {best}.",
        "audience": "For readers who watch for overfitting before accuracy shows it.",
        "practitioner": "If the test line has turned upwards, stop earlier or regularise; probabilities go wrong before decisions do.",
        "researcher": "Computed in float64 from the stored outputs, padding left out; the interval is normal, over samples. Cross-entropy in nats: divide by ln 2 for bits.",
    },
    "r_squared": {
        "shows": "The share of the targets' variance that the outputs explain, at every audited checkpoint.",
        "reading": "1 is perfect, 0 is as good as always answering the mean, below 0 is worse than that.",
        "caution": "Taken over {n} rows of probe {probe}, the last value is {value:.3g}; it depends on how widely this probe's targets spread, so values of two probes cannot be compared.",
        "audience": "For people who fit numbers rather than classes.",
        "practitioner": "A low value beside a small loss means that the targets hardly vary: look at the loss in their own unit.",
        "researcher": "One minus the residual over the total sum of squares, both summed over all columns of the targets; no adjustment for the number of weights.",
    },
    "confidence": {
        "shows": "The mean probability that the network gives to its own answer, beside the share of answers that are right.",
        "reading": "The two lines of a probe should run together. Confidence above accuracy means that it believes itself too much.",
        "caution": "At the end the calibration error on probe {probe} is {error:.3f} over {n} answers ({bins}); it was worst at step {step} with {worst:.3f}. The error is biased upwards where bins hold few answers.",
        "audience": "For whoever acts on the probabilities and not just on the decisions.",
        "practitioner": "Where confidence stays above accuracy, rescale the scores by a temperature fitted on held-out data before you use a threshold.",
        "researcher": "The gap of the two lines bounds the expected calibration error from below; counts, confidence and accuracy by bin are in the archive for a reliability diagram.",
    },
    "classes": {
        "shows": "Accuracy of each class (row) at each checkpoint (column).",
        "reading": "Follow a row to the right to see when a class was learned; a row that stays dark was not.",
        "caution": "The weakest class at step {step} is {worst} with {value:.3f}; the smallest class has {n} answers, so a single cell is known to no better than about ± {half:.2f}.",
        "audience": "For those who answer for rare or important classes.",
        "practitioner": "Look first at the darkest row of the last column: more data for that class usually helps most.",
        "researcher": "Shows the order in which classes are acquired; repeat over seeds before calling it a property of the data.",
    },
    "confusion": {
        "shows": "For each true class (row) the share of its samples that went to each predicted class (column). The slider moves through training, on one colour scale.",
        "reading": "The diagonal is right. A bright cell beside it is a pair that the network mixes up.",
        "caution": "At step {step} {mistake}; the smallest class has {smallest} samples, so cells of one or two are chance.",
        "audience": "For people who look into mistakes, case by case.",
        "practitioner": "Check the labels of the brightest wrong pair before you change the model.",
        "researcher": "Rows are normalised by class size, hence comparable where classes are unequal; the raw counts are in the archive as (target, predicted).",
    },
}
