"""What stands on each page: numbers and words from ledger, history and drawn figures; no HTML here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stratascope.storage.audits import read_audits
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import Analysis, discover
from stratascope.tasks.report.drawing import read_figures

if TYPE_CHECKING:
    import pandas as pd

VERDICTS: Mapping[str, tuple[str, str]] = {
    "pass": ("✓", "Sound: every check passed."),
    "info": ("i", "Sound: there are notes to read."),
    "warn": ("!", "Usable, with warnings."),
    "fail": ("✕", "Not sound: a check failed."),
    "error": ("?", "Undecided: something could not be evaluated."),
}


@dataclass
class Content:
    """Everything that the pages of one store draw on, read once."""

    store: Store
    audits: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.audits = read_audits(self.store)

    @property
    def audit(self) -> dict[str, Any]:
        """The record of the latest audit; empty where there was none."""
        return self.audits[-1] if self.audits else {}

    @cached_property
    def rows(self) -> pd.DataFrame:
        return self.store.rows()

    @cached_property
    def captures(self) -> list[Unit]:
        return [unit for unit in self.store.manifests() if unit.analysis == "capture"]

    @cached_property
    def runs(self) -> list[str]:
        return sorted({unit.run for unit in self.captures})

    @cached_property
    def layers(self) -> list[str]:
        """Captured layers in the order of execution, of the latest checkpoint of each run."""
        order: dict[str, None] = {}
        for run in self.runs:
            last = max((unit for unit in self.captures if unit.run == run), key=lambda unit: unit.step)
            manifest = self.store.manifest(last)
            for summary in (manifest.summary if manifest else {}).values():
                order |= dict.fromkeys(name for name in summary.get("layers", ()) if not name.startswith("@"))
        return list(order)

    @cached_property
    def analyses(self) -> dict[str, Analysis]:
        drawn = {figure["analysis"] for figure in read_figures(self.store.path / "report")}
        filed = set(self.rows["analysis"]) | drawn
        return {name: analysis for name, analysis in discover().items() if name in filed}

    @cached_property
    def checks(self) -> list[dict[str, Any]]:
        """One entry for each condition: name, metric, bound, severity and how often it came out how."""
        found: list[dict[str, Any]] = self.audit.get("conditions", [])
        return found

    @cached_property
    def figures(self) -> list[dict[str, Any]]:
        return read_figures(self.store.path / "report")

    def key_numbers(self) -> list[tuple[str, str]]:
        """The few numbers that stand at the top of the overview."""
        numbers = [("checkpoints", str(len(self.captures))), ("layers", str(len(self.layers)))]
        probes = self.rows[(self.rows["metric"] == "accuracy") & (self.rows["part"] == "")]
        for run in self.runs[:3]:
            for probe, group in probes[(probes["run"] == run) & (probes["status"] == "ok")].groupby("probe"):
                last = group.sort_values("step").iloc[-1]
                label = f"accuracy of {run} on {probe} at step {int(last['step'])}"
                numbers.append((label, f"{last['value']:.1%}"))
        return numbers[:6]

    def changes(self) -> list[str]:
        """What is different since the audit before, in sentences."""
        if len(self.audits) < 2:
            return ["This is the first audit of this store: everything is new."]
        now, before = self.audits[-1], self.audits[-2]
        sentences = []
        new = [item for item in now["checkpoints"] if item["status"] == "computed"]
        if new:
            listed = ", ".join(f"{item['run']} step {item['step']}" for item in new[:8])
            more = f" and {len(new) - 8} more" if len(new) > 8 else ""
            sentences.append(f"Computed anew: {listed}{more}.")
        if now["verdict"] != before["verdict"]:
            sentences.append(f"The verdict went from {before['verdict']} to {now['verdict']}.")
        for label, first, second in (("Newly raised", now, before), ("No longer raised", before, now)):
            gone = {_place(item) for item in first["checks"]} - {_place(item) for item in second["checks"]}
            if gone:
                listed = "; ".join(sorted(gone)[:6])
                sentences.append(f"{label}: {listed}{' and more' if len(gone) > 6 else ''}.")
        known = {item["file"] for item in before["checkpoints"] if item["status"] == "quarantined"}
        fresh = [i for i in now["checkpoints"] if i["status"] == "quarantined" and i["file"] not in known]
        sentences += [f"Quarantined: {item['file']}: {item['reason']}" for item in fresh[:5]]
        sentences += self._moved()
        return sentences or ["Nothing changed since the audit before."]

    def _moved(self) -> list[str]:
        sentences = []
        rows = self.rows[(self.rows["metric"] == "accuracy") & (self.rows["part"] == "")]
        for (run, probe), group in rows[rows["status"] == "ok"].groupby(["run", "probe"]):
            group = group.sort_values("step")
            if len(group) > 1:
                earlier, last = group.iloc[-2], group.iloc[-1]
                inside = last["low"] <= earlier["value"] <= last["high"]
                meaning = "within the interval, hence no sure change" if inside else "outside the interval"
                sentences.append(
                    f"Accuracy of {run} on {probe}: {earlier['value']:.3f} at step {int(earlier['step'])}, "
                    f"{last['value']:.3f} at step {int(last['step'])} ({meaning})."
                )
        return sentences

    def checkpoint_table(self, run: str | None = None) -> list[dict[str, Any]]:
        """One entry for each file of the latest audit, with its headline numbers."""
        rows = self.rows[(self.rows["part"] == "") & (self.rows["layer"] == "") & (self.rows["status"] == "ok")]
        numbers: dict[tuple[str, int], dict[str, float]] = {}
        for item in rows[rows["metric"].isin(["accuracy", "loss", "misplaced_score"])].itertuples():
            numbers.setdefault((item.run, int(item.step)), {}).setdefault(item.metric, float(item.value))
        raised: dict[tuple[str, int], list[str]] = {}
        for check in self.audit.get("checks", ()):
            raised.setdefault((check["run"], check["step"]), []).append(check["outcome"])
        entries = []
        for item in self.audit.get("checkpoints", ()):
            if run is not None and item["run"] != run:
                continue
            step = item["step"] if item["step"] is not None else -1
            levels = raised.get((item["run"], step), [])
            order = ["pass", "info", "warn", "fail", "error"]
            worst = max(levels, key=order.index) if levels else "pass"
            audited = item["status"] in ("computed", "cached")
            entries.append({**item, "outcome": worst if audited else "", **numbers.get((item["run"], step), {})})
        return entries

    def layer_numbers(self, layer: str) -> list[dict[str, Any]]:
        """Every metric of one layer: its values over the steps, for a line and a row of numbers each."""
        rows = self.rows[(self.rows["layer"] == layer) & (self.rows["status"] == "ok") & (self.rows["step"] >= 0)]
        entries = []
        for keys, group in rows.groupby(["run", "metric", "probe", "part"], sort=True):
            group = group.sort_values("step")
            values = [float(value) for value in group["value"]]
            names = dict(zip(("run", "metric", "probe", "part"), keys, strict=True))
            entries.append(
                {**names, "unit": group["unit"].iloc[-1], "first": values[0], "last": values[-1],
                 "low": min(values), "high": max(values), "points": sparkline(values),
                 "from": int(group["step"].iloc[0]), "to": int(group["step"].iloc[-1])}
            )  # fmt: skip
        return entries


def _place(check: Mapping[str, Any]) -> str:
    where = f" in {check['layer']}" if check["layer"] else ""
    return f"{check['name']} ({check['run']}{where})"


def sparkline(values: list[float], width: float = 96, height: float = 22) -> str:
    """The points of a small line through `values`, for an SVG polyline of `width` × `height`."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, spread = min(finite), (max(finite) - min(finite)) or 1.0
    stride = width / max(1, len(values) - 1)
    return " ".join(
        f"{place * stride:.1f},{height - 2 - (value - low) / spread * (height - 4):.1f}"
        for place, value in enumerate(values)
        if math.isfinite(value)
    )
