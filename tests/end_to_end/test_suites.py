"""All suites over a real training that went well."""

from __future__ import annotations

from pathlib import Path

from stratascope.storage.store import Store
from stratascope.tasks.checks.evaluate import evaluate
from stratascope.tasks.checks.spec import SUITE_NAMES, CheckSpec


def test_the_suites_raise_nothing_over_the_demo_and_have_something_to_judge(demo_store: Path):
    found = evaluate(Store.open(demo_store).rows(), [CheckSpec(suite=name) for name in SUITE_NAMES])
    assert found.raised == ()
    judged = {item.suite for item in found.conditions if item.total.get("pass")}
    assert judged == set(SUITE_NAMES)
    idle = {item.check.name for item in found.conditions if not item.total.get("pass")}
    # The demo's network has no bounded activation, and nobody asked for similarities, drift or linear probes.
    of_others = {"representation-drift", "linear-probe-fall", "layer-jump", "prediction-jump", "mass-forgetting"}
    assert idle <= {"saturated-units", *of_others}
