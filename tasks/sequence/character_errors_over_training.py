"""Which kinds of errors a model of characters sheds during training, and which stay."""

from __future__ import annotations

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.archive import join_path
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part, step_directory
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.representation.resampling import bootstrap_counts, percentile_interval
from stratascope.tasks.sequence.character_errors_over_training_drawing import draw

_ROUNDS = 200


class CharacterErrorsOverTrainingOptions(Options):
    """Which errors are told apart says `character_errors`."""

    seed: int = 0
    """Of the bootstrap."""


def compute(context: SeriesContext, options: CharacterErrorsOverTrainingOptions) -> Findings:
    """Rows by probe and type, and arrays `<probe>/rate`, `<probe>/loss` (step, type).

    Raises DoesNotApply where the run has one checkpoint only.
    """
    steps = sorted(context.steps)
    if len(steps) < 2:
        raise DoesNotApply("a change needs two checkpoints or more; the run has one.")
    findings = Findings()
    for probe in context.probes:
        found = [(step, context.at(step)) for step in steps]
        kept = [(step, one) for step, one in found if one.found("character_errors", probe, "count") is not None]
        if len(kept) < 2:
            reason = "`character_errors` found nothing on this probe at two checkpoints; its rows say why"
            findings.rows.append(
                Row("character_error_change", probe=probe, status="does_not_apply", reason=reason)
            )
            continue
        counts, losses, tokens = (
            np.stack([np.asarray(one.found("character_errors", probe, name)) for _, one in kept])
            for name in ("count", "loss", "tokens_counted")
        )
        root = join_path(
            "runs", context.run, step_directory(kept[-1][0]), "character_errors", encode_path_part(probe), "count"
        )
        names = context.store.array_info(root)[3]["type"]
        _file(probe, np.array([step for step, _ in kept]), counts, losses, tokens[0], names, options, findings)
    return findings


def _file(
    probe: str, steps: np.ndarray, counts: np.ndarray, losses: np.ndarray, tokens: np.ndarray, names: list[str],
    options: CharacterErrorsOverTrainingOptions, findings: Findings,
) -> None:  # fmt: skip
    root = encode_path_part(probe)
    facts = {"type": list(names)}
    findings.arrays[f"{root}/step"] = NamedArray(("step",), steps.astype(np.int64))
    for key, values in (("rate", counts), ("loss", losses)):
        shares = values.sum(1) / tokens.sum()
        findings.arrays[f"{root}/{key}"] = NamedArray(("step", "type"), shares.astype(np.float64), facts)
    drawn = bootstrap_counts(len(tokens), _ROUNDS, options.seed)
    change = counts[-1] - counts[0]
    for number, name in enumerate(names):
        low, high = percentile_interval((drawn @ change[:, number]) / np.maximum(drawn @ tokens, 1))
        findings.rows.append(Row(
            "character_error_change", float(change[:, number].sum() / tokens.sum()), probe=probe, part=f"type={name}",
            low=low, high=high, n=int(tokens.sum()), other_step=int(steps[0]), estimator="interval by bootstrap over samples",
        ))  # fmt: skip


ANALYSIS = register(
    Analysis(
        name="character_errors_over_training", version=1, scope="series", title="Errors of a character model over training",
        question="Which kinds of errors go away, and which stay?",
        options=CharacterErrorsOverTrainingOptions, compute=compute, draw=draw, builds_on=("character_errors",),
        metrics=(
            Metric("character_error_change", "1", "[-1, 1]", "The `character_error_rate` of one type at the last checkpoint less that at the first, `other_step`; interval by bootstrap over samples.", "", "order of the samples"),
        ),
    )
)  # fmt: skip
