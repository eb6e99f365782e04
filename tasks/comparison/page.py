"""What the page of a comparison says, as plain data, from the units that are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stratascope.storage.names import encode_path_part
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.comparison.metrics import COMPARISON_METRICS, TRADITIONAL_METRICS
from stratascope.tasks.comparison.spec import METHODS, PREFIX, TRADITIONAL_PREFIX
from stratascope.tasks.report.text import counted, plain_number, plain_step

METHOD_NAMES = {
    "logistic_regression": "logistic regression", "rbf_svm": "RBF support vector machine",
    "random_forest": "random forest", "k_nearest_neighbors": "k nearest neighbours",
}  # fmt: skip
FEATURE_NAMES = {"raw": "raw inputs", "pca": "principal components", "network": "network features"}
TEST_NAMES = {"holm": "Holm", "benjamini_hochberg": "Benjamini and Hochberg"}


def comparison_page(name: str) -> str:
    """The page of the comparison called `name`, below the report's folder."""
    return f"comparisons/{encode_path_part(name)}.html"


def drawn_unit(name: str) -> Unit:
    """The unit under which the drawings of a comparison are remembered."""
    return Unit("report", "", -1, f"{PREFIX}{name}")


def comparison_names(units: Sequence[Unit]) -> list[str]:
    """The names of all comparisons among `units`."""
    return sorted(
        unit.analysis.removeprefix(PREFIX)
        for unit in units
        if unit.scope == "cohort" and unit.analysis.startswith(PREFIX)
    )


def summaries(store: Store, name: str) -> tuple[dict[str, Any], dict[Unit, dict[str, Any]]]:
    """What the comparison called `name` found, and its traditional methods by unit, in their usual order."""
    found = store.manifest(Unit("cohort", "", -1, f"{PREFIX}{name}"))
    methods = {}
    for method in METHODS:
        unit = Unit("cohort", "", -1, f"{TRADITIONAL_PREFIX}{name}:{method}")
        manifest = store.manifest(unit)
        if manifest is not None:
            methods[unit] = manifest.summary
    return (dict(found.summary) if found is not None else {}), methods


