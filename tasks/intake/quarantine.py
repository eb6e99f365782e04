"""Which files could not be audited, and which are gone since: so that the ledger knows it too."""

from __future__ import annotations

from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Figure, Findings, Metric, Options, register
from stratascope.tasks.contexts import SeriesContext, View


class QuarantineOptions(Options):
    """Nothing to choose."""


def compute(context: SeriesContext, options: QuarantineOptions) -> Findings:
    """One row for each file, at the step that its name tells (-1 where it tells none)."""
    rows = [
        Row(item.status, 1.0, step=item.step, part=f"file={item.name}", n=1, unit="files", reason=item.reason)
        for item in context.rejected
    ]
    total = len(context.rejected) + len(context.steps)
    for status in ("quarantined", "gone"):
        count = sum(item.status == status for item in context.rejected)
        if count or status == "quarantined":
            rows.append(Row(f"{status}_count", count, n=total, unit="files"))
    return Findings(rows)


def draw(view: View, options: QuarantineOptions) -> list[Figure]:
    """Nothing: the tables of checkpoints name each file and its reason."""
    return []


ANALYSIS = register(
    Analysis(
        name="quarantine", version=2, scope="series", title="Quarantine", question="Which files could not be audited?",
        options=QuarantineOptions, compute=compute, draw=draw, needs=frozenset({"rejected"}), always=True,
        metrics=(
            Metric("quarantined", "files", "{1}", "1 for each file that cannot be read safely or does not fit; `reason` says why."),
            Metric("quarantined_count", "files", "[0, ∞)", "How many files of the run are quarantined."),
            Metric("gone", "files", "{1}", "1 for each checkpoint whose file is gone since it was audited: its results stay."),
            Metric("gone_count", "files", "[0, ∞)", "How many of the run's audited checkpoints have no file any more; not filed where there is none."),
        ),
    )
)  # fmt: skip
