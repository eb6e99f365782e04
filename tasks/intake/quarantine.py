"""Which files could not be audited, and why: so that the ledger knows it too."""

from __future__ import annotations

from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Figure, Findings, Metric, Options, register
from stratascope.tasks.contexts import SeriesContext, View


class QuarantineOptions(Options):
    """Nothing to choose."""


def compute(context: SeriesContext, options: QuarantineOptions) -> Findings:
    """One row for each file, at the step that its name tells (-1 where it tells none)."""
    rows = [Row("quarantined", 1.0, step=item.step, part=f"file={item.name}", n=1, unit="files", reason=item.reason) for item in context.rejected]  # fmt: skip
    return Findings([*rows, Row("quarantined_count", len(rows), n=len(rows) + len(context.steps), unit="files")])


def draw(view: View, options: QuarantineOptions) -> list[Figure]:
    """Nothing: the tables of checkpoints name each file and its reason."""
    return []


ANALYSIS = register(
    Analysis(
        name="quarantine", version=1, scope="series", title="Quarantine", question="Which files could not be audited?",
        options=QuarantineOptions, compute=compute, draw=draw, needs=frozenset({"rejected"}), always=True,
        metrics=(
            Metric("quarantined", "files", "{1}", "1 for each file that cannot be read safely or does not fit; `reason` says why."),
            Metric("quarantined_count", "files", "[0, ∞)", "How many files of the run are quarantined."),
        ),
    )
)  # fmt: skip
