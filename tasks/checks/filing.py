"""Judging a whole store: read the ledger, evaluate, and file what came out as rows of the ledger."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stratascope.storage.digests import identity_of
from stratascope.storage.ledger import Row
from stratascope.storage.store import Store, process_facts
from stratascope.storage.units import CHECKS, Unit
from stratascope.tasks.checks.evaluate import ORDER, Condition, Evaluation, bound, evaluate
from stratascope.tasks.checks.spec import CheckSpec
from stratascope.tasks.memory import returning_memory

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FILING_VERSION = 2
_LEVELS = "; ".join(f"{place} {level}" for place, level in enumerate(ORDER))


@dataclass(frozen=True)
class Judgement:
    """What the checks say of a store, small and plain enough to travel."""

    verdict: str
    raised: tuple[dict[str, Any], ...]
    """One entry for each outcome that is no pass."""
    conditions: tuple[dict[str, Any], ...]
    """One entry for each condition; `counts` by outcome, `by_run` the same for each run, and `fresh` by run the worst
    outcome of the checkpoints that are new."""


@returning_memory
def judge_store(
    store_path: str,
    units: Collection[Unit],
    checks: Sequence[CheckSpec] | None,
    fresh: Collection[tuple[str, int]] = (),
) -> Judgement:
    """Hold `checks` against the rows that `units` filed, file the outcomes, and tell them.

    The rest of the store is there to be held against. `fresh` names the checkpoints (run, step) that are new.
    """
    store = Store.open(store_path)
    rows = store.rows()
    found = evaluate(rows, checks, belonging_to(rows, units))
    file_outcomes(store, found, {unit.run for unit in units})
    conditions = tuple(_summary(item, set(fresh)) for item in found.conditions)
    return Judgement(found.verdict, tuple(asdict(item) for item in found.raised), conditions)


def belonging_to(rows: pd.DataFrame, units: Collection[Unit]) -> np.ndarray:
    """bool, one a row of the ledger: whether one of `units` filed it."""
    import numpy as np
    import pandas as pd

    run, runs = pd.factorize(rows["run"])
    analysis, analyses = pd.factorize(rows["analysis"])
    step, steps = pd.factorize(rows["step"])
    places = [{name: place for place, name in enumerate(names)} for names in (runs, analyses, steps)]
    known = np.zeros(tuple(len(names) for names in places), dtype=bool)
    for unit in units:
        at: list[Any] = [places[0].get(unit.run), places[1].get(unit.analysis), places[2].get(unit.step)]
        # A series files rows of many steps, and a comparison of runs rows of many runs.
        if unit.scope != "checkpoint":
            at[2] = slice(None)
        if unit.scope == "cohort":
            at[0] = slice(None)
        if None not in at:
            known[tuple(at)] = True
    found: np.ndarray = known[run, analysis, step]
    return found


def _summary(item: Condition, fresh: set[tuple[str, int]]) -> dict[str, Any]:
    worst: dict[str, int] = {}
    for step in item.steps:
        # What is said of a run as a whole is said anew each time.
        if step.step < 0 or (step.run, step.step) in fresh:
            worst[step.run] = max(worst.get(step.run, 0), ORDER.index(step.outcome))
    return {
        "name": item.check.name,
        "metric": item.check.metric,
        "suite": item.suite,
        "bound": bound(item.check),
        "severity": item.check.severity,
        "counts": item.total,
        "by_run": item.counts,
        "fresh": {run: ORDER[place] for run, place in worst.items()},
    }


def outcome_rows(found: Evaluation) -> dict[str, list[Row]]:
    """By run, a row `check_outcome` for each condition and checkpoint: the worst outcome as a number, over `n` findings.

    What could not be evaluated because nothing matches stands under the run "".
    """
    rows: dict[str, list[Row]] = {}
    for item in found.conditions:
        part = f"check={item.check.name}"
        shared: dict[str, Any] = {"part": part, "unit": "level", "convention": _LEVELS}
        for step in item.steps:
            reason = f"{step.raised} of {step.judged} findings raised" if step.raised else ""
            rows.setdefault(step.run, []).append(
                Row(
                    "check_outcome",
                    ORDER.index(step.outcome),
                    step=step.step,
                    n=step.judged,
                    reason=reason,
                    **shared,
                )
            )
        if "" in item.counts and not item.steps:
            reason = "no finding matches this check"
            rows.setdefault("", []).append(Row("check_outcome", ORDER.index("error"), reason=reason, **shared))
    return rows


def file_outcomes(store: Store, found: Evaluation, runs: Collection[str]) -> None:
    """Commit the outcomes of each run as a unit of the analysis `checks`, where they differ from what is filed.

    Of `runs` without an outcome, what was filed before is emptied.
    """
    rows = outcome_rows(found)
    for run in sorted({*rows, *runs, ""}):
        unit = Unit("series", run, -1, CHECKS) if run else Unit("cohort", "", -1, CHECKS)
        mine = rows.get(run, [])
        if not mine and store.manifest(unit) is None:
            continue
        parts = {
            "analysis": CHECKS,
            "version": FILING_VERSION,
            "outcomes": identity_of(
                {"rows": [[row.part, row.step, row.value, row.n, row.reason] for row in mine]}
            ),
        }
        identity = identity_of(parts)
        with store.claim(unit):
            if not store.is_current(unit, identity):
                with store.stage(unit, identity, parts) as staged:
                    staged.write_rows(mine)
                    staged.recorded = process_facts()
                    staged.commit()
