"""A comparison in a store behind a URL says what it says in a folder, and is not computed twice."""

from __future__ import annotations

from pathlib import Path

import yaml

from stratascope.flows.compare_plan import make_comparison_plan
from stratascope.storage.manifests import Manifest
from stratascope.storage.store import Store
from stratascope.tasks.comparison.drawing import draw_comparison
from stratascope.tasks.comparison.page import drawn_unit, summaries
from stratascope.tasks.report import build
from tests.tasks.comparison.conftest import audit_here, compare_here, write_configuration, write_runs


def compared(folder: Path, config: Path) -> Store:
    """Audit, compare and draw in this process."""
    store = audit_here(folder)
    assert [item.reason for item in compare_here(config)] == ["", ""]
    place = store.location
    assert draw_comparison(place, "width", False) > 0
    pages = build.plan_pages(place)
    build.write_pages(place, pages)
    build.finish_report(place, pages, "")
    return store


def test_a_comparison_behind_a_url_is_that_of_a_folder(bucket, tmp_path: Path):
    write_runs(tmp_path, "wide", 24, 0, seeds=2)
    write_runs(tmp_path, "narrow", 4, 0, seeds=2)
    config = write_configuration(tmp_path, traditional={"methods": ["k_nearest_neighbors"], "folds": 0})
    near = compared(tmp_path, config)
    audit = yaml.safe_load((tmp_path / "audit.yaml").read_text())
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(audit | {"store": f"{bucket.url}/store"}))
    far = compared(tmp_path, config)
    assert far.location == f"{bucket.url}/store"
    assert summaries(far, "width") == summaries(near, "width")
    assert far.rows().equals(near.rows())
    page = "report/comparisons/width.html"
    assert far.read_bytes(page) == near.read_bytes(page)
    plan = make_comparison_plan(config, [])
    assert plan.outstanding() == []
    assert not plan.is_up_to_date(), "what was drawn has not been noted"
    far.write_manifest(Manifest(drawn_unit("width"), plan.drawn_identity, {}, {}, {}))
    assert plan.is_up_to_date()
    far.delete_files([page])
    assert not plan.is_up_to_date(), "its page is gone"
