"""What is said of weights and importance: that nothing was measured, or this run's own numbers."""

import pytest

from stratascope.storage.ledger import Row
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.contexts import View
from stratascope.tasks.sequence.importance_note import ablation_effects, importance_note


@pytest.fixture
def view_with(tmp_path):
    """Makes a view of a store in which heads of layer `a` were ablated at the steps of `effects`."""

    def make(effects: dict[int, dict[int, float]]) -> View:
        store = Store.open(tmp_path / "store", create=True)
        for run, step, found in [("run", step, found) for step, found in effects.items()] + [
            ("other", 20, {0: 9.0})
        ]:
            with store.stage(Unit("checkpoint", run, step, "head_importance"), "", {}) as staged:
                rows = [Row("head_importance_ablation", value, probe="test", layer="a", part=f"head={head}") for head, value in found.items()]  # fmt: skip
                staged.write_rows(
                    [*rows, Row("head_importance_ablation", 7.0, probe="test", layer="a", part="all")]
                )
                staged.commit()
        return View(store, "run", "attention_over_training", "series", (0, 10, 20), store.rows([]))

    return make


def test_without_ablation_it_says_that_nothing_was_measured(view_with):
    assert "not measured" in importance_note(view_with({}), "test", {("a", 0): 0.5})


def test_the_last_step_counts_and_its_numbers_are_told(view_with):
    view = view_with({0: {0: 5.0, 1: 1.0}, 10: {0: 0.1, 1: 0.7, 2: 0.3, 3: 0.0}})
    assert ablation_effects(view, "test") == {("a", 0): 0.1, ("a", 1): 0.7, ("a", 2): 0.3, ("a", 3): 0.0}
    told = importance_note(
        view, "test", {("a", 0): 0.2, ("a", 1): 0.9, ("a", 2): 0.5, ("a", 3): 0.1, ("b", 0): 1.0}
    )
    assert "at most 0.7 (head 1 of a)" in told
    assert "Over 4 heads the rank correlation of the score with that is 1.00." in told
    assert "correlation" not in importance_note(view, "test", {("a", 0): 0.5, ("a", 1): 0.5})
    assert "at most 0.7 (head 1 of a)" in importance_note(view, "test", {})
