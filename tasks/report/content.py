"""What the pages tell: numbers and words from ledger, history and drawn figures; no HTML and no pages here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from stratascope.storage.audits import read_audits
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import Analysis, Metric, discover
from stratascope.tasks.comparison.page import comparison_names
from stratascope.tasks.report.drawing import read_figures
from stratascope.tasks.report.drifted import drift_sentences
from stratascope.tasks.report.text import counted, joined, natural_order, plain_number, plain_step

if TYPE_CHECKING:
    import pandas as pd

VERDICTS: Mapping[str, tuple[str, str]] = {
    "pass": ("✓", "Sound: every check passed."),
    "info": ("i", "Sound: there are notes to read."),
    "warn": ("!", "Usable, with warnings."),
    "fail": ("✕", "Not sound: a check failed."),
    "error": ("?", "Undecided: something could not be evaluated."),
    "": ("–", "Nothing has been audited yet."),
}
LEVELS = ("pass", "info", "warn", "fail", "error")
MOST_RECENT = 100
_SPARK_POINTS = 60
_FEW_SENTENCES = 4


@dataclass
class Content:
    """Everything that the pages of one store draw on, read once."""

    store: Store
    audits: list[dict[str, Any]] = field(init=False)
    """The records of the latest audit and of the one before."""

    def __post_init__(self) -> None:
        self.audits = read_audits(self.store, last=2)

    @cached_property
    def recent_audits(self) -> list[dict[str, Any]]:
        """The latest `MOST_RECENT` audits, oldest first: as far back as the page of a check looks."""
        return read_audits(self.store, last=MOST_RECENT)

    @property
    def audit(self) -> dict[str, Any]:
        """The record of the latest audit; empty where there was none."""
        return self.audits[-1] if self.audits else {}

    @property
    def checks(self) -> list[dict[str, Any]]:
        """One entry for each condition: name, metric, bound, severity and how often it came out how."""
        found: list[dict[str, Any]] = self.audit.get("conditions", [])
        return found

    @property
    def raised(self) -> list[dict[str, Any]]:
        """What the checks of the latest audit raised, one entry for each finding."""
        found: list[dict[str, Any]] = self.audit.get("checks", [])
        return found

    @cached_property
    def rows(self) -> pd.DataFrame:
        return self.store.rows()

    @cached_property
    def sound_rows(self) -> pd.DataFrame:
        """Rows with a value, of checkpoints."""
        return self.rows[(self.rows["status"] == "ok") & (self.rows["step"] >= 0)]

    @cached_property
    def captures(self) -> list[Unit]:
        return [unit for unit in self.store.units() if unit.analysis == "capture"]

    @cached_property
    def runs(self) -> list[str]:
        """Runs with a stored checkpoint, and those of which the latest audit met only files that it could not use."""
        listed = {str(item["run"]) for item in self.audit.get("checkpoints", ())}
        return sorted({unit.run for unit in self.captures} | listed, key=natural_order)

    @cached_property
    def layers(self) -> dict[str, dict[str, Any]]:
        """Captured layers with their facts, in the order of execution, of the latest checkpoint of each run."""
        found: dict[str, dict[str, Any]] = {}
        for run in self.runs:
            steps = [unit for unit in self.captures if unit.run == run]
            manifest = self.store.manifest(max(steps, key=lambda unit: unit.step)) if steps else None
            for summary in (manifest.summary if manifest else {}).values():
                facts = summary.get("facts", {})
                names = [name for name in summary.get("layers", ()) if not name.startswith("@")]
                found |= {name: facts.get(name, {}) for name in names if name not in found}
        return found

    @cached_property
    def figures(self) -> list[dict[str, Any]]:
        """What has been drawn of the runs that are there."""
        drawn, runs = read_figures(self.store.path / "report"), {"", *self.runs}
        return [item for item in drawn if item["run"] in runs]

    @cached_property
    def analyses(self) -> dict[str, Analysis]:
        filed = set(self.rows["analysis"].unique()) | {figure["analysis"] for figure in self.figures}
        return {name: analysis for name, analysis in discover().items() if name in filed}

    @cached_property
    def comparisons(self) -> list[str]:
        return comparison_names(list(self.store.manifests()))

    def metric(self, name: str) -> tuple[str, Metric] | None:
        """The analysis that files the metric `name`, and what it means."""
        for key, analysis in self.analyses.items():
            for metric in analysis.metrics:
                if metric.name == name:
                    return key, metric
        return None

    def key_numbers(self) -> list[tuple[str, str]]:
        """The few numbers that stand at the top of the overview."""
        numbers = [("checkpoint" if len(self.captures) == 1 else "checkpoints", f"{len(self.captures):,}")]
        if len(self.runs) > 1:
            numbers.append(("runs", str(len(self.runs))))
        numbers.append(("layers", str(len(self.layers))))
        accuracy = self._whole("accuracy")
        last = accuracy.groupby(["run", "probe"]).tail(1)
        for item in last.sort_values("value", ascending=False).head(4 if len(last) > 4 else 6).itertuples():
            label = f"accuracy of {item.run} on {item.probe}, step {plain_step(item.step)}"
            numbers.append((label, f"{item.value:.1%}"))
        return numbers

    def _whole(self, metric: str) -> pd.DataFrame:
        """Rows of `metric` about the whole network and all samples, by run, probe and step."""
        rows = self.sound_rows
        chosen = rows[(rows["metric"] == metric) & (rows["part"] == "") & (rows["layer"] == "")]
        return chosen.sort_values(["run", "probe", "step"])

    # -- what changed ------------------------------------------------------------------------------------

    def changes(self) -> list[str]:
        """What is different since the audit before, in sentences."""
        if not self.audits:
            return ["There is no audit in this store's history: run `stratascope audit` first."]
        if len(self.audits) < 2:
            found = counted(len(self.captures), "checkpoint")
            return [f"This is the first audit of this store: everything is new, {found} in all.", *self._moved()]
        now, before = self.audits[-1], self.audits[-2]
        sentences = []
        new = [f"{i['run']} step {plain_step(i['step'])}" for i in now["checkpoints"] if i["status"] == "computed"]
        if new:
            sentences.append(f"Computed anew: {joined(new, 8)}.")
        if now["verdict"] != before["verdict"]:
            sentences.append(f"The verdict went from {before['verdict']} to {now['verdict']}.")
        for label, first, second in (("Newly raised", now, before), ("No longer raised", before, now)):
            gone = {_place(item) for item in first["checks"]} - {_place(item) for item in second["checks"]}
            if gone:
                sentences.append(f"{label}: {joined(sorted(gone))}.")
        known = {(item["file"], item["status"]) for item in before["checkpoints"]}
        for status in ("quarantined", "deferred", "duplicate", "gone"):
            fresh = [
                f"{PurePath(item['file']).name}" + (f" ({item['reason'].rstrip('.')})" if item["reason"] else "")
                for item in now["checkpoints"]
                if item["status"] == status and (item["file"], status) not in known
            ]
            if fresh:
                sentences.append(f"Newly {status}: {joined(fresh, 5)}.")
        if not sentences:
            return ["Nothing changed since the audit before."]
        return [*sentences, *self._moved(), *drift_sentences(self.sound_rows)]

    def _moved(self) -> list[str]:
        """How the last checkpoint's accuracy differs from the one before; counted where there are many lines."""
        sentences, counts = [], Counter[str]()
        for (run, probe), group in self._whole("accuracy").groupby(["run", "probe"]):
            if len(group) < 2:
                continue
            earlier, last = group.iloc[-2], group.iloc[-1]
            inside = last["low"] <= earlier["value"] <= last["high"]
            counts["within" if inside else "up" if last["value"] > earlier["value"] else "down"] += 1
            meaning = "within its interval, hence no sure change" if inside else "outside its interval"
            sentences.append(
                f"Accuracy of {run} on {probe}: {earlier['value']:.3f} at step {plain_step(earlier['step'])}, "
                f"{last['value']:.3f} at step {plain_step(last['step'])} ({meaning})."
            )
        if len(sentences) <= _FEW_SENTENCES:
            return sentences
        return [
            f"Accuracy from the last step but one to the last, {len(sentences)} runs and probes: risen beyond its "
            f"interval in {counts['up']}, fallen beyond it in {counts['down']}, no sure change in {counts['within']}."
        ]

    # -- tables ------------------------------------------------------------------------------------------

    def run_table(self) -> list[dict[str, Any]]:
        """One entry for each run: how many checkpoints, from where to where, the worst outcome, the last numbers."""
        entries = []
        accuracy, loss = self._whole("accuracy"), self._whole("loss")
        worst: dict[str, list[str]] = {}
        for check in self.raised:
            worst.setdefault(check["run"], []).append(check["outcome"])
        for run in self.runs:
            steps = sorted(unit.step for unit in self.captures if unit.run == run)
            numbers = [
                {"probe": probe, "metric": name, "last": float(group["value"].iloc[-1]), **_spark(group)}
                for name, rows in (("accuracy", accuracy), ("loss", loss))
                for probe, group in rows[rows["run"] == run].groupby("probe")
            ]
            entries.append(
                {"run": run, "count": len(steps), "first": steps[0] if steps else None, "last": steps[-1] if steps else None,
                 "outcome": max(worst.get(run, ["pass"]), key=LEVELS.index) if steps else "", "numbers": numbers}
            )  # fmt: skip
        return entries

    @cached_property
    def checkpoint_table(self) -> list[dict[str, Any]]:
        """One entry for each file of the latest audit, with its headline numbers by probe."""
        rows = self.sound_rows[(self.sound_rows["part"] == "") & (self.sound_rows["layer"] == "")]
        numbers: dict[tuple[str, int], dict[str, float]] = {}
        for item in rows[rows["metric"].isin(["accuracy", "loss"])].itertuples():
            numbers.setdefault((item.run, int(item.step)), {})[f"{item.metric}, {item.probe}"] = float(item.value)
        raised: dict[tuple[str, int], list[str]] = {}
        for check in self.raised:
            raised.setdefault((check["run"], check["step"]), []).append(check["outcome"])
        entries = []
        for item in self.audit.get("checkpoints", ()):
            place = (item["run"], item["step"] if item["step"] is not None else -1)
            audited = item["status"] in ("computed", "cached")
            outcome = max(raised.get(place, ["pass"]), key=LEVELS.index) if audited else ""
            entries.append({**item, "outcome": outcome, "numbers": numbers.get(place, {}) if audited else {}})
        return entries

    def number_columns(self, entries: Sequence[Mapping[str, Any]]) -> list[str]:
        """The names of the numbers that any of `entries` has, accuracy before loss."""
        return sorted({name for item in entries for name in item["numbers"]})

    @cached_property
    def _by_layer(self) -> dict[str, pd.DataFrame]:
        return {str(name): rows for name, rows in self.sound_rows.groupby("layer")}

    def layer_numbers(self, layer: str) -> list[dict[str, Any]]:
        """Every metric of one layer: its values over the steps, for a line and a row of numbers each."""
        rows = self._by_layer.get(layer)
        if rows is None:
            return []
        rows = rows[rows["other_layer"] == ""]  # what holds it against other layers is no course over the steps
        return [
            {**dict(zip(("run", "metric", "probe", "part"), keys, strict=True)), "unit": group["unit"].iloc[-1], **_spark(group)}
            for keys, group in rows.sort_values("step", kind="stable").groupby(["run", "metric", "probe", "part"], sort=True)
        ]  # fmt: skip

    def extremes(self, metric: str) -> list[str]:
        """Where the ledger's smallest and largest value of `metric` stand, in words."""
        rows = self.sound_rows[self.sound_rows["metric"] == metric]
        if rows.empty:
            return []
        found = []
        for label, place in (("Smallest", rows["value"].idxmin()), ("Largest", rows["value"].idxmax())):
            row = rows.loc[place]
            where = ", ".join(str(row[key]) for key in ("run", "layer", "probe", "part") if row[key])
            found.append(
                f"{label} value in the ledger: {plain_number(row['value'])} ({where}, step {plain_step(row['step'])})."
            )
        return found  # fmt: skip


