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
    CheckSpec(
        name="layer-jump", metric="layer_movement", part="measure=cka;against=previous", severity="warn",
        change=ChangeSpec(against="history", direction="up", max_growth=10, tolerance=0.2, beyond_interval=True),
    ),
    CheckSpec(
        name="prediction-jump", metric="prediction_churn", layer="", part="", severity="warn",
        change=ChangeSpec(against="history", direction="up", max_growth=10, tolerance=0.2, beyond_interval=True),
    ),
    CheckSpec(
        name="mass-forgetting", metric="newly_wrong_fraction", layer="", part="", severity="warn",
        change=ChangeSpec(against="history", direction="up", max_growth=10, tolerance=0.1, beyond_interval=True),
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


REASONS: dict[str, str] = {
    "finite": "One number that is NaN or infinite spoils everything that is computed from it.",
    "finite-loss": "A loss near the largest float is an explosion that has not overflowed yet.",
    "dead-units": "A layer of which nine units in ten never fire passes hardly anything on.",
    "saturated-units": "Where nine values in ten lie at the ends of a bounded activation, hardly any gradient passes.",
    "exploding-weights": "The norm of all weights grew less than twofold over the demo's whole training; a hundredfold is no growth that leaves a network usable.",
    "jumping-weights": "Tenfold between two checkpoints: too large a step, or a checkpoint of another run.",
    "huge-activations": "Far beyond the largest float16 number, 65,504, and still well above what raw bytes as inputs give.",
    "exploding-activations": "Learning multiplied a quiet layer of the demo by 15 between two checkpoints, so it must grow a hundredfold and by more than 100; a layer that starts at 0 may grow as it likes.",
    "exploding-gradients": "The same for the gradient of the whole network.",
    "duplicate-checkpoint": "The same weights at two steps: the training stood still, or a file was copied.",
    "shared-tensors": "Some tensors are those of another step, others are not: two checkpoints were mixed.",
    "misplaced-checkpoint": "Above 1 a checkpoint fits another place in its run better, or none.",
    "accuracy-fall": "By more than 10 points from one checkpoint to the next, and more than both intervals explain.",
    "accuracy-below-start": "Worse than the first checkpoint by more than chance: something was lost that it could do.",
    "loss-rise": "Doubled from one checkpoint to the next, by more than 0.05 and more than both intervals explain.",
    "loss-above-start": "A quarter above the first checkpoint, by more than chance: the training has diverged.",
    "no-improvement": "Ten checkpoints in a row after the first, and the loss has not fallen by half a percent: does it learn at all? Only a note, for a run that begins with a trained network may stand still in good health.",
    "neighbour-accuracy-fall": "By more than 15 points from one checkpoint to the next: the layer's classes have run into one another.",
    "linear-probe-fall": "The same for what a linear probe reads from a layer, by more than 10 points.",
    "representation-drift": "The similarity falls by more than 0.2, and ten times as far as ever in the window.",
    "weight-drift": "A layer's norm moves by more than a quarter, and ten times as far as ever in the window. Held against the largest move and not against the usual one, since training moves by leaps where it learns.",
    "activation-drift": "The spread of a layer's outputs moves by more than a half, and ten times as far as ever.",
    "sparsity-drift": "The share of zeros moves by more than 0.2, and ten times as far as ever.",
    "output-drift": "Accuracy moves, either way, by more than 0.1 and its interval, and ten times as far as ever.",
    "layer-jump": "From one checkpoint to the next a layer moves by 0.2 of CKA more than before, more than its interval, and this growth is ten times any earlier one.",
    "prediction-jump": "The share of predictions that change from one checkpoint to the next grows by more than 0.2 and its interval, and ten times as far as ever.",
    "mass-forgetting": "The share of samples that were right and are wrong grows by more than 0.1 and its interval, and ten times as far as ever: accuracy may hide it where others became right.",
    "accuracy-gap": "30 points between training and test: it knows its training data by heart.",
    "widening-gap": "By more than 10 points from one checkpoint to the next, and more than both intervals explain.",
    "gap-seen": "15 points between training and test are worth a note.",
}
"""Why each condition stands where it stands; on its page in the report and in docs/checks.md."""


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
