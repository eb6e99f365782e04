"""What each checkpoint file is: its size, its numbers that are none, its names that do not fit."""

from __future__ import annotations

from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Figure, Findings, Metric, Options, register
from stratascope.tasks.contexts import CheckpointContext, View


class IntakeOptions(Options):
    """Nothing to choose."""


def compute(context: CheckpointContext, options: IntakeOptions) -> Findings:
    """Rows from the facts that reading the file gave."""
    facts = context.facts
    rows = [
        Row("parameter_count", facts["parameter_count"], unit="weights", n=1),
        Row("non_finite_count", facts["non_finite_count"], part="of=weights", unit="weights", n=facts["parameter_count"]),
        Row("unexpected_keys", len(facts["unexpected_keys"]), unit="tensors", reason=", ".join(facts["unexpected_keys"][:5])),
        Row("missing_keys", len(facts["missing_keys"]), unit="tensors"),
    ]  # fmt: skip
    return Findings(rows)


def draw(view: View, options: IntakeOptions) -> list[Figure]:
    """The overview's table tells it all: nothing to draw."""
    return []


ANALYSIS = register(
    Analysis(
        name="intake", version=1, scope="checkpoint", title="Intake", question="Is each file what it claims to be?",
        options=IntakeOptions, compute=compute, draw=draw, needs=frozenset({"weights"}), always=True,
        metrics=(
            Metric("parameter_count", "weights", "[0, ∞)", "Number of trainable weights."),
            Metric("missing_keys", "tensors", "[0, ∞)", "Tensors that the network has and the file has not."),
            Metric("unexpected_keys", "tensors", "[0, ∞)", "Tensors that the file has and the network has not."),
        ),
    )
)  # fmt: skip
