"""What an audit came to, for systems that run jobs: JUnit XML and Markdown. Text in, text out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from stratascope.tasks.checks.evaluate import ORDER
from stratascope.tasks.report.text import counted, plain_number, visible

_MOST_LINES = 20
"""So many findings of one check are listed; the report has all."""
_MOST_ROWS = 50
_SIGNS = {"pass": "✓", "info": "ℹ", "warn": "⚠", "fail": "✕", "error": "?"}


@dataclass(frozen=True)
class AuditSummary:
    """What both formats tell of an audit; the entries are those of the audit's record."""

    title: str
    verdict: str
    report: str
    conditions: Sequence[Mapping[str, Any]]
    raised: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[Mapping[str, Any]]
    failures: Sequence[str]
    newly_quarantined: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class _Case:
    """One line of a job's result: `kind` is ``passed``, ``skipped``, ``failure`` or ``error``."""

    group: str
    place: str
    name: str
    kind: str
    message: str = ""
    text: str = ""


def junit(audit: AuditSummary) -> str:
    """JUnit XML in the form that Jenkins and GitLab read: a test suite for each suite, a test case for each check and run.

    An outcome `fail` is a failure and `error` an error; `warn` and `info` pass with their text as output. A condition
    that found nothing to judge is skipped. Files that could not be read and work that failed are cases too.
    """
    cases = [*_check_cases(audit), *_work_cases(audit)]
    root = ElementTree.Element(
        "testsuites", {"name": _clean(audit.title), "time": f"{audit.seconds:.3f}"} | _sums(cases)
    )
    for group in dict.fromkeys(case.group for case in cases):
        mine = [case for case in cases if case.group == group]
        suite = ElementTree.SubElement(root, "testsuite", {"name": _clean(group), "time": "0"} | _sums(mine))
        for case in mine:
            _add(suite, case)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _sums(cases: Sequence[_Case]) -> dict[str, str]:
    kinds = [case.kind for case in cases]
    counts = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    return {"tests": str(len(cases)), **{name: str(kinds.count(kind)) for name, kind in counts.items()}}


def _add(suite: ElementTree.Element, case: _Case) -> None:
    entry = ElementTree.SubElement(
        suite, "testcase", classname=_clean(case.place), name=_clean(case.name), time="0"
    )
    if case.kind == "passed":
        if case.text:
            ElementTree.SubElement(entry, "system-out").text = _clean(case.text)
        return
    kind = {} if case.kind == "skipped" else {"type": case.kind}
    ElementTree.SubElement(entry, case.kind, {"message": _clean(case.message)} | kind).text = _clean(case.text)


def _clean(text: str) -> str:
    """`text` with whatever XML 1.0 cannot hold, or a reader cannot see, written as an escape."""
    return re.sub("[\ufffe\uffff]", lambda found: f"\\u{ord(found.group()):04x}", visible(text))


def _check_cases(audit: AuditSummary) -> Iterable[_Case]:
    lines: dict[tuple[str, str], list[str]] = {}
    for item in audit.raised:
        lines.setdefault((item["name"], item["run"]), []).append(_line(item))
    for condition in audit.conditions:
        group = condition["suite"] or "checks"
        wanted = f"{condition['metric']} {condition['bound']}"
        if not condition["by_run"]:
            yield _Case(group, "stratascope", condition["name"], "skipped", "there was no finding to judge")
        for run, counts in condition["by_run"].items():
            place = f"stratascope.{run}" if run else "stratascope"
            worst = max((level for level in counts if level in ORDER), key=ORDER.index, default="")
            said = lines.get((condition["name"], run), [])
            text = "\n".join([f"wanted: {wanted}", *_cut(said, _MOST_LINES)])
            if not worst:
                message = "all findings only serve to be held against"
                yield _Case(group, place, condition["name"], "skipped", message)
                continue
            kind = {"fail": "failure", "error": "error"}.get(worst, "passed")
            message = f"{counted(len(said), 'finding')}, the first: {said[0]}" if said else ""
            yield _Case(group, place, condition["name"], kind, message, text if said else "")


