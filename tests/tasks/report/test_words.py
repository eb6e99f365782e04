"""What real audits say: each figure speaks to two readers, for its analysis alone, and of its own data."""

import re
from collections import defaultdict

import pytest

from stratascope.tasks.report.drawing import read_figures

TEXTS = ("shows", "reading", "caution", "audience", "practitioner", "researcher")


@pytest.fixture(scope="session")
def audited_report(demo_store):
    return demo_store / "report"


@pytest.fixture(scope="session")
def figures(audited_report):
    return read_figures(audited_report)


def test_every_analysis_of_the_audit_has_figures(figures):
    wanted = {"overview", "outputs", "statistics", "gradients", "embedding", "intake", "triage"}
    assert {item["analysis"] for item in figures} == wanted


def test_the_two_readers_are_told_different_things(figures):
    for item in figures:
        assert item["practitioner"] != item["researcher"], item["id"]
        assert all(len(item[name]) > 10 for name in TEXTS), item["id"]


def test_no_text_serves_two_analyses(figures):
    users = defaultdict(set)
    for item in figures:
        for name in TEXTS:
            users[item[name]].add(item["analysis"])
    assert {text: names for text, names in users.items() if len(names) > 1} == {}


def test_a_caution_is_computed_from_the_data_of_its_store(figures, audited):
    def cautions(drawn):
        found = defaultdict(set)
        for item in drawn:
            found[item["analysis"]].add(item["caution"])
        return found

    here, there = cautions(figures), cautions(read_figures(audited.store / "report"))
    assert {"outputs", "statistics", "embedding", "triage", "overview"} <= set(here) & set(there)
    assert {name: here[name] & there[name] for name in here if here[name] & there[name]} == {}
    assert [item["id"] for item in figures if not re.search(r"\d", item["caution"])] == []


def test_every_figure_offers_its_numbers(audited_report, figures):
    missing = [item["id"] for item in figures if "csv" not in item and not item["plotly"]]
    assert missing == []
    assert all((audited_report / item["csv"]).stat().st_size > 20 for item in figures if "csv" in item)


def test_the_pages_of_a_real_audit_are_sound_and_small(audited_report, reading):
    report = audited_report
    pages = sorted(report.rglob("*.html"))
    assert {path.parent.name for path in pages} == {"report", "runs", "layers", "analyses", "checks"}
    found = {str(path): reading.problems_of(path.read_text(), path) for path in pages}
    assert {path: problems for path, problems in found.items() if problems} == {}
    assert set().union(*(reading.addresses_outside(path.read_text()) for path in pages)) == set()
    weight = sum(
        path.stat().st_size for path in report.rglob("*") if path.is_file() and path.suffix in (".html", ".js")
    )
    assert weight - (report / "assets" / "plotly.min.js").stat().st_size < 5_000_000
