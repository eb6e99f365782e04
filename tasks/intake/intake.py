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
    weights, tensors = facts["parameter_count"], len(facts["tensors"])
    spoilt = [name for name, item in facts["tensors"].items() if item["non_finite"]]
    note = facts["network"]["note"]
    return Findings(
        [
            Row("parameter_count", weights, n=tensors, reason=note, estimator="tensors of the network"),
            Row("parameter_norm", facts["parameter_norm"], n=weights, convention="Frobenius, finite entries", estimator="all parameters"),
            Row("non_finite_count", facts["non_finite_count"], part="of=weights", unit="weights", n=weights, reason=_listed(spoilt), estimator="all tensors"),
            Row("unexpected_keys", len(facts["unexpected_keys"]), n=tensors, reason=_listed(facts["unexpected_keys"]), estimator="names in the file"),
            Row("missing_keys", len(facts["missing_keys"]), n=tensors, reason=_listed(facts["missing_keys"]), estimator="names of the network"),
        ]
    )  # fmt: skip


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def draw(view: View, options: IntakeOptions) -> list[Figure]:
    """The size of all weights over training, with the checkpoints that hold numbers that are none."""
    norms = view.metric("parameter_norm")
    if len(norms) < 2:
        return []
    lost = view.metric("non_finite_count")
    bad = [int(step) for step in lost.loc[lost["value"] > 0, "step"]]
    first, last = norms.iloc[0], norms.iloc[-1]
    change = f"from {first['value']:.3g} at step {int(first['step'])} to {last['value']:.3g} at step {int(last['step'])}"
    found = (
        f"{len(bad)} of {len(norms)} checkpoints hold weights that are not finite, first at step {bad[0]}; they are left out of the norm, which is too small there."
        if bad
        else f"All weights of the {len(norms)} checkpoints are finite."
    )
    keys = int(view.metric("unexpected_keys")["value"].max() + view.metric("missing_keys")["value"].max())
    names = (
        f"Up to {keys} names in a file or in the network have no counterpart."
        if keys
        else "All names in the files have their counterpart in the network."
    )
    return [
        Figure(
            key="norm",
            title="The size of all weights together",
            svg=_curve(norms, bad),
            run=view.run,
            shows="The norm of all parameters of each checkpoint as one number; a cross marks a file with weights that are not finite.",
            reading="A smooth curve is sound. A jump between two files means a burst in training or a wrong file; a cross means that training had broken down by then.",
            caution=f"{found} The norm goes {change}. {names}",
            audience="For a first look at whether the files hold a healthy network at all.",
            practitioner=f"Training broke down before step {bad[0]}: use an earlier checkpoint and lower the rate." if bad else "Steady growth that does not level off asks for weight decay or a longer schedule.",
            researcher="The norm is over trainable parameters, buffers excluded. In front of a norm layer only the direction of a weight counts, and growth there lowers the effective rate (van Laarhoven 2017).",
            table={"step": norms["step"].tolist(), "parameter_norm": norms["value"].tolist(), "non_finite_weights": lost["value"].tolist()},
        )
    ]  # fmt: skip


def _curve(norms: object, bad: list[int]) -> str:
    from typing import Any

    from stratascope.tasks.report.style import COLOURS, INK, new_axes, step_axis, to_svg

    rows: Any = norms
    figure, axes = new_axes(height=2.8)
    axes.plot(rows["step"], rows["value"], color=COLOURS[0], marker="o", markersize=3.2, linewidth=1.7)
    spoilt = rows[rows["step"].isin(bad)]
    if len(spoilt):
        axes.plot(spoilt["step"], spoilt["value"], "X", color=COLOURS[4], markersize=10, label="not finite")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=10, labelcolor=INK)
    step_axis(axes, list(rows["step"]))
    axes.set_ylabel("norm of all parameters")
    return to_svg(figure)


ANALYSIS = register(
    Analysis(
        name="intake", version=2, scope="checkpoint", title="Intake", question="Is each file what it claims to be?",
        options=IntakeOptions, compute=compute, draw=draw, needs=frozenset({"weights"}), always=True,
        metrics=(
            Metric("parameter_count", "weights", "[0, ∞)", "Number of trainable weights."),
            Metric("parameter_norm", "weight", "[0, ∞)", "Frobenius norm of all parameters together, finite entries only.", "", "permutation of units"),
            Metric("non_finite_count", "weights", "[0, ∞)", "Entries of the file's tensors that are NaN or infinite (part `of=weights`)."),
            Metric("missing_keys", "tensors", "[0, ∞)", "Tensors that the network has and the file has not, and that the factory sets itself; a missing parameter quarantines the file."),
            Metric("unexpected_keys", "tensors", "[0, ∞)", "Tensors that the file has and the network has not; they are ignored."),
        ),
    )
)  # fmt: skip
