"""The pictures of drift: their words, their mosaics, and that inputs are shown only where they may be."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from stratascope.storage.probes import ProbeSpec
from stratascope.tasks.analysis import named
from stratascope.tasks.models import lenet
from stratascope.tasks.report.drawing import draw_analysis
from stratascope.tasks.report.drifted import drift_sentences
from stratascope.tasks.representation.drift_mosaics import chosen_samples
from stratascope.tasks.units import keep_probe

TEXTS = ("shows", "reading", "caution", "audience", "practitioner", "researcher")
STEPS = (0, 2, 4, 8, 12, 16, 20, 26, 32)


@pytest.fixture(scope="module")
def audit(lasting_audit):
    """A small convolutional network on its way, on pictures of digits, audited twice."""
    made = lasting_audit("stratascope.tasks.models:lenet", {"size": 8, "width": 2})
    spec = ProbeSpec(dataset="digits", split="test", limit=80)
    keep_probe(str(made.store.path), "digits", spec, str(made.folder), "digits")
    made.probes.append("digits")
    probe = made.subject.probes_of(made.store)["digits"]
    inputs, targets = (
        torch.from_numpy(np.asarray(probe.inputs[:])),
        torch.from_numpy(probe.targets.astype(np.int64)),
    )
    torch.manual_seed(0)
    network = lenet(size=8, width=2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            made.checkpoint(step, network)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    made.capture("decomposition", "outputs", layers=("conv2", "fc1"))
    made.analyse("decomposition")
    every = list(made.files)
    made.files = every[:-2]
    made.analyse("drift", rounds=20)
    made.files = every
    made.analyse("drift", rounds=20)
    return made


@pytest.fixture(scope="module")
def figures(audit):
    return {figure.key: figure for figure in audit.draw("drift")}


def test_every_picture_is_there(figures):
    whole = {
        "movement",
        "ranking",
        "to-first",
        "to-last",
        "churn",
        "transitions",
        "learning",
        "order",
        "forgotten",
    }
    assert {f"{name}-digits" for name in whole} <= set(figures)
    assert {"churned-digits-conv2", "churned-digits-fc1"} <= set(figures)
    assert {key for key, figure in figures.items() if figure.headline} == {"movement-digits", "ranking-digits"}


def test_every_picture_says_all_it_must_and_speaks_of_this_run(figures):
    for key, figure in figures.items():
        texts = [getattr(figure, name) for name in TEXTS]
        assert all(text.strip() and text.rstrip().endswith((".", "?")) for text in texts), key
        assert len(set(texts)) == len(TEXTS), key
        assert not any(re.search(r"\bnan\b|None|[{}]", text) for text in texts), key
        assert re.search(r"\d", figure.caution), key
        lengths = {len(values) for values in figure.table.values()}
        assert len(lengths) == 1
        assert lengths.pop() > 0


def test_what_is_filed_is_what_is_registered(audit):
    rows = audit.view("drift").rows
    registered = {metric.name: metric.unit for metric in named("drift").metrics}
    assert set(rows["metric"]) <= set(registered)
    assert all(set(rows[rows["metric"] == name]["unit"]) <= {unit} for name, unit in registered.items())


def test_mosaics_show_a_picture_for_each_sample(audit, figures):
    forgotten = figures["forgotten-digits"]
    events = audit.store.array("series/run/drift/digits/@output/forgetting_events")
    expected = min(12, int((events > 0).sum()))
    assert forgotten.svg.count("<image") == len(forgotten.table["sample_id"]) == expected
    assert forgotten.table["forgetting_events"] == sorted(events[events > 0].tolist(), reverse=True)[:expected]
    churned = figures["churned-digits-fc1"]
    samples = len(set(churned.table["sample_id"]))
    assert churned.svg.count("<image") == samples * 2 * 4
    # Each sample stands beside its neighbours before, and again beside those after.
    assert len(churned.table["neighbour"]) == samples * 2 * 10


def test_where_inputs_may_not_be_shown_ids_stand_in_their_place(audit):
    view = replace(audit.view("drift"), show_inputs=False)
    hidden = list(named("drift").draw(view, named("drift").options()))
    mosaics = [figure for figure in hidden if figure.key.startswith(("forgotten", "newly", "churned"))]
    assert len(mosaics) >= 3
    for figure in mosaics:
        assert "<image" not in figure.svg
        assert str(figure.table["sample_id"][0])[:5] in figure.svg


@pytest.mark.parametrize("show_inputs", [True, False])
def test_the_report_draws_inputs_only_where_it_is_told_to(audit, show_inputs: bool):
    draw_analysis(str(audit.store.path), "run", "drift", {}, show_inputs)
    folder = audit.store.path / "report" / ".figures" / "drift"
    drawn = [path.read_text() for path in folder.rglob("*forgotten*.svg")]
    assert len(drawn) == 1
    assert ("<image" in drawn[0]) == show_inputs


def test_the_most_telling_samples_come_first():
    predicted = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1]])
    here = {"predicted": predicted.T, "target": np.zeros(5, int), "forgetting_events": np.array([1, 1, 0, 0, 0])}
    assert chosen_samples("forgotten", here, 5)[0].tolist() == [0, 1]
    wrong, total = chosen_samples("newly_wrong", here, 1)
    # Sample 4 was right at three of the earlier checkpoints.
    assert (wrong.tolist(), total) == ([4], 1)
    right, total = chosen_samples("newly_right", here, 2)
    # Samples 0 and 3 were wrong at two, sample 2 at one.
    assert (right.tolist(), total) == ([0, 3], 3)


def test_the_overview_tells_what_drifted_since_the_audit_before(audit):
    rows = audit.view("drift").rows
    layers, answers = drift_sentences(rows[rows["status"] == "ok"])
    moved = rows[rows["part"] == "measure=cka;against=last_audit"]
    moved = moved[moved["metric"] == "layer_movement"].set_index("layer")["value"]
    assert layers.startswith(f"Layers of run on digits from step 20 to 32: {moved.idxmax()} moved most (1 − CKA ")
    assert f"{moved.idxmin()} least" in layers
    assert re.search(
        r"from step 20 to 32: [\d.]+% changed; of 80 samples \d+ became right and \d+ wrong\.$", answers
    )
    assert drift_sentences(rows[rows["part"] == ""]) == []
    # What an earlier audit had added is no news of a later one.
    later = rows.iloc[[0]].assign(
        step=99, part="measure=cka;against=last_audit", metric="movement_rank", layer="x", other_step=50
    )
    assert drift_sentences(pd.concat([rows, later])) == []
