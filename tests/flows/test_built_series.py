"""Series that build on analyses of checkpoints, and series that keep what they filed before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stratascope.flows.plan import make_plan, survey
from stratascope.storage.ledger import Row
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks import analysis
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.representation.decomposition import decomposed_layers
from tests.conftest import Workplace
from tests.flows.without_workers import audit_here, surveyed


def count_layers(context: SeriesContext, options: Options) -> Findings:
    """How many layers are decomposed at each step, and how often this was asked before."""
    findings = Findings()
    for step in context.steps:
        count = len(decomposed_layers(context.at(step), "probe"))
        findings.rows.append(Row("decomposed_layers", count, step=step))
    before = context.earlier("counting", "times")
    times = 1 if before is None else int(before[0][0]) + 1
    findings.arrays["times"] = NamedArray(("one",), np.array([times]), {"steps": list(context.steps)})
    return findings


@pytest.fixture
def counting():
    register(
        Analysis(
            name="counting", version=1, scope="series", title="Counting", question="How many?", options=Options,
            metrics=(Metric("decomposed_layers", "1", "[0, ∞)", "Layers that are decomposed."),), compute=count_layers,
            draw=lambda view, options: [], builds_on=("decomposition",), keeps_reference=True,
        )
    )  # fmt: skip
    yield
    del analysis._REGISTRY["counting"]


@pytest.fixture
def place(tmp_path: Path, counting) -> Workplace:
    place = Workplace(tmp_path)
    place.configure(analyses={"counting": {}})
    for step in range(3):
        place.checkpoint(step)
    return place


def computed(outcomes) -> list[str]:
    return sorted({item.unit.analysis for item in outcomes if item.status == "computed"})


def times(place: Workplace) -> int:
    return int(Store.open(place.store).array("series/small/counting/times")[0])


def counts(place: Workplace) -> dict[int, float]:
    rows = Store.open(place.store).rows()
    rows = rows[rows["metric"] == "decomposed_layers"]
    return dict(zip(rows["step"], rows["value"], strict=True))


def test_what_it_builds_on_is_computed_though_nobody_asked_for_it(place: Workplace):
    _, outcomes, _ = audit_here(place.config)
    assert "decomposition" in computed(outcomes)
    assert set(counts(place)) == {0, 1, 2}
    assert min(counts(place).values()) > 0
    _, outcomes, _ = audit_here(place.config)
    assert computed(outcomes) == []


def test_other_options_below_make_the_series_anew(place: Workplace):
    audit_here(place.config)
    _, outcomes, _ = audit_here(place.config, "analyses={counting: {}, decomposition: {neighbours: 3}}")
    assert computed(outcomes) == ["counting", "decomposition"]


def test_a_step_whose_decomposition_failed_joins_when_it_is_there(place: Workplace, monkeypatch):
    from stratascope.tasks.representation import decomposition

    def fails_at_one(context, options):
        if context.step == 1:
            raise MemoryError("too large")
        return decomposition.compute(context, options)

    sound = analysis.named("decomposition")
    broken = Analysis(**{**vars(sound), "compute": fails_at_one})
    monkeypatch.setitem(analysis._REGISTRY, "decomposition", broken)
    result, outcomes, _ = audit_here(place.config)
    assert [item.unit for item in outcomes if item.status == "failed"] == [
        Unit("checkpoint", "small", 1, "decomposition")
    ]
    assert result.exit_code == 3
    assert set(counts(place)) == {0, 2}
    monkeypatch.setitem(analysis._REGISTRY, "decomposition", sound)
    result, outcomes, _ = audit_here(place.config)
    assert computed(outcomes) == ["counting", "decomposition"]
    assert set(counts(place)) == {0, 1, 2}


def test_what_was_filed_before_is_read_until_it_is_to_be_forgotten(place: Workplace):
    audit_here(place.config)
    place.checkpoint(3)
    audit_here(place.config)
    assert times(place) == 2
    found = surveyed(place.config)
    again = survey(found.config, found.folder, found.store, rebase=True)
    anew = {item.unit.analysis for item in make_plan(again).units() if item.rebase}
    assert anew == {"counting"}
    from stratascope.tasks.units import compute_unit

    for item in make_plan(again).series:
        compute_unit(item)
    assert times(place) == 1
    assert set(counts(place)) == {0, 1, 2, 3}
