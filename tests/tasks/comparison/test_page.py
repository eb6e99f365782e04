"""The page of a comparison: complete, linked, kept by others, and silent about inputs where it must be."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from stratascope.storage.digests import sealed, unsealed
from stratascope.storage.manifests import Manifest, write_manifest
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.comparison.drawing import draw_comparison, redraw_comparisons
from stratascope.tasks.report import build
from stratascope.tasks.report.drawing import read_figures


def written(store: Path, show_inputs: bool = True) -> str:
    """Draw and write what a comparison's flow does; returns the page's text."""
    place = str(store)
    draw_comparison(place, "width", show_inputs)
    return rewritten(store)


def rewritten(store: Path) -> str:
    """Write all pages as a later audit does, with its sweep of what it does not know; returns the page's text."""
    pages = build.plan_pages(str(store))
    build.write_pages(str(store), pages)
    build.finish_report(str(store), pages, "identity")
    return (store / "report" / "comparisons" / "width.html").read_text()


@pytest.fixture
def store(compared: Path, tmp_path: Path) -> Path:
    shutil.copytree(compared / "store", tmp_path / "store")
    return tmp_path / "store"


def test_the_page_has_every_figure_with_its_texts_and_every_metric(store):
    text = written(store)
    keys = {item["key"]: item for item in read_figures(store / "report", "comparison:width")}
    assert {"effects", "trend-accuracy", "trend-loss", "shown-only_a", "traditional"} <= set(keys)
    for item in keys.values():
        for name in ("shows", "reading", "caution", "audience", "practitioner", "researcher"):
            assert item[name], item["key"]
            assert not re.search(r"\bnan\b|None", item[name]), item[name]
        assert item["csv"]
    summary = Store.open(store).manifest(Unit("cohort", "", -1, "comparison:width")).summary
    for item in summary["metrics"]:
        assert f"<code>{item['metric']}</code>" in text
    assert text.count("<figure") == len(keys)
    for method in ("logistic regression", "RBF support vector machine", "random forest", "k nearest neighbours"):
        assert method in text


def test_the_mosaic_shows_each_sample_and_only_where_inputs_may_be_shown(store):
    written(store)
    folder = store / "report" / ".figures"
    pictures = list(folder.rglob("*shown-*.svg"))
    shown = Store.open(store).array("cohort/comparison:width/shown/only_a")
    (only_a,) = [path for path in pictures if "only_a" in path.name]
    assert only_a.read_text().count("<image") == len(shown)
    written(store, show_inputs=False)
    hidden = [path.read_text() for path in folder.rglob("*shown-*.svg")]
    assert hidden
    assert not any("<image" in text for text in hidden)
    assert "true" not in hidden[0]


def test_later_reports_keep_the_page_and_link_it(store):
    first = written(store)
    assert rewritten(store) == first
    assert 'href="comparisons/width.html"' in (store / "report" / "index.html").read_text()
    manifest = Store.open(store).manifest(Unit("report", "", -1, "report"))
    assert "report/comparisons/width.html" in manifest.files


def test_a_lost_report_is_drawn_again_from_the_store_alone(store):
    unit = Unit("report", "", -1, "comparison:width")
    write_manifest(store, Manifest(unit, "x", {}, {}, {"show_inputs": False}))
    first = written(store, show_inputs=False)
    shutil.rmtree(store / "report")
    Store.open(store)
    assert redraw_comparisons(str(store)) == 1
    assert rewritten(store) == first
    assert "<image" not in first


def test_names_from_outside_cannot_write_into_the_page(store):
    path = store / "manifests" / "_cohort" / "comparison:width.json"
    content = unsealed(path.read_bytes())
    hostile = "<script>alert(1)</script>"
    content["summary"]["title"] = hostile
    content["summary"]["groups"][0]["label"] = hostile
    content["summary"]["metrics"][0]["layer"] = f"{hostile}\u202e"
    path.write_bytes(sealed(content))
    text = written(store)
    assert hostile not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "\u202e" not in text
