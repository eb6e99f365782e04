"""Telling samples by hand, nearest training samples against plain sorting, and a real little run."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.tasks.analysis import named
from stratascope.tasks.vision.telling_samples import (
    moved_probability,
    nearest_others,
    probabilities,
    telling_samples,
)

NOW = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.51, 0.49], [0.95, 0.05]])
TARGETS = np.array([0, 1, 1, 0, 1])


def test_each_kind_by_hand():
    rows, values = telling_samples("surely_right", NOW, TARGETS, None, 2)
    assert rows.tolist() == [0, 2]
    assert values.tolist() == [0.9, 0.8]
    assert telling_samples("surely_wrong", NOW, TARGETS, None, 9)[0].tolist() == [4, 1]
    assert telling_samples("undecided", NOW, TARGETS, None, 2)[0].tolist() == [3, 1]
    before = NOW.copy()
    before[1], before[3] = [0.1, 0.9], [0.5, 0.5]
    rows, values = telling_samples("changed_since_first", NOW, TARGETS, before, 9)
    assert rows.tolist() == [1, 3]
    np.testing.assert_allclose(values, [0.5, 0.01])
    assert not len(telling_samples("changed_since_previous", NOW, TARGETS, None, 9)[0])
    assert moved_probability(np.eye(2), np.eye(2)[::-1]).tolist() == [1, 1]


def test_probabilities_of_huge_scores_are_finite():
    np.testing.assert_allclose(probabilities(np.array([[1e4, 0.0], [0.0, 0.0]])), [[1, 0], [0.5, 0.5]])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_nearest_are_those_of_plain_sorting(distance: str):
    generator = np.random.default_rng(0)
    values, others = generator.normal(size=(9, 5)), generator.normal(size=(20, 5))
    order, far = nearest_others(values, others, 4, distance)
    for row, value in enumerate(values):
        if distance == "cosine":
            every = 1 - others @ value / np.linalg.norm(others, axis=1) / np.linalg.norm(value)
        else:
            every = np.linalg.norm(others - value, axis=1)
        assert order[row].tolist() == np.argsort(every)[:4].tolist()
        np.testing.assert_allclose(far[row], np.sort(every)[:4], atol=1e-9)


@pytest.fixture(scope="module")
def shown(pictured_audit):
    return pictured_audit, pictured_audit.analyse("examples", pictures=4)


def test_a_run_has_all_kinds_at_all_steps(shown):
    audit, rows = shown
    nearest = rows[(rows.metric == "nearest_same_class_fraction") & (rows.status == "ok")]
    assert nearest.step.tolist() == [0, 10, 40]
    view = audit.view("examples")
    arrays = view.arrays()
    place = next(name.removesuffix("/nearest") for name in arrays if name.endswith("/nearest"))
    own, others = (
        dict(zip(view.probes[name].sample_id.tolist(), view.probes[name].targets.tolist(), strict=True))
        for name in ("test", "train")
    )
    near = [
        [others[arrays[f"{place}/train_sample_id"][other]] for other in line]
        for line in arrays[f"{place}/nearest"][-1]
    ]
    mine = np.array([own[name] for name in arrays[f"{place}/sample_id"].tolist()])
    assert nearest.value.iloc[-1] == pytest.approx((np.array(near) == mine[:, None]).mean())
    assert (arrays["test/changed_since_first"][0] == -1).all()
    assert (arrays["test/surely_right"][-1] >= 0).all()
    right = arrays["test/predicted"][-1] == arrays["test/target"]
    assert right[arrays["test/surely_right"][-1]].all()
    sure = rows[(rows.metric == "sure_fraction") & (rows.probe == "test") & (rows.step == 40) & (rows.part == "answer=right")]  # fmt: skip
    assert sure.n.iloc[0] == right.sum()


def test_its_mosaics_slide_over_the_steps_and_hide_what_may_not_be_shown(shown):
    audit, _ = shown
    figures = {figure.key: figure for figure in audit.draw("examples")}
    assert set(figures) == {"telling-test", "telling-train", "nearest-same-class", "nearest-test-train"}
    assert [step for step, _ in figures["telling-test"].frames] == [0, 10, 40]
    assert figures["nearest-test-train"].frames[-1][1].count("<image") == 4 * 6
    hidden = audit.view("examples")
    hidden.show_inputs = False
    analysis = named("examples")
    for figure in analysis.draw(hidden, analysis.options()):
        assert not any("<image" in svg for _, svg in figure.frames)


def test_regression_and_no_training_probe_say_so(little_audit):
    from stratascope.tasks.models import mlp

    audit = little_audit(args={"inputs": 4, "widths": [3], "outputs": 1}, task="regression", loss="mse")
    audit.probe("test", inputs=np.eye(4, dtype=np.float32), targets=np.arange(4.0, dtype=np.float32)[:, None])
    audit.checkpoint(0, mlp(inputs=4, widths=[3], outputs=1))
    audit.capture("examples")
    rows = audit.analyse("examples").set_index("metric")
    assert "told of classes only" in rows.loc["sure_fraction"].reason
    assert "no probe with role `train`" in rows.loc["nearest_same_class_fraction"].reason
