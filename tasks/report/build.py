"""The report: static pages from archive, ledger and history alone; no server, no network."""

from __future__ import annotations

import math
import shutil
import zipfile
from functools import lru_cache
from importlib import resources
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import stratascope
from stratascope.errors import StoreError
from stratascope.storage.digests import file_checksum
from stratascope.storage.manifests import Manifest, write_atomically, write_manifest
from stratascope.storage.names import encode_path_part
from stratascope.storage.store import Store
from stratascope.tasks.report.content import VERDICTS, Content
from stratascope.tasks.report.drawing import FIGURES, draw_analysis, report_unit, write_figures

__all__ = ["draw_analysis", "draw_overview", "finish_report", "plan_pages", "write_page", "zip_report"]

_KINDS = {"runs": "Runs", "analyses": "Analyses", "layers": "Layers", "checks": "Checks"}


def draw_overview(store_path: str) -> int:
    """Draw what compares all runs; returns how many figures there are."""
    from stratascope.tasks.report.trends import trend_figures

    store = Store.open(store_path)
    figures = trend_figures(store.rows())
    write_figures(store.path / "report", "overview", "", figures)
    return len(figures)


def plan_pages(store_path: str) -> list[str]:
    """The paths of all pages below the report's folder."""
    pages = _page_names(Content(Store.open(store_path)))
    return ["index.html"] + [page for links in pages.values() for _, page in links]


def _page_names(content: Content) -> dict[str, list[tuple[str, str]]]:
    """(name, page) for every kind of page."""
    names = {
        "runs": content.runs,
        "analyses": list(content.analyses),
        "layers": content.layers,
        "checks": [item["name"] for item in content.checks],
    }
    return {
        kind: [(name, f"{kind}/{encode_path_part(name)}.html") for name in dict.fromkeys(listed)]
        for kind, listed in names.items()
    }


def write_page(store_path: str, page: str) -> int:
    """Write one page; returns its size in bytes. Raises StoreError for a page that there is not."""
    store = Store.open(store_path)
    content = Content(store)
    pages = _page_names(content)
    links = {kind: {name: quote(target) for name, target in listed} for kind, listed in pages.items()}
    owner = {target: (kind, name) for kind, listed in pages.items() for name, target in listed}
    if page == "index.html":
        template, variables = "overview.html", _overview(content)
    elif page in owner:
        kind, name = owner[page]
        template, variables = f"{kind.removesuffix('s')}.html", _VARIABLES[kind](content, name)
        template = template.replace("analyse.html", "analysis.html")
    else:
        raise StoreError(f"the report has no page {page!r}.")
    shown = [item for key in ("trends", "headlines", "figures") for item in variables.get(key, ())]
    titles = {name: analysis.title for name, analysis in content.analyses.items()}
    navigation = [
        (label, [(titles.get(name, name) if kind == "analyses" else name, quote(target), target) for name, target in pages[kind]])
        for kind, label in _KINDS.items()
    ]  # fmt: skip
    text = (
        _environment()
        .get_template(template)
        .render(
            **variables,
            title=content.audit.get("title", "Stratascope audit"),
            finished=content.audit.get("finished", ""),
            version=stratascope.__version__,
            page=page,
            up="../" if "/" in page else "",
            links=links,
            navigation=navigation,
            scripts=list(dict.fromkeys(item["script"] for item in shown if "script" in item)),
            needs_plotly=any(item["plotly"] for item in shown),
        )
    )
    write_atomically(store.path / "report" / page, text.encode())
    return len(text)


def _overview(content: Content) -> dict[str, Any]:
    verdict = content.audit.get("verdict", "error")
    sign, sentence = VERDICTS[verdict]
    figures = content.figures
    return {
        "heading": "Overview",
        "verdict": verdict,
        "sign": sign,
        "sentence": sentence,
        "key_numbers": content.key_numbers(),
        "changes": content.changes(),
        "problems": _worst_first(content.audit.get("checks", ())),
        "condition_count": len(content.checks),
        "trends": [item for item in figures if item["analysis"] == "overview"],
        "headlines": [item for item in figures if item["headline"]][:12],
        "table": content.checkpoint_table(),
    }


