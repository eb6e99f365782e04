"""The commands that need a store and nothing else: metrics, history, report, prune, verify."""

from __future__ import annotations

import sys
from pathlib import Path

from stratascope.command_line.printing import error_console, human_bytes, human_seconds, print_json, print_table
from stratascope.errors import ConfigurationError, StoreError
from stratascope.storage.store import Store


def _open(path: str) -> Store:
    try:
        return Store.open(path)
    except StoreError as error:
        raise ConfigurationError(str(error)) from None


MOST_TABLE_ROWS = 1_000
"""A table for people has at most so many rows; the other forms have all of them."""
_SHOWN = ("run", "step", "probe", "layer", "part", "metric", "value", "unit", "status")


def metrics(path: str, wanted: dict[str, str], step: int | None, form: str) -> None:
    """Print the rows of the ledger that match. Raises ConfigurationError where nothing does."""
    from stratascope.storage.ledger_query import select

    if form not in ("table", "csv", "json", "parquet"):
        raise ConfigurationError(f"--format {form!r}: there are table, csv, json and parquet.")
    found = select(_open(path), wanted, step)
    if form == "csv":
        found.write_csv(sys.stdout.buffer)
    elif form == "json":
        found.write_json(sys.stdout)
    elif form == "parquet":
        found.write_parquet(sys.stdout.buffer)
    else:
        records = found.records(_SHOWN, MOST_TABLE_ROWS)
        cells = [
            ["–" if item is None else f"{item:.6g}" if isinstance(item, float) else item for item in row.values()]
            for row in records
        ]
        print_table("", _SHOWN, cells)
        if len(found) > MOST_TABLE_ROWS:
            error_console().print(
                f"{len(found) - MOST_TABLE_ROWS:,} more rows match: narrow it down, or take --format csv."
            )


def history(path: str, last: int | None, as_json: bool) -> None:
    """Past audits, oldest first: when, how long, what was new, what changed, the verdict."""
    from stratascope.storage.history import read_history
    from stratascope.tasks.report.past_audits import folded

    entries = read_history(_open(path), last)
    if as_json:
        print_json({"schema": 1, "audits": entries})
        return
    rows = [
        (
            f"{row['first']} – {row['last']}" if row["count"] > 1 else row["last"],
            f"{row['count']} audits" if row["count"] > 1 else human_seconds(row["seconds"]),
            row["new"] or "",
            " ".join(row["sentences"]),
            row["verdict"],
        )
        for row in folded(entries)
    ]
    print_table("", ("audited (UTC)", "took", "new", "what changed", "verdict"), rows)


def report(path: str, zip_file: Path | None) -> int:
    """Draw every page again; options of the analyses come from the record of the latest audit."""
    from stratascope.storage.audits import read_audits
    from stratascope.tasks.analysis import named
    from stratascope.tasks.comparison.drawing import redraw_comparisons
    from stratascope.tasks.report import build
    from stratascope.tasks.report.drawing import report_unit

    store = _open(path)
    audits = read_audits(store, last=1)
    if not audits:
        raise ConfigurationError(f"{path} has not been audited yet: there is nothing to draw.")
    analyses = audits[-1]["analyses"]
    runs = sorted({unit.run for unit in store.units() if unit.analysis == "capture"})
    place = store.location
    with store.claim(report_unit()):
        for name, options in analyses.items():
            for run in [""] if named(name).scope == "cohort" else runs:
                build.draw_analysis(place, run, name, options, bool(audits[-1].get("show_inputs")))
        redraw_comparisons(place)
        build.draw_overview(place)
        pages = build.plan_pages(place)
        for page in pages:
            build.write_page(place, page)
        known = store.manifest(report_unit())
        build.finish_report(place, pages, known.identity if known is not None else "")
    error_console().print(f"{len(pages)} pages")
    print(f"report: {store.location}/report/index.html")
    if zip_file is not None:
        print(f"zip: {build.zip_report(place, zip_file.absolute())}")
    return 0


def prune(path: str, keep: list[str], dry_run: bool, as_json: bool) -> None:
    """Free what no rule keeps, and tell how much that was."""
    from dataclasses import asdict

    from stratascope.storage.pruning import parse_rule
    from stratascope.storage.pruning import prune as prune_store

    rules = [parse_rule(text) for text in keep]
    done = prune_store(_open(path), rules, dry_run)
    if as_json:
        print_json({"schema": 1, "dry_run": dry_run, **asdict(done)})
        return
    for run, steps in done.steps.items():
        print(f"{run}: {len(steps)} checkpoint(s), {len(done.kept[run])} kept whole")
    verb = "would be freed" if dry_run else "freed"
    print(f"{human_bytes(done.bytes)} in {done.files} file(s) {verb}; ledger and history stay")


def verify(path: str, as_json: bool) -> int:
    """List all damage; 1 where there is any."""
    from stratascope.storage.verification import verify as find_damage

    damage = find_damage(_open(path))
    if as_json:
        print_json({"schema": 1, "damage": [{"path": item.path, "reason": item.reason} for item in damage]})
    else:
        for item in damage:
            print(f"{item.path}: {item.reason}")
        print(f"{len(damage)} damaged file(s)" if damage else "everything is as it was written")
    return 1 if damage else 0
