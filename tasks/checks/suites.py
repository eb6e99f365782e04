"""Ready-made checks that need no tuning. docs/checks.md says why each bound stands where it stands."""

from __future__ import annotations

from collections.abc import Iterable

from stratascope.tasks.checks.spec import ChangeSpec, CheckSpec

_SOUNDNESS = (
    CheckSpec(name="finite", metric="non_finite_count", max=0),
    CheckSpec(name="finite-loss", metric="loss", max=1e30),
    CheckSpec(name="dead-units", metric="dead_fraction", max=0.9, severity="warn"),
    CheckSpec(name="saturated-units", metric="saturated_fraction", max=0.9, severity="warn"),
    CheckSpec(
        name="exploding-weights", metric="weight_norm", layer="", part="",
        change=ChangeSpec(against="first", direction="up", max_relative=99),
    ),
    CheckSpec(
        name="jumping-weights", metric="weight_norm", layer="", part="", severity="warn",
        change=ChangeSpec(against="previous", direction="up", max_relative=9),
    ),
    CheckSpec(name="huge-activations", metric="activation_std", part="", max=1e6, severity="warn"),
    CheckSpec(
        name="exploding-activations", metric="activation_std", part="", severity="warn",
        change=ChangeSpec(against="previous", direction="up", max_relative=99, tolerance=100),
    ),
    CheckSpec(
        name="exploding-gradients", metric="gradient_norm", layer="", part="", severity="warn",
        change=ChangeSpec(against="previous", direction="up", max_relative=99, tolerance=100),
    ),
    CheckSpec(name="duplicate-checkpoint", metric="duplicate_of", max=0, severity="warn"),
    CheckSpec(name="shared-tensors", metric="shared_tensors", max=0, severity="warn"),
    CheckSpec(name="misplaced-checkpoint", metric="misplaced_score", max=1, severity="warn"),
)  # fmt: skip

_PROGRESS = (
    CheckSpec(
        name="accuracy-fall", metric="accuracy", layer="", part="", severity="warn",
        change=ChangeSpec(against="previous", direction="down", max_absolute=0.1, beyond_interval=True),
    ),
    CheckSpec(
        name="accuracy-below-start", metric="accuracy", layer="", part="", severity="warn",
        change=ChangeSpec(against="first", direction="down", max_absolute=0.02, beyond_interval=True),
    ),
    CheckSpec(
        name="loss-rise", metric="loss", layer="", part="", severity="warn",
        change=ChangeSpec(against="previous", direction="up", max_relative=1, tolerance=0.05, beyond_interval=True),
    ),
    CheckSpec(
        name="loss-above-start", metric="loss", layer="", part="", severity="warn",
        change=ChangeSpec(against="first", direction="up", max_relative=0.25, beyond_interval=True),
    ),
    CheckSpec(
        name="no-improvement", metric="loss", layer="", part="", severity="info", after=10,
        change=ChangeSpec(against="first", direction="down", min_relative=0.005),
    ),
    CheckSpec(
        name="neighbour-accuracy-fall", metric="knn_accuracy", part="re:space=features|", severity="warn",
        change=ChangeSpec(against="previous", direction="down", max_absolute=0.15, beyond_interval=True),
    ),
    CheckSpec(
        name="linear-probe-fall", metric="linear_probe_accuracy", part="", severity="warn",
        change=ChangeSpec(against="previous", direction="down", max_absolute=0.1, beyond_interval=True),
    ),
)  # fmt: skip

_DRIFT = (
    CheckSpec(
        name="representation-drift", metric="cka", part="", severity="warn",
        change=ChangeSpec(against="history", direction="down", max_growth=10, tolerance=0.2),
    ),
    CheckSpec(
        name="weight-drift", metric="weight_norm", part="", severity="warn",
        change=ChangeSpec(against="history", max_growth=10, relative_tolerance=0.25),
    ),
    CheckSpec(
        name="activation-drift", metric="activation_std", part="", severity="warn",
        change=ChangeSpec(against="history", max_growth=10, relative_tolerance=0.5),
    ),
    CheckSpec(
        name="sparsity-drift", metric="sparsity", part="", severity="warn",
        change=ChangeSpec(against="history", max_growth=10, tolerance=0.2),
    ),
    CheckSpec(
        name="output-drift", metric="accuracy", layer="", part="", severity="warn",
        change=ChangeSpec(against="history", max_growth=10, tolerance=0.1, beyond_interval=True),
    ),
)  # fmt: skip

_GENERALIZATION = (
    CheckSpec(name="accuracy-gap", metric="generalization_gap", part="of=accuracy;*", max=0.3, severity="warn"),
    CheckSpec(
        name="widening-gap", metric="generalization_gap", part="of=accuracy;*", severity="warn",
        change=ChangeSpec(against="previous", direction="up", max_absolute=0.1, beyond_interval=True),
    ),
    CheckSpec(name="gap-seen", metric="generalization_gap", part="of=accuracy;*", max=0.15, severity="info"),
)  # fmt: skip

SUITES: dict[str, tuple[CheckSpec, ...]] = {
    "soundness": _SOUNDNESS,
    "progress": _PROGRESS,
    "drift": _DRIFT,
    "generalization": _GENERALIZATION,
}
"""A condition of a suite that finds no row of its metric, or too short a history, says nothing."""


def expand(checks: Iterable[CheckSpec] | None) -> list[tuple[CheckSpec, str]]:
    """Each single condition, with the suite that it came from, or "". None stands for the suite `soundness`.

    A condition of the user's own takes the place of a suite's condition of the same name.
    """
    chosen = tuple(checks) if checks is not None else (CheckSpec(suite="soundness"),)
    own = {check.name for check in chosen if check.suite is None}
    conditions: dict[str, tuple[CheckSpec, str]] = {}
    for check in chosen:
        if check.suite is None:
            conditions[check.name or ""] = (check, "")
        else:
            for member in SUITES[check.suite]:
                if member.name not in own:
                    conditions.setdefault(member.name or "", (member, check.suite))
    return list(conditions.values())
