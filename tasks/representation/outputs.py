"""What the network answers on the probe: loss, accuracy, confidence and confusion, over all and by class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Figure, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext, View


class OutputsOptions(Options):
    """`bins` of the calibration error."""

    bins: int = 15


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Logarithms of the class probabilities, float64, over the last axis of `scores`."""
    shifted = scores.astype(np.float64) - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def wilson_interval(right: int, count: int, quantile: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927, eq. 4)."""
    share = right / count
    middle = (share + quantile**2 / (2 * count)) / (1 + quantile**2 / count)
    half = (
        quantile
        / (1 + quantile**2 / count)
        * math.sqrt(share * (1 - share) / count + quantile**2 / (4 * count**2))
    )
    return max(0.0, middle - half), min(1.0, middle + half)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Expected calibration error with equal-width bins (Guo et al. 2017, eq. 3)."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    total = 0.0
    for number in np.unique(place):
        inside = place == number
        total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(total)


def compute(context: CheckpointContext, options: OutputsOptions) -> Findings:
    """Rows for every probe with class targets; arrays `<probe>/confusion` (target, predicted)."""
    findings = Findings()
    for name, probe in context.probes.items():
        if probe.targets is None:
            raise DoesNotApply(f"probe {name!r} has no targets.")
        scores = context.outputs(name)
        if context.subject.task == "regression":
            _regression(findings, name, scores, probe.targets)
        else:
            _classification(findings, name, scores, probe.targets, probe.class_names, options)
    return findings


def _regression(findings: Findings, probe: str, scores: np.ndarray, targets: np.ndarray) -> None:
    error = scores.reshape(targets.shape).astype(np.float64) - targets
    shared: dict[str, Any] = {"probe": probe, "n": len(targets), "unit": "squared target unit"}
    findings.rows.append(Row("loss", float((error**2).mean()), convention="mean squared error", **shared))


def _classification(
    findings: Findings, probe: str, scores: np.ndarray, targets: np.ndarray, names: tuple[str, ...], options: Any
) -> None:
    if scores.shape[:-1] != targets.shape or targets.dtype.kind not in "iu":
        raise DoesNotApply(
            f"outputs {scores.shape} and targets {targets.shape} of {probe!r} are no classification."
        )
    scores, targets = scores.reshape(-1, scores.shape[-1]), targets.reshape(-1)
    count, classes = len(targets), scores.shape[-1]
    if targets.min() < 0 or targets.max() >= classes:
        raise DoesNotApply(f"targets of {probe!r} reach {targets.max()}, the network has {classes} classes.")
    bad = int((~np.isfinite(scores)).any(-1).sum())
    if bad:
        reason = f"{bad} of {count} outputs are not finite"
        for metric in ("loss", "accuracy", "confidence", "calibration_error"):
            findings.rows.append(Row(metric, probe=probe, n=count, status="failed", reason=reason))
        findings.rows.append(Row("non_finite_count", bad, probe=probe, part="of=outputs", unit="samples", n=count))
        return
    logs = log_softmax(scores)
    losses = -logs[np.arange(count), targets]
    predicted = scores.argmax(-1)
    right = predicted == targets
    confidence = np.exp(logs.max(-1))
    low, high = wilson_interval(int(right.sum()), count)
    error = 1.96 * losses.std() / math.sqrt(count)
    mean = float(losses.mean())
    rows = findings.rows
    rows.append(Row("loss", mean, probe=probe, n=count, unit="nat", low=mean - error, high=mean + error, convention="cross-entropy"))  # fmt: skip
    rows.append(Row("accuracy", float(right.mean()), probe=probe, n=count, unit="fraction", low=low, high=high, estimator="Wilson 95 %"))  # fmt: skip
    rows.append(Row("confidence", float(confidence.mean()), probe=probe, n=count, unit="probability"))
    rows.append(Row("calibration_error", calibration_error(confidence, right, options.bins), probe=probe, n=count, unit="fraction", convention=f"{options.bins} equal bins"))  # fmt: skip
    for value in np.unique(targets):
        members = targets == value
        number = int(members.sum())
        low, high = wilson_interval(int(right[members].sum()), number)
        part = f"class={names[value] if value < len(names) else value}"
        rows.append(Row("accuracy", float(right[members].mean()), probe=probe, part=part, n=number, unit="fraction", low=low, high=high, estimator="Wilson 95 %"))  # fmt: skip
        rows.append(Row("loss", float(losses[members].mean()), probe=probe, part=part, n=number, unit="nat", convention="cross-entropy"))  # fmt: skip
    if classes <= 200:
        confusion = np.zeros((classes, classes), np.int64)
        np.add.at(confusion, (targets, predicted), 1)
        findings.arrays[f"{probe}/confusion"] = NamedArray(
            ("target", "predicted"), confusion, {"class_names": list(names)}
        )


def draw(view: View, options: OutputsOptions) -> list[Figure]:
    """Accuracy, loss and calibration over the steps, accuracy by class, and confusion behind a slider."""
    from stratascope.tasks.report.style import lines

    figures = []
    probes = sorted(set(view.rows["probe"]))
    for metric, title, unit in (
        ("accuracy", "Accuracy", "fraction right"),
        ("loss", "Loss", "cross-entropy (nat)"),
    ):
        found = {name: view.metric(metric, probe=name, part="") for name in probes}
        series = {name: (list(rows["step"]), list(rows["value"])) for name, rows in found.items() if len(rows)}
        if not series:
            continue
        last = found[next(iter(series))].iloc[-1]
        words = _WORDS[metric]
        half = (last["high"] - last["low"]) / 2
        figures.append(
            Figure(
                key=metric,
                title=f"{title} over training",
                svg=lines(series, unit, logarithmic=metric == "loss"),
                run=view.run,
                caution=words["caution"].format(n=int(last["n"]), half=half, probe=last["probe"]),
                **{name: words[name] for name in ("shows", "reading", "audience", "practitioner", "researcher")},
            )
        )
    figures += _class_figures(view, probes)
    return [_with_table(figure, view) for figure in figures]


def _with_table(figure: Figure, view: View) -> Figure:
    from dataclasses import replace

    metric = "loss" if figure.key == "loss" else "accuracy"
    rows = view.metric(metric)
    return replace(figure, table={name: rows[name].tolist() for name in ("step", "probe", "part", "value", "low", "high", "n")})  # fmt: skip


def _class_figures(view: View, probes: list[str]) -> list[Figure]:
    from stratascope.tasks.report.style import heatmap

    figures = []
    for probe in probes:
        rows = view.metric("accuracy", probe=probe)
        rows = rows[rows["part"].str.startswith("class=")]
        classes = list(dict.fromkeys(rows["part"]))
        if not classes or len(classes) > 60:
            continue
        steps = sorted(set(rows["step"]))
        grid = np.full((len(classes), len(steps)), np.nan)
        for row in rows.itertuples():
            grid[classes.index(row.part), steps.index(row.step)] = row.value
        worst = classes[int(np.nanargmin(grid[:, -1]))].removeprefix("class=")
        smallest = int(rows["n"].min())
        words = _WORDS["classes"]
        svg = heatmap(grid, [name[6:] for name in classes], [str(step) for step in steps], "fraction right", "class", "training step")  # fmt: skip
        figures.append(
            Figure(key=f"classes-{probe}", title=f"Accuracy by class, probe {probe}", svg=svg, run=view.run, probe=probe,
                   caution=words["caution"].format(n=smallest, half=0.98 / math.sqrt(smallest), worst=worst, value=float(np.nanmin(grid[:, -1]))),
                   **{name: words[name] for name in ("shows", "reading", "audience", "practitioner", "researcher")})
        )  # fmt: skip
        frames = []
        for step in steps:
            confusion = view.arrays(step).get(f"{probe}/confusion")
            if confusion is not None and len(confusion) <= 30:
                names = (
                    [name[6:] for name in classes]
                    if len(classes) == len(confusion)
                    else [str(k) for k in range(len(confusion))]
                )
                share = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
                frames.append(
                    (
                        int(step),
                        heatmap(share, names, names, "share of the class", "true class", "predicted class"),
                    )
                )
        if frames:
            words = _WORDS["confusion"]
            confusion = view.arrays(steps[-1])[f"{probe}/confusion"]
            wrong = confusion - np.diag(np.diag(confusion))
            row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
            figures.append(
                Figure(key=f"confusion-{probe}", title=f"Confusion, probe {probe}", frames=tuple(frames), run=view.run, probe=probe,
                       caution=words["caution"].format(count=int(wrong.max()), true=names[row], taken=names[column], total=int(wrong.sum())),
                       **{name: words[name] for name in ("shows", "reading", "audience", "practitioner", "researcher")})
            )  # fmt: skip
    return figures


_WORDS: dict[str, dict[str, Any]] = {
    "accuracy": {
        "shows": "The share of probe samples whose largest output is the right class, at every audited checkpoint.",
        "reading": "A steady climb that flattens is the usual course. A dip in the middle deserves a look at that checkpoint.",
        "caution": "Probe {probe} has {n} samples, so the last value is known to about ± {half:.3f}; smaller differences between checkpoints mean nothing.",
        "audience": "For everyone who decides which checkpoint to keep.",
        "practitioner": "Take the earliest checkpoint on the plateau unless later ones are better by more than the stated margin.",
        "researcher": "Intervals are Wilson's at 95 % over probe samples; they do not cover the spread over seeds. All checkpoints see the same samples, so paired tests are sharper than overlapping intervals suggest.",
    },
    "loss": {
        "shows": "Mean cross-entropy on the probe at every audited checkpoint, on a logarithmic axis where it can be.",
        "reading": "Falling is good. A loss that rises while accuracy holds means growing confidence in the wrong answers.",
        "caution": "The mean over {n} samples of probe {probe} carries ± {half:.3f} nat; a few very wrong samples can move it alone.",
        "audience": "For readers who watch for overfitting before accuracy shows it.",
        "practitioner": "If it has turned upwards, stop earlier or regularise; a rising loss harms calibrated probabilities first.",
        "researcher": "Computed in float64 from stored logits through a shifted log-sum-exp; divide by ln 2 for bits. The interval is normal, from the per-sample spread.",
    },
    "classes": {
        "shows": "Accuracy of each class (row) at each checkpoint (column).",
        "reading": "Follow a row to the right to see when a class was learned; a row that stays dark was not.",
        "caution": "The weakest class at the end is {worst} with {value:.3f}; the smallest class has {n} samples, hence up to ± {half:.2f} for a single cell.",
        "audience": "For those who answer for rare or important classes.",
        "practitioner": "Look first at the darkest row of the last column: more data for that class usually helps most.",
        "researcher": "Order of acquisition over checkpoints is visible here; test it over seeds before calling it a property of the data.",
    },
    "confusion": {
        "shows": "For each true class (row) the share of its samples that went to each predicted class (column). The slider moves through training.",
        "reading": "The diagonal is right. A bright cell beside it is a pair that the network mixes up.",
        "caution": "At the last step the most frequent mistake, {true} taken for {taken}, happened {count} times of {total} mistakes in all; cells with a handful of samples are chance.",
        "audience": "For people who look into mistakes, case by case.",
        "practitioner": "Check the labels of the brightest wrong pair before changing the model.",
        "researcher": "Rows are normalised by class size, hence comparable across imbalanced classes; raw counts are in the archive as (target, predicted).",
    },
}

ANALYSIS = register(
    Analysis(
        name="outputs", version=1, scope="checkpoint", title="Outputs", question="How well does it answer?",
        options=OutputsOptions, compute=compute, draw=draw, needs=frozenset({"activations"}), default=True,
        metrics=(
            Metric("loss", "nat", "[0, ∞)", "Mean cross-entropy (or squared error in regression) on the probe."),
            Metric("accuracy", "fraction", "[0, 1]", "Share of samples whose largest output is the target.", "interval: Wilson 1927", "monotone maps of the outputs"),
            Metric("confidence", "probability", "[0, 1]", "Mean probability of the predicted class."),
            Metric("calibration_error", "fraction", "[0, 1]", "Expected calibration error.", "Guo et al. 2017, eq. 3"),
            Metric("non_finite_count", "count", "[0, ∞)", "Numbers that are NaN or infinite; `part` says of what."),
        ),
    )
)  # fmt: skip
