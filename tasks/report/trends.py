"""The overview's own figure: all runs side by side over their steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stratascope.tasks.analysis import Figure

if TYPE_CHECKING:
    import pandas as pd


def trend_figures(rows: pd.DataFrame) -> list[Figure]:
    """Accuracy and loss of every run and probe over the steps; an empty list where neither was filed."""
    from stratascope.tasks.report.style import lines

    figures = []
    for metric, unit in (("accuracy", "fraction right"), ("loss", "loss")):
        chosen = rows[(rows["metric"] == metric) & (rows["part"] == "") & (rows["layer"] == "")]
        chosen = chosen[(chosen["status"] == "ok") & (chosen["step"] >= 0)]
        several = chosen["run"].nunique() > 1
        series = {}
        for (run, probe), group in chosen.groupby(["run", "probe"]):
            group = group.sort_values("step")
            label = f"{run}, {probe}" if several else str(probe)
            series[label] = (list(group["step"]), list(group["value"]))
        if not series:
            continue
        words = _WORDS[metric]
        finals = {name: values[-1] for name, (_, values) in series.items()}
        best = (max if metric == "accuracy" else min)(finals, key=lambda name: finals[name])
        caution = words["caution"].format(
            best=best,
            value=finals[best],
            n=int(chosen["n"].min()),
            lines=len(series),
            runs=chosen["run"].nunique(),
        )
        figures.append(
            Figure(
                key=f"trend-{metric}", title=f"{metric.capitalize()} of all runs",
                svg=lines(series, unit, logarithmic=metric == "loss"), caution=caution,
                table={k: chosen[k].tolist() for k in ("run", "probe", "step", "value", "low", "high", "n")},
                **{k: words[k] for k in ("shows", "reading", "audience", "practitioner", "researcher")},
            )
        )  # fmt: skip
    return figures


_WORDS: dict[str, dict[str, Any]] = {
    "accuracy": {
        "shows": "One line for every run and probe: the share of samples that the network gets right as training goes on.",
        "reading": "Higher and further left is better: more is right, earlier. Lines that part mark where runs or probes begin to differ.",
        "caution": "{best} ends highest at {value:.3f}, among {lines} line(s) from {runs} run(s). The smallest probe has {n} samples, and one run a setting cannot tell luck from skill.",
        "audience": "For the first glance of the morning.",
        "practitioner": "When the newest point lies on the line that you expect, go on with your day; otherwise open the run's page.",
        "researcher": "Raw means without smoothing; intervals are in the ledger as low and high. The axis of steps is logarithmic above the first positive step where steps are spread widely.",
    },
    "loss": {
        "shows": "One line for every run and probe: the loss that the audit computed itself from stored outputs.",
        "reading": "Compare the probes of one run: a training line that falls while a test line rises is overfitting.",
        "caution": "{best} ends lowest at {value:.4g} among {lines} line(s) from {runs} run(s), over at least {n} samples; weight decay and other penalties of training are not in it.",
        "audience": "For seeing trouble before accuracy admits to it.",
        "practitioner": "A sudden step upwards that does not heal is worth a look at the checkpoint itself.",
        "researcher": "Evaluation mode, fixed samples, no augmentation: it differs from the training log's loss by construction.",
    },
}
