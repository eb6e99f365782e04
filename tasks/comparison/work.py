"""What a worker does for a comparison: look, claim, compute, stage, commit. Plain functions, bound by the flow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from stratascope.errors import DoesNotApply, StratascopeError
from stratascope.storage.store import Store, process_facts
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import Findings
from stratascope.tasks.comparison.gathering import Group
from stratascope.tasks.comparison.spec import PREFIX, TRADITIONAL_PREFIX, ComparisonSpec, TraditionalSpec
from stratascope.tasks.contexts import CheckpointContext, Subject
from stratascope.tasks.memory import returning_memory
from stratascope.tasks.units import Outcome


@dataclass(frozen=True)
class ComparisonAssignment:
    """One unit of a comparison, small enough to travel."""

    unit: Unit
    identity: str
    parts: dict[str, Any]
    store_path: str
    groups: tuple[Group, ...]
    subjects: Mapping[str, Subject]
    """By run."""
    probe: str
    spec: ComparisonSpec
    traditional: TraditionalSpec = field(default_factory=TraditionalSpec)
    title: str = ""

    def context(self, store: Store, run: str, step: int) -> CheckpointContext:
        """What is stored of one compared checkpoint."""
        return CheckpointContext(store, self.subjects[run], step)


def comparison_unit(name: str) -> Unit:
    """The unit of the comparison called `name`."""
    return Unit("cohort", "", -1, f"{PREFIX}{name}")


def traditional_unit(name: str, method: str) -> Unit:
    """The unit of one traditional method of the comparison called `name`."""
    return Unit("cohort", "", -1, f"{TRADITIONAL_PREFIX}{name}:{method}")


@returning_memory
def compare_runs(assignment: ComparisonAssignment) -> Outcome:
    """Compare the two groups, unless that is stored already. Failures come back as outcomes, never as exceptions."""
    from stratascope.tasks.comparison.between import between_runs

    return _committed(assignment, between_runs)


@returning_memory
def fit_method(assignment: ComparisonAssignment) -> Outcome:
    """Fit one traditional method on every kind of features, unless that is stored already."""
    from stratascope.tasks.comparison.methods import methods_compared

    return _committed(assignment, methods_compared)


def _committed(
    assignment: ComparisonAssignment,
    compute: Callable[[Store, ComparisonAssignment], tuple[Findings, dict[str, Any]]],
) -> Outcome:
    from threadpoolctl import threadpool_limits

    unit = assignment.unit
    store = Store.open(assignment.store_path)
    try:
        with store.claim(unit):
            if store.is_current(unit, assignment.identity):
                return Outcome(unit, "cached")
            started = time.time()
            # One thread each: sums in another order would be other numbers.
            with threadpool_limits(1), store.stage(unit, assignment.identity, assignment.parts) as staged:
                findings, summary = compute(store, assignment)
                staged.write_rows(findings.rows)
                for path, array in findings.arrays.items():
                    staged.write_array(path, array)
                staged.summary = summary
                staged.recorded = {**process_facts(), "seconds": time.time() - started}
                staged.commit()
        return Outcome(unit, "computed")
    except DoesNotApply as reason:
        return Outcome(unit, "failed", f"{unit}: does not apply: {reason}")
    except StratascopeError as error:
        return Outcome(unit, "failed", f"{unit}: {error}")
    except Exception as error:
        return Outcome(unit, "failed", f"{unit}: {type(error).__name__}: {error}")


def plain(value: Any) -> Any:
    """`value` as JSON-like data: dataclasses as mappings, NumPy's numbers as Python's, and no NaN but None."""
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
