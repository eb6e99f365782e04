"""The commands that only read a store: metrics, history, report, verify."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from stratascope.command_line.printing import error_console, print_json, print_table
from stratascope.errors import ConfigurationError, StoreError, did_you_mean
from stratascope.storage.store import Store


def _open(path: str) -> Store:
    try:
        return Store.open(path)
    except StoreError as error:
        raise ConfigurationError(str(error)) from None


def metrics(path: str, wanted: dict[str, str], step: int | None, form: str) -> None:
    """Print the rows of the ledger that match. Raises ConfigurationError where nothing does."""
    if form not in ("table", "csv", "json", "parquet"):
        raise ConfigurationError(f"--format {form!r}: there are table, csv, json and parquet.")
    rows = _open(path).rows()
    for column, pattern in wanted.items():
        if pattern == "*":
            continue
        known = sorted(set(rows[column]))
        rows = rows[[fnmatchcase(str(item), pattern) for item in rows[column]]]
        if rows.empty:
            raise ConfigurationError(f"no finding has {column} {pattern!r}." + did_you_mean(pattern, known))
    if step is not None:
        rows = rows[rows["step"] == step]
    if form == "csv":
        rows.to_csv(sys.stdout, index=False)
    elif form == "json":
        print(rows.to_json(orient="records", indent=1))
    elif form == "parquet":
        rows.to_parquet(sys.stdout.buffer, index=False)
    else:
        shown = ("run", "step", "probe", "layer", "part", "metric", "value", "unit", "status")
        cells = [[f"{item:.6g}" if isinstance(item, float) else item for item in row] for row in rows[list(shown)].itertuples(index=False)]  # fmt: skip
        print_table("", shown, cells)


def history(path: str, as_json: bool) -> None:
    """Past audits, oldest first."""
    from stratascope.storage.audits import read_audits

    records = read_audits(_open(path))
    entries: list[dict[str, Any]] = [
        {
            "finished": record["finished"],
            "verdict": record["verdict"],
            "units": record["units"],
            "new": [f"{item['run']} step {item['step']}" for item in record["checkpoints"] if item["status"] == "computed"],
            "raised": sorted({item["name"] for item in record["checks"]}),
        }
        for record in records
    ]  # fmt: skip
    if as_json:
        print_json({"schema": 1, "audits": entries})
        return
    rows = [
        (
            item["finished"],
            item["verdict"],
            len(item["new"]),
            item["units"]["computed"],
            item["units"]["failed"],
            ", ".join(item["raised"]),
        )
        for item in entries
    ]
    print_table("", ("finished", "verdict", "new checkpoints", "units computed", "failed", "checks raised"), rows)


def report(path: str, zip_file: Path | None) -> int:
    """Draw every page again; options of the analyses come from the record of the latest audit."""
    from stratascope.storage.audits import read_audits
    from stratascope.tasks.analysis import named
    from stratascope.tasks.report import build
    from stratascope.tasks.report.drawing import report_unit

    store = _open(path)
    audits = read_audits(store)
    if not audits:
        raise ConfigurationError(f"{path} has not been audited yet: there is nothing to draw.")
    analyses = audits[-1]["analyses"]
    runs = sorted({unit.run for unit in store.manifests() if unit.analysis == "capture"})
    place = store.location
    with store.claim(report_unit()):
        for name, options in analyses.items():
            for run in [""] if named(name).scope == "cohort" else runs:
                build.draw_analysis(place, run, name, options)
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
