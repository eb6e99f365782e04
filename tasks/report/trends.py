"""The overview's own figures: all runs side by side over their steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import counted

if TYPE_CHECKING:
    import pandas as pd

_FEW_LINES = 8
"""Above so many lines in one picture, each probe gets a picture of its own."""
_UNITS = {"accuracy": "fraction right", "loss": "loss", "distance_to_first": "Euclidean distance"}
TREND_METRICS = frozenset(_UNITS)
"""All that is read of the ledger for it."""
_COLUMNS = ("run", "probe", "step", "value", "low", "high", "n")


def trend_figures(rows: pd.DataFrame) -> list[Figure]:
    """Accuracy and loss of every run and probe over the steps.

    Where neither was filed, since the task has no targets, the distance of the weights from the start stands for
    them; an empty list where there is not even that.
    """
    whole = rows[(rows["part"] == "") & (rows["layer"] == "") & (rows["status"] == "ok") & (rows["step"] >= 0)]
    figures = _figures_of(whole, "accuracy") + _figures_of(whole, "loss")
    return figures or _figures_of(whole, "distance_to_first")


def _figures_of(whole: pd.DataFrame, metric: str) -> list[Figure]:
    chosen = whole[whole["metric"] == metric].sort_values(["run", "probe", "step"])
    if chosen.empty:
        return []
    line_count = chosen.groupby(["run", "probe"]).ngroups
    if line_count <= _FEW_LINES or chosen["probe"].nunique() == 1:
        return [_figure(chosen, metric, "")]
    return [_figure(part, metric, str(probe)) for probe, part in chosen.groupby("probe")]


def _figure(chosen: pd.DataFrame, metric: str, probe_shown: str) -> Figure:
    from stratascope.tasks.report.style import lines

    series, bands = {}, {}
    several_runs, several_probes = chosen["run"].nunique() > 1, chosen["probe"].nunique() > 1
    for (run, probe), group in chosen.groupby(["run", "probe"]):
        pieces = [str(run)] if several_runs or not probe else []
        label = ", ".join(pieces + ([str(probe)] if probe and (several_probes or not several_runs) else []))
        series[label] = (list(group["step"]), list(group["value"]))
        if group["low"].notna().all():
            bands[label] = (list(group["low"]), list(group["high"]))
    words = _WORDS[metric]
    finals = {name: values[-1] for name, (_, values) in series.items()}
    best = (max if metric == "accuracy" else min)(finals, key=lambda name: finals[name])
    count, runs = int(chosen["n"].min()), chosen["run"].nunique()
    caution = words["caution" if len(series) > 1 else "caution_alone"].format(
        best=best, value=finals[best], n=f"{count:,}", lines=counted(len(series), "line"),
        runs="one run" if runs == 1 else f"{runs} runs", spread=max(finals.values()) - min(finals.values()),
    )  # fmt: skip
    return Figure(
        key=f"trend-{metric}" + (f"-{probe_shown}" if probe_shown else ""),
        title=words["title"], probe=probe_shown, caution=caution,
        svg=lines(series, _UNITS[metric], logarithmic=metric == "loss", bands=bands if metric == "accuracy" else None),
        table={name: chosen[name].tolist() for name in _COLUMNS},
        **{name: words[name] for name in ("shows", "reading", "audience", "practitioner", "researcher")},
    )  # fmt: skip


_WORDS: dict[str, dict[str, Any]] = {
    "accuracy": {
        "title": "Accuracy of all runs",
        "shows": "One line for every run and probe: the share of samples that the network gets right as training goes on, with its 95 % interval as a pale band.",
        "reading": "Higher and further left is better: more is right, earlier. Lines that part mark where runs or probes begin to differ.",
        "caution": "{best} ends highest at {value:.3f}; the ends of {lines} from {runs} lie {spread:.3f} apart. The smallest probe has {n} samples, and one run a setting cannot tell luck from skill.",
        "caution_alone": "{best} ends at {value:.3f} over {n} samples: with the interval of that number alone, and one run a setting cannot tell luck from skill.",
        "audience": "For the first glance of the morning.",
        "practitioner": "When the newest point lies on the line that you expect, go on with your day; otherwise open the run's page.",
        "researcher": "Raw means without smoothing. The band is the interval over probe samples; it says nothing of the spread over seeds.",
    },
    "loss": {
        "title": "Loss of all runs",
        "shows": "One line for every run and probe: the loss that the audit computed itself from stored outputs.",
        "reading": "Compare the probes of one run: a training line that falls while a test line rises is overfitting.",
        "caution": "{best} ends lowest at {value:.4g} among {lines} from {runs}, over at least {n} samples; weight decay and other penalties of training are not in it.",
        "caution_alone": "{best} ends at {value:.4g}, a mean over {n} samples; weight decay and other penalties of training are not in it.",
        "audience": "For seeing trouble before accuracy admits to it.",
        "practitioner": "A sudden step upwards that does not heal is worth a look at the checkpoint itself.",
        "researcher": "Evaluation mode, fixed samples, no augmentation: it differs from the training log's loss by construction.",
    },
    "distance_to_first": {
        "title": "Distance of the weights from the start",
        "shows": "One line for every run: how far the weights have gone from the first audited checkpoint. It stands here because no accuracy or loss was filed.",
        "reading": "A line that still climbs steeply at its end belongs to a training that has not settled.",
        "caution": "{best} moved least, by {value:.4g}, among {lines} from {runs}; the ends lie {spread:.4g} apart. Networks of different size are not comparable by it.",
        "caution_alone": "{best} has moved by {value:.4g} in the end. Networks of different size are not comparable by it.",
        "audience": "For audits of networks without a task.",
        "practitioner": "Give the probe targets and the configuration a task, and accuracy will stand here instead.",
        "researcher": "Euclidean over all tensors of the checkpoint, from a count sketch with about 3 % relative error.",
    },
}  # fmt: skip
