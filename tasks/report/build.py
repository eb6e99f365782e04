"""The report: static pages from archive, ledger and history alone; no server, no network.

`draw_overview` and `draw_analysis` draw; `plan_pages` reads the store once and lays down what each page says;
`write_page` writes one page from that in milliseconds; `finish_report` adds script and style and sweeps.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stratascope.errors import StoreError
from stratascope.storage.digests import file_checksum
from stratascope.storage.manifests import Manifest, write_atomically
from stratascope.storage.store import Store
from stratascope.tasks.memory import returning_memory
from stratascope.tasks.report.content import Content
from stratascope.tasks.report.drawing import (
    FIGURES,
    draw_analysis,
    drawing_folder,
    read_figures,
    report_unit,
    write_figures,
    write_if_changed,
)
from stratascope.tasks.report.pages import KINDS, all_pages, file_name, near, shared
from stratascope.tasks.report.text import marked, plain_number, plain_step, visible

__all__ = [
    "draw_analysis", "draw_overview", "finish_report", "plan_pages", "write_page", "write_pages", "zip_report",
]  # fmt: skip

CONTENT = ".content"
"""Where `plan_pages` leaves what each page says; not part of the report that a reader needs."""


@returning_memory
def draw_overview(store_path: str) -> int:
    """Draw what compares all runs; returns how many figures there are."""
    from stratascope.tasks.report.trends import TREND_METRICS, trend_figures

    store = Store.open(store_path)
    figures = trend_figures(store.rows(metrics=TREND_METRICS))
    with drawing_folder(store, "overview", "") as report:
        return write_figures(report, "overview", "", figures)


@returning_memory
def plan_pages(store_path: str) -> list[str]:
    """Read the store once, lay down what each page says, and return the pages' paths below the report's folder."""
    store = Store.open(store_path)
    with store.snapshot(), store.report_folder(wants=[FIGURES], replaces=[CONTENT]) as report:
        content = Content(store)
        place = report / CONTENT
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        pages = all_pages(content)
        for page, (template, variables) in pages.items():
            target = place / f"{page}.json"
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps({"template": template, "variables": variables()}))
        (place / "shared.json").write_text(json.dumps({**shared(content), "pages": list(pages)}))
    return list(pages)


@returning_memory
def write_page(store_path: str, page: str) -> int:
    """Write one page that `plan_pages` laid down; returns its size in bytes. Raises StoreError for another page."""
    return write_pages(store_path, [page])


def write_pages(store_path: str, pages: Sequence[str]) -> int:
    """Write `pages`, which `plan_pages` laid down; returns their size in bytes. Raises StoreError for another page."""
    store = Store.open(store_path)
    total = 0
    with store.report_folder(wants=[CONTENT, FIGURES], adds=pages) as report:
        if not (report / CONTENT / "shared.json").exists():
            plan_pages(store_path)
        common = json.loads((report / CONTENT / "shared.json").read_bytes())
        for page in pages:
            if page not in common["pages"]:
                raise StoreError(f"the report has no page {page!r}.")
            text = _rendered(report, page, common).encode("utf-8", "replace")
            write_if_changed(report / page, text)
            total += len(text)
    return total


def _rendered(report: Path, page: str, common: dict[str, Any]) -> str:
    from markupsafe import Markup

    laid_down = json.loads((report / CONTENT / f"{page}.json").read_bytes())
    variables = laid_down["variables"]
    shown = [item for key in ("trends", "headlines", "figures") for item in variables.get(key, ())]
    for item in shown:
        # Matplotlib drew it and `compact` wrote it: every text in it is escaped.
        item["svg"] = Markup((report / item["picture"]).read_text()) if "picture" in item else ""
    navigation = []
    for kind, label in KINDS.items():
        listed = common["navigation"][kind]
        links = [(text, quote(target), target) for text, target in near(listed, page)]
        navigation.append((kind, label, links, len(listed) if len(links) < len(listed) else 0))
    text: str = (
        _environment()
        .get_template(laid_down["template"])
        .render(
            **variables,
            title=common["title"],
            version=common["version"],
            page=page,
            up="../" if "/" in page else "",
            links=common["links"],
            navigation=navigation,
            scripts=list(dict.fromkeys(item["script"] for item in shown if "script" in item)),
            needs_plotly=any(item["plotly"] for item in shown),
            needs_explorer=any(item.get("explorer") for item in shown),
        )
    )
    return text


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import ChainableUndefined, Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("stratascope.tasks.report"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Names from outside could hide or reorder what stands around them; markup is left alone.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"plain": plain_number, "basename": file_name, "step": plain_step, "marked": marked}
    return environment


def finish_report(store_path: str, pages: list[str], identity: str) -> None:
    """Lay script and style beside the pages, remove what is stale, and remember what was drawn."""
    store = Store.open(store_path)
    with store.report_folder(wants=[""], replaces=[""]) as report:
        files = _finish(report, pages)
    store.write_manifest(Manifest(report_unit(), identity, {}, files))


def _finish(report: Path, pages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `finish_report` does in the report's folder; returns bytes and checksum of each file that a reader needs."""
    import plotly

    for name in ("report.css", "report.js", "explorer.js"):
        source = resources.files("stratascope.tasks.report") / "assets" / name
        write_if_changed(report / "assets" / name, source.read_bytes())
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    target = report / "assets" / "plotly.min.js"
    if not target.exists() or target.stat().st_size != script.stat().st_size:
        write_atomically(target, script.read_bytes())
    wanted = {*pages, *_data_files(report), "assets/report.css", "assets/report.js"}
    wanted |= {"assets/explorer.js", "assets/plotly.min.js"}
    files = {}
    for path in _report_files(report):
        name = path.relative_to(report).as_posix()
        if name in wanted:
            files[f"report/{name}"] = {"bytes": path.stat().st_size, "xxh3": file_checksum(path)}
        elif path.suffix == ".html" or name.startswith("data/"):
            path.unlink()
    return files


def _report_files(report: Path) -> list[Path]:
    hidden = {FIGURES, CONTENT}
    return [
        path
        for path in sorted(report.rglob("*"))
        if path.is_file() and not hidden & set(path.relative_to(report).parts)
    ]


def _data_files(report: Path) -> set[str]:
    from urllib.parse import unquote

    return {
        unquote(item[key])
        for item in read_figures(report)
        for key in ("script", "csv", "animation")
        if key in item
    }


def zip_report(store_path: str, target: Path) -> Path:
    """The report as one file that can be sent; returns its path."""
    temporary = target.with_name(f".{target.name}.partial")
    with (
        Store.open(store_path).report_folder(wants=[""]) as report,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for path in _report_files(report):
            archive.write(path, f"report/{path.relative_to(report).as_posix()}")
    shutil.move(temporary, target)
    return target
