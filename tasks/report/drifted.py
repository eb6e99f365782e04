"""What the analysis `drift` found since the audit before, in sentences for the overview."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stratascope.tasks.report.text import counted, plain_number, plain_step

if TYPE_CHECKING:
    import pandas as pd

_NAMES = {"cka": "1 − CKA", "procrustes": "Procrustes distance"}
_MOST_PAIRS = 2
"""Of more pairs of run and probe than these, only the count is told."""


def drift_sentences(rows: pd.DataFrame) -> list[str]:
    """Which layers moved and which predictions changed since the audit before; empty where there was none, or no drift.

    `rows` are sound rows of checkpoints.
    """
    since = rows[rows["part"].str.endswith("against=last_audit")]
    # A step that an earlier audit added is no news any more.
    newest = since.groupby("run")["step"].transform("max") if len(since) else since["step"]
    since = since[since["step"] == newest]
    sentences = []
    groups = list(since.groupby(["run", "probe"]))
    for (run, probe), group in groups[:_MOST_PAIRS]:
        first = group.iloc[0]
        span = f"from step {plain_step(first['other_step'])} to {plain_step(first['step'])}"
        sentences += [
            text for text in (_layers(group, run, probe, span), _answers(group, run, probe, span)) if text
        ]
    if len(groups) > _MOST_PAIRS:
        sentences.append(
            f"Drift of {counted(len(groups) - _MOST_PAIRS, 'more pair')} of run and probe: see its page."
        )
    return sentences


def _layers(group: pd.DataFrame, run: str, probe: str, span: str) -> str:
    moved = group[(group["metric"] == "layer_movement") & ~group["part"].str.contains("null=")]
    if not len(moved):
        return ""
    part = moved["part"].iloc[0]
    moved = moved[moved["part"] == part].sort_values("value", ascending=False, kind="stable")
    measure = part.split(";")[0].removeprefix("measure=")
    top = moved.iloc[0]
    told = f"{top['layer']} moved most ({_NAMES.get(measure, measure)} {plain_number(top['value'])})"
    if len(moved) > 1:
        last = moved.iloc[-1]
        told += f", {last['layer']} least ({plain_number(last['value'])})"
    return f"Layers of {run} on {probe} {span}: {told}."


def _answers(group: pd.DataFrame, run: str, probe: str, span: str) -> str:
    found = group[group["layer"] == ""].set_index("metric")
    if "prediction_churn" not in found.index:
        return ""
    changed = found.loc["prediction_churn"]
    text = f"Predictions of {run} on {probe} {span}: {changed['value']:.1%} changed"
    if {"newly_right_fraction", "newly_wrong_fraction"} <= set(found.index):
        right, wrong = (
            round(found.loc[f"newly_{kind}_fraction", "value"] * found.loc[f"newly_{kind}_fraction", "n"])
            for kind in ("right", "wrong")
        )
        text += f"; of {int(changed['n']):,} samples {right:,} became right and {wrong:,} wrong"
    return f"{text}."
