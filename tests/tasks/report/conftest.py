"""Stores to report on, made up in little; and how to read the pages that come of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from stratascope.storage.audits import write_audit
from stratascope.storage.ledger import Row
from stratascope.storage.manifests import Manifest, write_manifest
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report import build
from stratascope.tasks.report.drawing import write_figures
from stratascope.tasks.report.style import lines

WORDS = {
    name: f"The {name} of it."
    for name in ("shows", "reading", "caution", "audience", "practitioner", "researcher")
}


class MadeUpStore:
    """A store with the manifests, findings, figures and history that a test wants."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path, create=True)
        self.report = self.store.path / "report"
        self.checkpoints: list[dict[str, Any]] = []

    def captured(self, run: str, steps: Sequence[int], layers: Sequence[str] = ("conv",), probe: str = "test"):
        """Checkpoints of `run` whose `layers` were captured."""
        facts = {name: {"type": "Conv2d", "shape": [8, 4, 4]} for name in layers}
        summary = {probe: {"layers": [*layers, "@output"], "facts": facts, "aliases": {}}}
        for step in steps:
            unit = Unit("checkpoint", run, step, "capture")
            kept = summary if step == max(steps) else {}
            write_manifest(self.store.path, Manifest(unit, "x", {}, {}, kept))
            self.file(run, step, f"runs/{run}/step-{step}.safetensors")

    def file(self, run: str, step: int | None, file: str, status: str = "computed", reason: str = "") -> None:
        self.checkpoints.append({"run": run, "step": step, "file": file, "status": status, "reason": reason})

    def filed(self, run: str, analysis: str, rows: Sequence[Row]) -> None:
        """Findings of an analysis of a run, over all its steps."""
        with self.store.stage(Unit("series", run, -1, analysis), "x", {}) as staged:
            staged.write_rows(list(rows))
            staged.commit()

    def drawn(self, run: str, analysis: str, *figures: dict[str, Any], **shared: Any) -> None:
        """All figures of that analysis and run: one, or one for each of `figures`."""
        given: dict[str, Any] = {**WORDS, "key": "k", "title": "A title", "run": run, **shared}
        if not {"svg", "frames", "plotly"} & set(shared):
            given["svg"] = lines({"a": ([0, 1], [0.1, 0.2])}, "fraction")
        write_figures(self.report, analysis, run, [Figure(**{**given, **one}) for one in figures or ({},)])

    def audited(self, verdict: str = "pass", **record: Any) -> None:
        """One more audit in the history, over the files so far."""
        empty: dict[str, Any] = {"checks": [], "conditions": [], "failures": [], "analyses": {}, "title": "Audit"}
        write_audit(self.store, {**empty, "verdict": verdict, "checkpoints": self.checkpoints, **record})

    def written(self) -> dict[str, str]:
        """Draw the overview, write all pages, and return their texts by path."""
        build.draw_overview(str(self.store.path))
        return self.rewritten()

    def rewritten(self) -> dict[str, str]:
        """Write all pages from what is drawn, and return their texts by path."""
        pages = build.plan_pages(str(self.store.path))
        for page in pages:
            build.write_page(str(self.store.path), page)
        build.finish_report(str(self.store.path), pages, "identity")
        return {page: (self.report / page).read_text() for page in pages}

    @staticmethod
    def accuracy_rows(
        steps: Sequence[int], probe: str = "test", start: float = 0.1, end: float = 0.9
    ) -> list[Row]:
        """Accuracy and loss that move evenly from `start` to `end`."""
        rows = []
        for place, step in enumerate(steps):
            value = start + (end - start) * place / max(1, len(steps) - 1)
            shared: dict[str, Any] = {"probe": probe, "step": step, "n": 500}
            rows.append(Row("accuracy", value, low=value - 0.02, high=value + 0.02, unit="fraction", **shared))
            rows.append(Row("loss", 2.5 - 2 * value, unit="nat", **shared))
        return rows

    @staticmethod
    def raised(name: str, run: str = "a", step: int = 1, layer: str = "", **more: Any) -> dict[str, Any]:
        """A finding of a check, as the audit's record keeps it."""
        blank = {"metric": "loss", "outcome": "fail", "value": 1.0, "bound": "<= 0", "reason": "1 is above 0"}
        return {**blank, "probe": "", "part": "", "name": name, "run": run, "step": step, "layer": layer, **more}


