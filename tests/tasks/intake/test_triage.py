"""What triage finds in real files, and what its pictures say of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stratascope.storage.checkpoint_files import RunSource, find_checkpoints, settle
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.contexts import CheckpointContext, CohortContext, SeriesContext, Subject, View
from stratascope.tasks.intake import copies, intake, triage
from stratascope.tasks.intake.facts import checkpoint_facts

STEPS = (0, 10, 20, 30, 40, 50, 60, 70)


def series_of_weights(network, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """The weights at STEPS of a short training of `network`, batch statistics included."""
    torch.manual_seed(seed)
    for layer in network.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    inputs = torch.randn(256, 4)
    labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    rule = torch.optim.SGD(network.train().parameters(), 0.05, momentum=0.9)
    found = []
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            found.append({name: value.clone() for name, value in network.state_dict().items()})
        chosen = torch.randint(0, 256, (32,))
        rule.zero_grad()
        nn.functional.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()
        rule.step()
    return found


class Audit:
    """Writes series of weights as files, reads them as an audit does, and commits what triage finds."""

    def __init__(self, folder: Path, factory_folder: Path) -> None:
        self.folder, self.factory_folder = folder, factory_folder
        self.store = Store.open(folder / "store", create=True)

    def series(self, weights, name: str = "run", steps=STEPS) -> SeriesContext:
        place = self.folder / name
        place.mkdir()
        for step, tensors in zip(steps, weights, strict=True):
            save_file(
                {key: value.contiguous() for key, value in tensors.items()}, place / f"step-{step}.safetensors"
            )
        source = RunSource(name=name, checkpoints=str(place), model={"factory": "intake_network:Net"})
        files = find_checkpoints(source, self.folder)
        facts = {item.path: checkpoint_facts(item, source, self.factory_folder) for item in files}
        assert {item["status"] for item in facts.values()} == {"ok"}, facts
        listing = settle(source, files, facts)
        subject = Subject(str(self.store.path), name, (), source, str(self.factory_folder))
        by_step = {item.step: facts[item.path] for item in listing.checkpoints if item.step is not None}
        return SeriesContext(self.store, subject, tuple(by_step), by_step)

    def view(self, analysis, unit: Unit, findings, steps=STEPS) -> View:
        with self.store.claim(unit), self.store.stage(unit, "identity", {}) as staged:
            staged.write_rows(findings.rows)
            for path, array in findings.arrays.items():
                staged.write_array(path, array)
            staged.commit()
        return View(self.store, unit.run, analysis.name, analysis.scope, tuple(steps), self.store.rows([unit]))

    def triaged(self, weights, name: str = "run", steps=STEPS):
        context = self.series(weights, name, steps)
        findings = triage.compute(context, triage.TriageOptions())
        return findings, self.view(triage.ANALYSIS, Unit("series", name, -1, "triage"), findings, steps)


@pytest.fixture
def audit(tmp_path: Path, factory_folder: Path) -> Audit:
    return Audit(tmp_path, factory_folder)


def values(findings, metric: str) -> dict[int, float]:
    return {row.step: row.value for row in findings.rows if row.metric == metric}


def row_at(findings, metric: str, step: int):
    (row,) = [row for row in findings.rows if row.metric == metric and row.step == step]
    return row


def test_a_sound_series_has_nothing_to_report(audit: Audit, network):
    weights = series_of_weights(network)
    findings, _ = audit.triaged(weights)
    for metric in ("duplicate_of", "shared_tensors", "dtype_drift"):
        assert values(findings, metric) == dict.fromkeys(STEPS, 0.0)
    assert max(values(findings, "misplaced_score").values()) < 1
    assert values(findings, "missing_steps") == {-1: 0.0}
    registered = {metric.name for metric in triage.ANALYSIS.metrics}
    assert {row.metric for row in findings.rows} == registered
    assert all(row.n > 0 and row.estimator for row in findings.rows)


def test_distances_are_those_of_the_parameters(audit: Audit, network):
    weights = series_of_weights(network)
    findings, _ = audit.triaged(weights)
    trained = [name for name, _ in network.named_parameters()]

    def apart(first, second):
        return float(sum((weights[first][name] - weights[second][name]).double().square().sum() for name in trained)) ** 0.5  # fmt: skip

    distances = findings.arrays["distances"].values
    for place, step in enumerate(STEPS):
        # So few weights that collisions in the sketch move the distance a little.
        assert distances[0, place] == pytest.approx(apart(0, place), rel=0.15)
        assert values(findings, "distance_to_first")[step] == distances[0, place]
    assert row_at(findings, "distance_to_previous", 30).other_step == 20


def test_copies_swaps_and_gaps_are_found_in_files(audit: Audit, network):
    weights = series_of_weights(network)
    copied, _ = audit.triaged([*weights[:2], weights[7], *weights[3:]], "copied")
    assert values(copied, "duplicate_of") == {step: float(step == 70) for step in STEPS}
    assert row_at(copied, "duplicate_of", 70).other_step == 20
    assert values(copied, "misplaced_score")[20] > 1
    assert values(copied, "misplaced_score")[70] < 1
    assert row_at(copied, "misplaced_score", 20).other_step == 70
    swapped, _ = audit.triaged([*weights[:2], weights[6], *weights[3:6], weights[2], weights[7]], "swapped")
    assert max(values(swapped, "misplaced_score")[step] for step in (20, 60)) > 1
    gap, _ = audit.triaged([*weights[:3], *weights[4:]], "gap", (0, 10, 20, 40, 50, 60, 70))
    assert values(gap, "missing_steps") == {-1: 1.0}
    assert "step 30" in row_at(gap, "missing_steps", -1).reason


def test_a_wrongly_copied_shard_is_told_from_a_frozen_layer(audit: Audit, network):
    weights = series_of_weights(network)
    shard = [dict(item) for item in weights]
    shard[3]["head.weight"] = weights[7]["head.weight"]
    findings, _ = audit.triaged(shard, "shard")
    assert values(findings, "shared_tensors") == {step: float(step in (30, 70)) for step in STEPS}
    row = row_at(findings, "shared_tensors", 30)
    assert (row.other_step, row.n) == (70, 2)
    assert row.reason.startswith("head.weight: the same bytes as at step 70")

    next_to = [dict(item) for item in weights]
    next_to[3]["head.weight"] = weights[4]["head.weight"]
    findings, _ = audit.triaged(next_to, "next")
    assert values(findings, "shared_tensors") == {step: float(step in (30, 40)) for step in STEPS}

    for name, places in (("from the start", range(4)), ("to the end", range(3, 8)), ("always", range(8))):
        frozen = [dict(item) for item in weights]
        for place in places:
            frozen[place]["head.weight"] = weights[places[0]]["head.weight"]
        findings, _ = audit.triaged(frozen, name.replace(" ", "-"))
        assert set(values(findings, "shared_tensors").values()) == {0.0}, name


def test_a_change_of_type_is_told_with_both_types(audit: Audit, network):
    weights = series_of_weights(network)
    weights[4] = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in weights[4].items()
    }
    findings, _ = audit.triaged(weights)
    drift = values(findings, "dtype_drift")
    assert [drift[step] for step in STEPS] == [0, 0, 0, 0, 9, 9, 0, 0]
    assert "features.0.bias: float32 to bfloat16" in row_at(findings, "dtype_drift", 40).reason


def test_a_run_of_few_checkpoints_has_no_score_and_says_why(audit: Audit, network):
    weights = series_of_weights(network)[:3]
    findings, view = audit.triaged(weights, steps=(0, 10, 20))
    rows = [row for row in findings.rows if row.metric == "misplaced_score"]
    assert {row.status for row in rows} == {"does_not_apply"}
    assert "has 3 checkpoints; 5 are needed" in rows[0].reason
    assert "five are needed" in triage.draw(view, triage.TriageOptions())[0].caution


def test_pictures_speak_of_this_run(audit: Audit, network):
    weights = series_of_weights(network)
    _, sound = audit.triaged(weights, "sound")
    _, wrong = audit.triaged([*weights[:2], weights[7], *weights[3:]], "wrong")
    options = triage.TriageOptions()
    figures = {view.run: triage.draw(view, options) for view in (sound, wrong)}
    assert [figure.key for figure in figures["sound"]] == ["path", "distances"]
    for first, second in zip(figures["sound"], figures["wrong"], strict=True):
        assert first.caution != second.caution
        assert first.practitioner != first.researcher
        assert re.match(r"<svg", first.svg)
    path = figures["wrong"][0]
    assert "Step 20 fits worst" in path.caution
    assert "1 repeat an earlier one" in path.caution
    assert "step 20 with the training log" in path.practitioner
    assert path.headline
    assert not figures["sound"][0].headline
    again = triage.draw(wrong, options)
    assert [figure.svg for figure in again] == [figure.svg for figure in figures["wrong"]]


def test_copies_across_runs_are_found_and_shared_starts_are_at_step_0(audit: Audit, network):
    first = series_of_weights(network, 0)
    second = [dict(first[0]), *series_of_weights(network, 1)[1:]]
    second[5] = first[2]
    runs = {"a": audit.series(first, "a"), "b": audit.series(second, "b")}
    findings = copies.compute(CohortContext(audit.store, runs), copies.CopiesOptions())
    found = {(row.run, row.step): (row.other_run, row.other_step) for row in findings.rows if row.value}
    assert found == {("a", 0): ("b", 0), ("b", 0): ("a", 0), ("a", 20): ("b", 50), ("b", 50): ("a", 20)}
    assert len(findings.rows) == 2 * len(STEPS)
    view = audit.view(copies.ANALYSIS, Unit("cohort", "", -1, "copies"), findings)
    (figure,) = copies.draw(view, copies.CopiesOptions())
    assert "4 of 16 checkpoints in 2 runs" in figure.caution
    assert "2 of them at step 0" in figure.caution
    alone = copies.compute(CohortContext(audit.store, {"a": runs["a"]}), copies.CopiesOptions())
    assert alone.rows == []


def test_intake_tells_what_a_file_holds_and_draws_what_broke(audit: Audit, network):
    weights = series_of_weights(network)
    weights[6]["head.weight"] = torch.full_like(weights[6]["head.weight"], float("nan"))
    weights[7]["extra"] = torch.ones(2)
    context = audit.series(weights)
    rows = []
    for step in STEPS:
        one = CheckpointContext(audit.store, context.subject, step, context.facts[step])
        findings = intake.compute(one, intake.IntakeOptions())
        rows.append((step, findings))
        assert {row.metric for row in findings.rows} == {metric.name for metric in intake.ANALYSIS.metrics}
    by_metric = {row.metric: row for row in rows[6][1].rows}
    assert by_metric["non_finite_count"].value == 18
    assert by_metric["non_finite_count"].reason == "head.weight"
    assert by_metric["parameter_count"].value == sum(item.numel() for item in network.parameters())
    trained = torch.cat([weights[0][name].flatten().double() for name, _ in network.named_parameters()])
    assert {row.metric: row.value for row in rows[0][1].rows}["parameter_norm"] == pytest.approx(
        float(trained.norm())
    )
    assert {row.metric: row.reason for row in rows[7][1].rows}["unexpected_keys"] == "extra"
    units = []
    for step, findings in rows:
        unit = Unit("checkpoint", "run", step, "intake")
        audit.view(intake.ANALYSIS, unit, findings)
        units.append(unit)
    view = View(audit.store, "run", "intake", "checkpoint", STEPS, audit.store.rows(units))
    (figure,) = intake.draw(view, intake.IntakeOptions())
    assert "1 of 8 checkpoints hold weights that are not finite, first at step 60" in figure.caution
    assert "before step 60" in figure.practitioner
    assert np.isfinite(figure.table["parameter_norm"]).all()


def test_no_text_serves_two_figures(audit: Audit, network):
    weights = series_of_weights(network)
    _, view = audit.triaged(weights)
    texts = []
    for figure in triage.draw(view, triage.TriageOptions()):
        texts += [figure.shows, figure.reading, figure.caution, figure.audience, figure.practitioner, figure.researcher]  # fmt: skip
    assert len(set(texts)) == len(texts)