def _line(item: Mapping[str, Any]) -> str:
    where = ", ".join(str(item[key]) for key in ("layer", "probe", "part") if item.get(key))
    step = f"step {item['step']}" if item["step"] >= 0 else ""
    place = " ".join(filter(None, (step, f"({where})" if where else "")))
    return f"{item['outcome']}: {place + ': ' if place else ''}{item['reason']}"


def _cut(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most], f"… and {len(lines) - most} more"]


def _work_cases(audit: AuditSummary) -> Iterable[_Case]:
    for item in audit.checkpoints:
        place = f"stratascope.{item['run']}"
        if item["status"] == "quarantined":
            kind = "error" if audit.newly_quarantined else "skipped"
            yield _Case("checkpoints", place, str(item["file"]), kind, f"quarantined: {item['reason']}")
        elif item["status"] in ("computed", "cached"):
            yield _Case("checkpoints", place, str(item["file"]), "passed")
        else:
            yield _Case(
                "checkpoints", place, str(item["file"]), "skipped", f"{item['status']} {item['reason']}".strip()
            )
    for number, reason in enumerate(audit.failures):
        yield _Case("work", "stratascope", f"unit {number + 1}", "error", reason)


def markdown(audit: AuditSummary) -> str:
    """The verdict, what was raised and what could not be done, as Markdown for a job's summary or a comment."""
    counts: dict[str, int] = {}
    for item in audit.checkpoints:
        counts[item["status"]] = counts.get(item["status"], 0) + 1
    found = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "none"
    lines = [
        f"# {_cell(audit.title)}",
        "",
        f"**Verdict: {_SIGNS[audit.verdict]} {audit.verdict}**. Checkpoints: {found}. Report: {_cell(audit.report)}",
    ]
    lines += _raised_table(audit.raised)
    idle = [_cell(item["name"]) for item in audit.conditions if not item["counts"]]
    if idle:
        lines += ["", f"Conditions without a finding to judge: {', '.join(idle)}."]
    problems = [
        f"{item['file']}: {item['reason']}" for item in audit.checkpoints if item["status"] == "quarantined"
    ]
    for heading, texts in (("Quarantined", problems), ("Could not be computed", list(audit.failures))):
        if texts:
            lines += ["", f"## {heading}", "", *(f"- {_cell(text)}" for text in _cut(texts, _MOST_LINES))]
    return "\n".join(lines) + "\n"


def _raised_table(raised: Sequence[Mapping[str, Any]]) -> list[str]:
    if not raised:
        return ["", "No check was raised."]
    worst_first = sorted(raised, key=lambda item: -ORDER.index(item["outcome"]))
    rows = [
        f"| {_SIGNS[item['outcome']]} {item['outcome']} | {' | '.join(map(_cell, _columns(item)))} |"
        for item in worst_first[:_MOST_ROWS]
    ]
    more = ["", f"{len(raised) - _MOST_ROWS} more are in the report."] if len(raised) > _MOST_ROWS else []
    head = ["| outcome | check | run | where | step | value | why |", "|---|---|---|---|---:|---:|---|"]
    return ["", f"## {counted(len(raised), 'finding')} raised", "", *head, *rows, *more]


def _columns(item: Mapping[str, Any]) -> tuple[str, ...]:
    where = ", ".join(str(item[key]) for key in ("layer", "probe", "part") if item.get(key))
    step = str(item["step"]) if item["step"] >= 0 else ""
    return (item["name"], item["run"], where, step, plain_number(item["value"]), item["reason"])


def _cell(text: str) -> str:
    """`text` on one line, with whatever Markdown or HTML would take for a sign of theirs made harmless."""
    plain = _clean(str(text)).replace("\n", " ").replace("\r", " ")
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        plain = plain.replace(sign, entity)
    return re.sub(r"([\\`*_\[\]|#!~])", r"\\\1", plain)