VOID = {"meta", "link", "input", "br", "img", "hr"}
EMPTY_SVG = {"path", "use", "polyline", "image", "rect"}


class Page(HTMLParser):
    """Elements as (tag, attributes, text), in order; complaints about what is not sound."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.complaints: list[str] = []
        self._open: list[tuple[str, int]] = []
        self.feed(text)
        self.close()
        self.complaints += [f"<{tag}> is never closed" for tag, _ in self._open]

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        if len(set(names)) < len(names):
            self.complaints.append(f"<{tag}> has an attribute twice")
        self.elements.append((tag, {name: value or "" for name, value in attributes}, []))
        if tag not in VOID:
            self._open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if not self._open or self._open[-1][0] != tag:
            self.complaints.append(f"</{tag}> closes {self._open[-1:] or 'nothing'}")
        else:
            self._open.pop()

    def handle_data(self, data):
        for _, number in self._open:
            self.elements[number][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str], str]]:
        """Attributes and text of every `tag` with these attributes (`class_` for a class among others)."""
        wanted_class = attributes.pop("class_", None)
        return [
            (given, "".join(texts))
            for name, given, texts in self.elements
            if name == tag
            and all(given.get(key.replace("_", "-")) == value for key, value in attributes.items())
            and (wanted_class is None or wanted_class in given.get("class", "").split())
        ]


def problems_of(text: str, place: Path) -> list[str]:
    """What is wrong with the page `text` at `place`: tags, ids, links to nothing, addresses outside, names missing."""
    page = Page(text)
    found = list(page.complaints)
    ids = [given["id"] for _, given, _ in page.elements if "id" in given]
    found += [f"the id {name!r} stands twice" for name in set(ids) if ids.count(name) > 1]
    for tag, given, texts in page.elements:
        found += [f"<{tag}> has {name}" for name in given if name.startswith("on")]
        for name in ("href", "src"):
            if name in given:
                found += _problems_of_address(tag, given[name], place, ids)
        named = given.get("aria-label") or "".join(texts).strip()
        if tag in ("a", "button", "h1", "h2", "h3", "th", "option") and not named:
            found.append(f"<{tag}> has no name")
        labelled = "aria-label" in given or "aria-labelledby" in given
        if given.get("role") in ("img", "region", "group") and not labelled:
            found.append(f"<{tag} role={given['role']}> has no name")
    labels = sum(1 for tag, _, _ in page.elements if tag == "label")
    inputs = [given for tag, given, _ in page.elements if tag == "input"]
    if len([given for given in inputs if "aria-label" not in given]) > labels:
        found.append("an input has no label")
    for tag in ("main", "header", "nav", "footer", "h1", "title"):
        if sum(1 for name, _, _ in page.elements if name == tag) != 1:
            found.append(f"there is not exactly one <{tag}>")
    return found


def _problems_of_address(tag: str, address: str, place: Path, ids: list[str]) -> list[str]:
    parts = urlsplit(address)
    if address == "data:," or (tag == "image" and address.startswith("data:image/png;base64,")):
        return []
    if parts.scheme or parts.netloc:
        return [f"<{tag}> leads outside: {address}"]
    if not parts.path:
        return [] if unquote(parts.fragment) in ids else [f"<{tag}> leads to no place: {address}"]
    target = place.parent / unquote(parts.path)
    if not target.is_file():
        return [f"<{tag}> leads to nothing: {address}"]
    if parts.fragment and f'id="{unquote(parts.fragment)}"' not in target.read_text():
        return [f"<{tag}> leads to no place: {address}"]
    return []


def addresses_outside(text: str) -> set[str]:
    """Addresses with a scheme in a text that we wrote, but for the names of XML dialects."""
    return {item for item in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<>)]*", text) if "w3.org" not in item}


@pytest.fixture
def made_up(tmp_path: Path) -> MadeUpStore:
    return MadeUpStore(tmp_path / "store")


@pytest.fixture(scope="session")
def reading() -> SimpleNamespace:
    """How to read a page: `Page`, `problems_of`, `addresses_outside`."""
    return SimpleNamespace(Page=Page, problems_of=problems_of, addresses_outside=addresses_outside)