def grouped(checks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Raised findings joined over the steps, the worst first: outcome, how many, from which step to which."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for item in checks:
        key = tuple(str(item.get(name, "")) for name in ("name", "run", "layer", "probe", "part", "bound"))
        groups.setdefault(key, []).append(item)
    entries = []
    for members in groups.values():
        members = sorted(members, key=lambda item: item["step"])
        last = members[-1]
        entries.append(
            {**last, "outcome": max((item["outcome"] for item in members), key=LEVELS.index), "count": len(members),
             "first": members[0]["step"], "last": last["step"]}
        )  # fmt: skip
    return sorted(
        entries, key=lambda item: (-LEVELS.index(item["outcome"]), item["name"], item["run"], item["layer"])
    )


def tally(checks: Sequence[Mapping[str, Any]]) -> str:
    """How many findings came out how, in words."""
    counts = Counter(item["outcome"] for item in checks)
    return ", ".join(f"{counts[level]:,} {level}" for level in reversed(LEVELS) if counts[level])


def _place(check: Mapping[str, Any]) -> str:
    where = f" in {check['layer']}" if check["layer"] else ""
    return f"{check['name']} ({check['run']}{where})"


def _spark(group: pd.DataFrame) -> dict[str, Any]:
    """What a small line over the steps and the numbers beside it need."""
    values = [float(value) for value in group["value"]]
    return {
        "first": values[0], "last": values[-1], "low": min(values), "high": max(values),
        "from": int(group["step"].iloc[0]), "to": int(group["step"].iloc[-1]), "points": sparkline(values),
    }  # fmt: skip


def sparkline(values: Sequence[float], width: float = 96, height: float = 22) -> str:
    """The points of a small line through `values`, for an SVG polyline of `width` × `height`."""
    if len(values) > _SPARK_POINTS:
        values = [values[round(n * (len(values) - 1) / (_SPARK_POINTS - 1))] for n in range(_SPARK_POINTS)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, spread = min(finite), max(finite) - min(finite)
    stride = width / max(1, len(values) - 1)
    level = (lambda value: (value - low) / spread) if spread else (lambda value: 0.5)
    return " ".join(
        f"{place * stride:.0f},{height - 2 - level(value) * (height - 4):.1f}"
        for place, value in enumerate(values)
        if math.isfinite(value)
    )
