"""The command that compares two groups of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stratascope.command_line.printing import error_console, print_json, print_table, progress_bar

_MOST_ROWS = 30


def compare(config: Path, overrides: list[str], as_json: bool) -> int:
    """Compare as `config` says and show what came out; 3 where something could not be computed, else 0.

    Prefect, Dask and torch are started only where something is not stored yet.
    """
    from stratascope.flows.compare_plan import comparison_without_work

    config = config.absolute()
    found = comparison_without_work(config, overrides)
    if found is None:
        from stratascope.flows.server import prefect_server

        error_console().print("[dim]starting workers …[/dim]")
        with prefect_server(), progress_bar() as show:
            from stratascope.flows.compare import compare_from_file
            from stratascope.flows.progress import listen

            listen(show)
            found = compare_from_file(str(config), overrides)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return 3 if found["failures"] or found["audit"]["failures"] or found["audit"]["units"]["failed"] else 0


def _show(found: Mapping[str, Any]) -> None:
    """The outcome for people: sentences and tables."""
    from stratascope.tasks.comparison.page import METHOD_NAMES, notes, sentences

    console = error_console()
    for reason in (*found["audit"]["failures"], *found["failures"]):
        console.print(f"  failed: {reason}", markup=False)
    if "metrics" not in found:
        return
    for text in sentences(found):
        print(text)
    for text in notes(found, found["traditional"]):
        print(f"note: {text}")
    a, b = (group["label"] for group in found["groups"])
    rows = [
        (
            " ".join(text for text in (item["metric"], item["layer"], item["part"], item["probe"]) if text),
            _side(item["a"]), _side(item["b"]), _interval(item["difference"]), _interval(item["effect"]),
            _number(item["p"]), _number(item["adjusted_p"]), {True: "differs", False: "", None: "not tested"}[item["differs"]],
        )
        for item in found["metrics"][:_MOST_ROWS]
    ]  # fmt: skip
    print_table("", ("metric", a, b, "difference", "Hedges’ g", "p", "corrected", ""), rows)
    if len(found["metrics"]) > _MOST_ROWS:
        print(f"and {len(found['metrics']) - _MOST_ROWS} more on the page")
    results = [item for method in found["traditional"] for item in method["results"] if not item["reason"]]
    if results:
        listed = [
            (METHOD_NAMES[item["method"]], item["features"], item["run"], f"{item['accuracy']:.4f}", f"{item['low']:.4f} to {item['high']:.4f}")
            for item in results
        ]  # fmt: skip
        print_table("", ("method", "learned on", "run", "accuracy", "interval"), listed)
    print(f"page: {found['page']}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _side(side: Mapping[str, Any]) -> str:
    spread = "" if side["std"] is None else f" ± {side['std']:.2g}"
    return f"{_number(side['mean'])}{spread} ({side['n']})"


def _interval(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None:
        return _number(estimate["value"])
    return f"{_number(estimate['value'])} [{_number(estimate['low'])}, {_number(estimate['high'])}]"
