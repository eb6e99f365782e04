"""What a person sees of an audit in Prefect's own pages: progress, a table, a picture and a link to the report.

Only worth its time where the server lasts: the temporary server of a single command takes its pages with it.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from stratascope.storage.objects import is_url
from stratascope.storage.store import Store
from stratascope.tasks.checks.ci_output import markdown
from stratascope.tasks.report.drawing import FIGURES, read_figures

if TYPE_CHECKING:
    from stratascope.flows.result import AuditResult

TEMPORARY = "STRATASCOPE_TEMPORARY_SERVER"
"""Set in the environment by the command that started a server for itself alone."""
_EVERY_SECONDS = 2.0


def server_lasts() -> bool:
    """Whether somebody will look at Prefect's pages after this audit."""
    return not os.environ.get(TEMPORARY)


def progress_listener() -> Callable[[str, int, int], None]:
    """A listener that keeps a progress artifact up to date, at most every two seconds."""
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    known: dict[str, UUID] = {}
    told: dict[str, float] = {}

    def listen(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if total == 0 or (done < total and now - told.get(what, 0.0) < _EVERY_SECONDS):
            return
        told[what] = now
        share = 100.0 * done / total
        # A page that cannot be brought up to date is no reason to lose an audit.
        with suppress(Exception):
            if what not in known:
                made: Any = create_progress_artifact(
                    share, key=what.replace(" ", "-"), description=f"{what}: {total}"
                )
                known[what] = made
            else:
                update_progress_artifact(known[what], share)

    return listen


def publish(result: AuditResult, title: str) -> None:
    """The outcome as tables and text, the report as a link, and accuracy over training as a picture."""
    from prefect.artifacts import (
        create_image_artifact,
        create_link_artifact,
        create_markdown_artifact,
        create_table_artifact,
    )

    link = result.report if is_url(result.report) else Path(result.report).as_uri()
    columns = ("run", "step", "status", "reason")
    with suppress(Exception):
        create_table_artifact(
            [{name: item[name] for name in columns} for item in result.checkpoints],
            key="audit-checkpoints",
            description=f"{title}: verdict {result.verdict}",
        )
        create_table_artifact(check_table(result), key="audit-checks", description=f"verdict {result.verdict}")
        create_markdown_artifact(markdown(result.summary()), key="audit-summary", description=title)
        create_link_artifact(link, link_text="report", key="audit-report", description=result.report)
        with Store.open(result.store).report_folder(wants=[f"{FIGURES}/overview"]) as report:
            figure = next(item for item in read_figures(report, "overview") if "picture" in item)
            picture = base64.b64encode((report / figure["picture"]).read_bytes()).decode()
        create_image_artifact(
            f"data:image/svg+xml;base64,{picture}", key="audit-trend", description=figure["title"]
        )


def check_table(result: AuditResult) -> list[dict[str, Any]]:
    """One row for each condition: what it wants, and how often it came out how."""
    columns = ("name", "suite", "metric", "bound", "severity")
    levels = ("pass", "info", "warn", "fail", "error", "not_judged")
    return [
        {name: item[name] for name in columns} | {level: item["counts"].get(level, 0) for level in levels}
        for item in result.conditions
    ]
