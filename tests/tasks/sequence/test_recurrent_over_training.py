"""Memory over training, on networks whose time constants are known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray

from stratascope.tasks.sequence.recurrent_over_training import spread
from tests.tasks.sequence.remembering import CHARACTERS, holding, text_audit

UNITS = 24
MIDDLE = np.linspace(-1, 1, UNITS)


def gates(width: float) -> np.ndarray:
    """Forget gates of units whose time constants lie evenly, by ratio, from 5 / e^width to 5 · e^width."""
    return np.exp(-1 / (5 * np.exp(width * MIDDLE)))


@pytest.fixture(scope="module")
def audit(lasting_audit):
    arguments = CHARACTERS | {"width": UNITS}
    made = lasting_audit("stratascope.tasks.models:character_model", arguments, task="tokens")
    text_audit(made, {step: holding(gates(width)) for step, width in ((0, 0.05), (10, 0.5), (20, 2.0))})
    made.rows = made.analyse("recurrent_over_training", rounds=60)
    return made


def test_the_spread_is_that_of_the_time_constants_and_its_widening_is_told(audit):
    rows = audit.rows[audit.rows["metric"] == "time_constant_spread"]
    own = rows[rows["part"] == ""].set_index("step")
    for step, width in ((0, 0.05), (10, 0.5), (20, 2.0)):
        wanted = spread(-1 / np.log(gates(width)))
        assert wanted == pytest.approx(np.exp(1.6 * width), rel=1e-6)
        assert own.loc[step, "value"] == pytest.approx(wanted, rel=1e-3)
        assert own.loc[step, "low"] <= own.loc[step, "value"] <= own.loc[step, "high"]
    against = rows[rows["part"] == "against=first"].set_index("step")
    assert list(against.index) == [10, 20]
    assert (against["low"] > 1).all()
    assert against.loc[20, "value"] == pytest.approx(np.exp(1.6 * 1.95), rel=1e-3)


def test_units_with_a_long_memory_are_counted(audit):
    rows = audit.rows[audit.rows["metric"] == "long_memory_fraction"].set_index("step")
    assert rows.loc[0, "value"] == 0
    assert rows.loc[20, "value"] == pytest.approx((-1 / np.log(gates(2.0)) > 20).mean())


def test_all_that_was_filed_by_checkpoint_is_laid_out_by_step(audit):
    arrays = {
        path.rpartition("/")[2]: values for path, values in audit.view("recurrent_over_training").arrays().items()
    }
    assert arrays["time_constant"].shape == (3, UNITS)
    assert arrays["saturation"].shape == (3, 4, 2)
    assert arrays["radius"].shape == (3, 4)
    assert arrays["still"].tolist() == [0, 0, 0]
    xarray.open_datatree(audit.store.path / "archive.zarr", engine="zarr", consolidated=False)
    gradient = arrays["gradient_cell"]
    # Memory that grows is a gradient that reaches further back.
    assert (np.diff(gradient[:, -1] / gradient[:, 0]) > 0).all()


def test_the_figures_tell_the_widening(audit):
    figures = {figure.key.split("-")[0]: figure for figure in audit.draw("recurrent_over_training")}
    assert set(figures) == {"constants", "lags", "length", "saturation", "radius"}
    assert figures["constants"].headline
    assert "the distribution has widened" in figures["constants"].caution
    assert "None of the 24 units stands still" in figures["saturation"].caution
    for figure in figures.values():
        assert figure.svg
        assert any(letter.isdigit() for letter in figure.caution)
