"""Which pages a report has, and what stands on each, as plain data that a page can be written from alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

import stratascope
from stratascope.storage.names import encode_path_part
from stratascope.tasks.checks.suites import REASONS
from stratascope.tasks.comparison.page import page_variables
from stratascope.tasks.report.check_history import past_audits, runs_of
from stratascope.tasks.report.content import LEVELS, VERDICTS, Content, grouped, tally
from stratascope.tasks.report.past_audits import history_page, moment
from stratascope.tasks.report.text import counted, plain_step, visible

KINDS = {
    "comparisons": "Comparisons", "runs": "Runs", "analyses": "Analyses", "layers": "Layers", "checks": "Checks",
}  # fmt: skip
MOST_LINKS = 40
"""A list of more pages than this stands on a page of its own; the others show what is near."""
_MOST_ROWS = 200
"""The overview lists at most so many checkpoints; a run's page lists them all."""
_MOST_HEADLINES = 24
_COUNTED = {level: level for level in LEVELS} | {"not_judged": "not judged, only held against"}
_FEW_LAYERS = 4
"""Pictures of more layers than this stand on the layers' pages alone."""


def page_names(content: Content) -> dict[str, list[tuple[str, str]]]:
    """(name, page) for every kind of page."""
    names = {
        "runs": content.runs,
        "analyses": list(content.analyses),
        "layers": list(content.layers),
        "checks": [item["name"] for item in content.checks],
        "comparisons": content.comparisons,
    }
    return {
        kind: [(name, f"{kind}/{encode_path_part(name)}.html") for name in dict.fromkeys(listed)]
        for kind, listed in names.items()
    }


def shared(content: Content) -> dict[str, Any]:
    """What every page needs: the title, and the links to all pages."""
    titles = {name: analysis.title for name, analysis in content.analyses.items()}
    navigation = {
        kind: [(titles.get(name, name) if kind == "analyses" else name, target) for name, target in listed]
        for kind, listed in page_names(content).items()
    }
    return {
        "title": content.audit.get("title", "Stratascope audit"),
        "version": stratascope.__version__,
        "navigation": navigation,
        "links": {
            kind: {name: quote(target) for name, target in listed} for kind, listed in page_names(content).items()
        },
    }


def all_pages(content: Content) -> dict[str, tuple[str, Callable[[], dict[str, Any]]]]:
    """Every page with its template and what makes its variables."""
    pages: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
        "index.html": ("overview.html", lambda: _overview(content)),
        "history.html": ("history.html", lambda: history_page(content.store)),
    }
    makers = {
        "runs": ("run.html", _run), "analyses": ("analysis.html", _analysis), "layers": ("layer.html", _layer),
        "checks": ("check.html", _check), "comparisons": ("comparison.html", _comparison),
    }  # fmt: skip
    for kind, listed in page_names(content).items():
        template, maker = makers[kind]
        if len(listed) > MOST_LINKS:
            pages[f"all-{kind}.html"] = ("all.html", lambda kind=kind: _all(content, kind))  # type: ignore[misc]
        for name, target in listed:
            pages[target] = (template, lambda maker=maker, name=name: maker(content, name))  # type: ignore[misc]
    return pages


def _all(content: Content, kind: str) -> dict[str, Any]:
    described = {name: _described(facts) for name, facts in content.layers.items()} if kind == "layers" else {}
    listed = [(name, quote(target), described.get(name, "")) for name, target in page_names(content)[kind]]
    return {"heading": f"All {KINDS[kind].lower()}", "listed": listed}