def page_variables(store: Store, name: str, figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the template of a comparison's page is filled with."""
    found, methods = summaries(store, name)
    if not found:
        return {"heading": f"Comparison {name}", "found": {}, "figures": []}
    first, second = found["groups"]
    return {
        "heading": found["title"],
        "found": found,
        "sides": [_side(first), _side(second)],
        "key_numbers": key_numbers(found),
        "sentences": sentences(found),
        "notes": notes(found, list(methods.values())),
        "metrics": sorted(found["metrics"], key=lambda item: item["differs"] is None),
        "level": f"{found['confidence'] * 100:g} %",
        "correction": TEST_NAMES[found["correction"]],
        "samples": found["samples"],
        "methods": [_method(item) for item in methods.values()],
        "definitions": [
            {key: getattr(metric, key) for key in ("name", "unit", "range", "definition", "source", "invariances")}
            for metric in (*COMPARISON_METRICS, *TRADITIONAL_METRICS)
        ],
        "figures": [item for item in figures if item["analysis"] == f"{PREFIX}{name}"],
    }


def _side(group: Mapping[str, Any]) -> dict[str, Any]:
    runs = group["runs"]
    steps = sorted({run["step"] for run in runs})
    at = f"step {plain_step(steps[0])}" if len(steps) == 1 else f"steps {plain_step(steps[0])} to {plain_step(steps[-1])}"  # fmt: skip
    return {**group, "described": f"{counted(len(runs), 'run')} at {at}"}


def _method(item: Mapping[str, Any]) -> dict[str, Any]:
    """One traditional method: its results by features, a network's features by run."""
    results = [{**entry, "shown": FEATURE_NAMES[entry["features"]]} for entry in item["results"]]
    return {**item, "shown": METHOD_NAMES[item["method"]], "results": results}


def whole_metric(found: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    """What was found of `metric` of the whole network on the compared probe; None where it was not filed."""
    return next(
        (
            item
            for item in found["metrics"]
            if (item["metric"], item["probe"], item["layer"], item["part"]) == (metric, found["probe"], "", "")
        ),
        None,
    )


def key_numbers(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The few numbers at the top of the page."""
    numbers = []
    accuracy = whole_metric(found, "accuracy")
    if accuracy is not None:
        for side, group in zip("ab", found["groups"], strict=True):
            numbers.append((f"accuracy, {group['label']}", f"{accuracy[side]['mean']:.4f}"))
    samples = found["samples"]
    if not samples["reason"]:
        numbers.append(("same answer", f"{samples['agreement'] * 100:.1f} %"))
    if found["replicated"]:
        findings = sum(bool(item["differs"]) for item in found["metrics"])
        numbers.append(("metrics that differ", f"{findings} of {found['family']}"))
    return numbers


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What came out, in words."""
    a, b = (group["label"] for group in found["groups"])
    told = []
    for metric in ("accuracy", "loss"):
        item = whole_metric(found, metric)
        if item is not None:
            told.append(_difference(item, a, b, found))
    samples = found["samples"]
    if not samples["reason"]:
        told.append(_by_sample(samples, a, b, found))
        apart = samples["disagreement"]
        within = [value for value in (apart["within_a"], apart["within_b"]) if value is not None]
        if within:
            told.append(
                f"A run of {a} and one of {b} answer {apart['between'] * 100:.1f} % of the samples differently; runs of one "
                f"side differ on {' and '.join(f'{value * 100:.1f} %' for value in within)}, by their seeds alone."
            )
    return told


def _difference(item: Mapping[str, Any], a: str, b: str, found: Mapping[str, Any]) -> str:
    gap = item["difference"]
    if not gap["value"]:
        return f"{item['metric'].capitalize()}: both sides have the mean {plain_number(item['a']['mean'])}."
    higher, lower = (a, b) if gap["value"] > 0 else (b, a)
    text = f"{item['metric'].capitalize()} is higher for {higher} than for {lower}, by {plain_number(abs(gap['value']))}"
    if gap["low"] is not None:
        low, high = (gap["low"], gap["high"]) if gap["value"] > 0 else (-gap["high"], -gap["low"])
        text += (
            f" ({found['confidence'] * 100:g} % interval over runs {plain_number(low)} to {plain_number(high)})"
        )
    if item["differs"] is None:
        return f"{text}; this is not tested: {item['reason']}" if item["reason"] else f"{text}."
    verdict = "more than chance explains" if item["differs"] else "which chance may explain"
    return f"{text}, {verdict}: corrected p = {plain_number(item['adjusted_p'])}, one of {counted(found['family'], 'test')}."


def _by_sample(samples: Mapping[str, Any], a: str, b: str, found: Mapping[str, Any]) -> str:
    gap, test = samples["accuracy"]["difference"], samples["accuracy"]["mcnemar"]
    text = (
        f"Of {samples['n']:,} samples only {a} is right on {samples['only_a_right']:,}, only {b} on "
        f"{samples['only_b_right']:,}: a difference of {gap['value']:+.4f} ({found['confidence'] * 100:g} % interval over "
        f"samples {gap['low']:+.4f} to {gap['high']:+.4f}"
    )
    if test["p"] is None:
        return f"{text}). {test['reason'].capitalize()}"
    return f"{text}; McNemar p = {plain_number(test['p'])}), for these very networks."


def notes(found: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before believing anything."""
    told = []
    if not found["replicated"]:
        sizes = " and ".join(
            f"{group['label']} has {counted(len(group['runs']), 'run')}" for group in found["groups"]
        )
        told.append(
            f"{sizes}: there is no replication, so nothing here tells one kind of network from another. The tests over "
            "samples concern these very networks; train each side from several seeds to learn more."
        )
    elif found["test"].endswith("permutation test"):
        smallest = [
            item["permutation"]["smallest"] for item in found["metrics"] if item["permutation"]["smallest"]
        ]
        if smallest and max(smallest) > 1 - found["confidence"]:
            told.append(
                f"With so few runs a permutation test cannot give a p-value below {plain_number(max(smallest))}: no difference, "
                "however large, could be called one."
            )
    if found["samples"]["reason"]:
        told.append(f"Sample by sample: {found['samples']['reason']}")
    told += list(dict.fromkeys(f"Traditional methods: {item['reason']}" for item in methods if item["reason"]))
    return told