def _worst_first(checks: Any) -> list[dict[str, Any]]:
    order = ["error", "fail", "warn", "info", "pass"]
    return sorted(checks, key=lambda item: (order.index(item["outcome"]), item["run"], -item["step"]))


def _run(content: Content, name: str) -> dict[str, Any]:
    steps = sorted(unit.step for unit in content.captures if unit.run == name)
    here = [item for item in content.figures if item["run"] == name]
    drawn = {item["analysis"] for item in here}
    checks = [item for item in content.audit.get("checks", ()) if item["run"] == name]
    return {
        "heading": f"Run {name}",
        "table": content.checkpoint_table(name),
        "step_count": len(steps),
        "first": steps[0] if steps else None,
        "last": steps[-1] if steps else None,
        "problems": _worst_first(checks),
        "headlines": [item for item in here if item["headline"]],
        "analyses": [
            (key, analysis.title, analysis.question, f"analyses/{encode_path_part(key)}.html")
            for key, analysis in content.analyses.items()
            if key in drawn
        ],
    }


def _layer(content: Content, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for unit in sorted(content.captures, key=lambda unit: unit.step):
        manifest = content.store.manifest(unit)
        for summary in (manifest.summary if manifest else {}).values():
            facts = summary.get("facts", {}).get(name, facts)
    kind = facts.get("type", "layer")
    shape = facts.get("shape") or ()
    described = f"A {kind}" + (f" whose output for one sample is {' × '.join(map(str, shape))}." if shape else ".")
    return {
        "heading": f"Layer {name}",
        "description": described,
        "numbers": content.layer_numbers(name),
        "figures": [item for item in content.figures if item["layer"] == name],
    }


def _analysis(content: Content, name: str) -> dict[str, Any]:
    analysis = content.analyses[name]
    rows = content.rows[content.rows["analysis"] == name]
    missing = rows[rows["status"].isin(["does_not_apply", "failed"])]
    reasons = [
        f"{kind.replace('_', ' ')}: {reason}" for (kind, reason), _ in missing.groupby(["status", "reason"])
    ]
    return {
        "heading": analysis.title,
        "question": analysis.question,
        "reasons": reasons[:10],
        "metrics": analysis.metrics,
        "figures": [item for item in content.figures if item["analysis"] == name],
    }


def _check(content: Content, name: str) -> dict[str, Any]:
    condition = next(item for item in content.checks if item["name"] == name)
    problems = [item for item in content.audit.get("checks", ()) if item["name"] == name]
    return {"heading": f"Check {name}", "condition": condition, "problems": _worst_first(problems)}


_VARIABLES = {"runs": _run, "layers": _layer, "analyses": _analysis, "checks": _check}


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import ChainableUndefined, Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("stratascope.tasks.report"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = _plain
    environment.filters["basename"] = lambda path: PurePath(path).name
    return environment


def _plain(value: float) -> str:
    """A number for people: four significant digits, no exponent where it can be helped."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:.4g}"


def finish_report(store_path: str, pages: list[str], identity: str) -> None:
    """Lay script and style beside the pages, remove pages that are stale, and remember what was drawn."""
    import plotly

    store = Store.open(store_path)
    report = store.path / "report"
    for name in ("report.css", "report.js"):
        source = resources.files("stratascope.tasks.report") / "assets" / name
        write_atomically(report / "assets" / name, source.read_bytes())
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    target = report / "assets" / "plotly.min.js"
    if not target.exists() or target.stat().st_size != script.stat().st_size:
        write_atomically(target, script.read_bytes())
    wanted = {report / page for page in pages}
    for path in report.rglob("*.html"):
        if path not in wanted:
            path.unlink()
    files = {
        f"report/{page}": {"bytes": (report / page).stat().st_size, "xxh3": file_checksum(report / page)}
        for page in pages
        if (report / page).exists()
    }
    write_manifest(store.path, Manifest(report_unit(), identity, {}, files))


def zip_report(store_path: str, target: Path) -> Path:
    """The report as one file that can be sent; returns its path."""
    report = Store.open(store_path).path / "report"
    temporary = target.with_name(f".{target.name}.partial")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(report.rglob("*")):
            if path.is_file() and FIGURES not in path.parts:
                archive.write(path, f"report/{path.relative_to(report).as_posix()}")
    shutil.move(temporary, target)
    return target