def _overview(content: Content) -> dict[str, Any]:
    verdict = content.audit.get("verdict", "")
    sign, sentence = VERDICTS[verdict]
    headlines = [item for item in content.figures if item["headline"]]
    per_run = max(1, _MOST_HEADLINES // max(1, len({item["run"] for item in headlines})))
    kept = {run: [item for item in headlines if item["run"] == run][:per_run] for run in content.runs}
    table = _most_notable(content.checkpoint_table)
    return {
        "heading": "Overview",
        "verdict": verdict,
        "sign": sign,
        "sentence": sentence,
        "finished": moment(content.audit.get("finished", "")),
        "key_numbers": content.key_numbers(),
        "changes": content.changes(),
        "failures": content.audit.get("failures", []),
        "problems": grouped(content.raised)[:_MOST_ROWS],
        "tally": tally(content.raised),
        "condition_count": len(content.checks),
        "trends": [item for item in content.figures if item["analysis"] == "overview"],
        "headlines": [item for items in kept.values() for item in items][:_MOST_HEADLINES],
        "runs": content.run_table() if len(content.runs) > 1 else [],
        "table": table,
        "columns": content.number_columns(table),
        "left_out": len(content.checkpoint_table) - len(table),
    }


def _most_notable(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `_MOST_ROWS` entries, in their order: those that need attention, then the latest steps."""
    if len(entries) <= _MOST_ROWS:
        return entries

    def dullness(place: int) -> tuple[bool, int]:
        item = entries[place]
        dull = item["status"] in ("computed", "cached") and item["outcome"] == "pass"
        return dull, -(item["step"] if item["step"] is not None else 0)

    chosen = sorted(sorted(range(len(entries)), key=dullness)[:_MOST_ROWS])
    return [entries[place] for place in chosen]


def _run(content: Content, name: str) -> dict[str, Any]:
    steps = sorted(unit.step for unit in content.captures if unit.run == name)
    here = [item for item in content.figures if item["run"] == name]
    drawn = {item["analysis"] for item in here}
    table = [item for item in content.checkpoint_table if item["run"] == name]
    rows = content.sound_rows[
        (content.sound_rows["run"] == name) & (content.sound_rows["metric"] == "parameter_count")
    ]
    numbers = [("checkpoints", f"{len(steps):,}")]
    if steps:
        numbers.append(("first to last step", f"{plain_step(steps[0])} – {plain_step(steps[-1])}"))
    if len(rows):
        numbers.append(("weights", f"{int(rows['value'].iloc[-1]):,}"))
    left = len(table) - sum(item["status"] in ("computed", "cached") for item in table)
    return {
        "heading": f"Run {visible(name)}",
        "key_numbers": numbers,
        "left": left,
        "table": table,
        "columns": content.number_columns(table),
        "problems": grouped([item for item in content.raised if item["run"] == name]),
        "headlines": [item for item in here if item["headline"]],
        "analyses": [
            (key, analysis.title, analysis.question, quote(f"analyses/{encode_path_part(key)}.html"))
            for key, analysis in content.analyses.items()
            if key in drawn
        ],
    }


def _described(facts: Mapping[str, Any]) -> str:
    shape = facts.get("shape") or ()
    return str(facts.get("type", "")) + (f", {' × '.join(map(str, shape))}" if shape else "")


def _layer(content: Content, name: str) -> dict[str, Any]:
    facts = content.layers[name]
    shape = facts.get("shape") or ()
    kind = facts.get("type", "layer")
    article = "An" if kind[:1] in "AEIOU" else "A"
    size = f" whose output for one sample is {' × '.join(map(str, shape))}" if shape else ""
    names = list(content.layers)
    place = names.index(name)
    problems = grouped([item for item in content.raised if item["layer"] == name])
    return {
        "heading": f"Layer {visible(name)}",
        "description": f"{article} {kind}{size}. Number {place + 1} of {len(names)} in the order of execution.",
        "before": names[place - 1] if place else "",
        "after": names[place + 1] if place + 1 < len(names) else "",
        "problems": problems,
        "numbers": content.layer_numbers(name),
        "figures": [item for item in content.figures if item["layer"] == name],
    }


def _analysis(content: Content, name: str) -> dict[str, Any]:
    analysis = content.analyses[name]
    rows = content.rows[content.rows["analysis"] == name]
    missing = rows[rows["status"].isin(["does_not_apply", "failed"])]
    reasons = [
        f"{str(kind).replace('_', ' ').capitalize()} ({counted(len(group), 'finding')}): {reason}"
        for (kind, reason), group in missing.groupby(["status", "reason"])
    ]
    figures = [item for item in content.figures if item["analysis"] == name]
    layers = {item["layer"] for item in figures} & set(content.layers)
    elsewhere = layers if len(layers) > _FEW_LAYERS else set()
    by_layer: dict[str, str] = {}
    for item in figures:
        if item["layer"] in elsewhere:
            target = quote(f"layers/{encode_path_part(item['layer'])}.html")
            by_layer.setdefault(item["layer"], f"{target}#{quote(item['id'])}")
    order = list(content.layers)
    return {
        "heading": analysis.title,
        "question": analysis.question,
        "reasons": reasons[:10],
        "metrics": [
            {key: getattr(metric, key) for key in ("name", "unit", "range", "definition", "source", "invariances")}
            for metric in analysis.metrics
        ],
        "figures": [item for item in figures if item["layer"] not in elsewhere],
        "by_layer": sorted(by_layer.items(), key=lambda pair: order.index(pair[0])),
        "rows": len(rows),
    }


def _check(content: Content, name: str) -> dict[str, Any]:
    condition = next(item for item in content.checks if item["name"] == name)
    meaning = content.metric(condition["metric"])
    raised = [item for item in content.raised if item["name"] == name]
    return {
        "heading": f"Check {visible(name)}",
        "condition": condition,
        "why": REASONS.get(name, "") if condition.get("suite") else "",
        "counts": [
            (label, f"{condition['counts'][key]:,}")
            for key, label in _COUNTED.items()
            if key in condition["counts"]
        ],
        "definition": meaning[1].definition if meaning else "",
        "unit": meaning[1].unit if meaning else "",
        "analysis": meaning[0] if meaning else "",
        "extremes": content.extremes(condition["metric"]),
        "problems": grouped(raised),
        "runs": runs_of(content.rows, name),
        "past": [
            entry | {"from": moment(entry["from"]), "to": moment(entry["to"])}
            for entry in past_audits(content.recent_audits, name)
        ],
        "levels": list(LEVELS),
    }


def _comparison(content: Content, name: str) -> dict[str, Any]:
    return page_variables(content.store, name, content.figures)


def near(listed: list[Any], page: str, span: int = 6) -> list[Any]:
    """Of more than `MOST_LINKS` links (text, page) those around `page`, else the first ones; fewer stay as they are."""
    if len(listed) <= MOST_LINKS:
        return listed
    place = next((number for number, (_, target) in enumerate(listed) if target == page), None)
    start = 0 if place is None else max(0, min(place - span, len(listed) - 2 * span - 1))
    return listed[start : start + 2 * span + 1]


def file_name(path: str) -> str:
    """The last part of a path."""
    return PurePath(path).name
