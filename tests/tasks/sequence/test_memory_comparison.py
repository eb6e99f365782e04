"""Runs side by side: two networks of known reach in one store."""

from __future__ import annotations

import numpy as np
import pytest
import xarray
from safetensors.torch import save_file

from stratascope.errors import DoesNotApply
from stratascope.storage.checkpoint_files import CheckpointFile, RunSource
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import named
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.contexts import CohortContext, SeriesContext, Subject, View
from stratascope.tasks.sequence.memory_comparison import MemoryComparisonOptions, compute, solved_from
from stratascope.tasks.units import Assignment, compute_unit, facts_identity, read_file
from tests.tasks.sequence.remembering import CHARACTERS, holding, texts

REACH = {"short": 0.5, "long": 0.9}


@pytest.fixture(scope="module")
def cohort(lasting_audit):
    """Two runs at two steps each, with their captures and gradients: (audit, subjects, files)."""
    audit = lasting_audit("stratascope.tasks.models:character_model", {}, task="tokens")
    inputs, targets = texts(8)
    audit.probe("test", inputs=inputs, targets=targets)
    subjects, files = [], []
    for run, keep in REACH.items():
        model = {"factory": "stratascope.tasks.models:character_model", "args": CHARACTERS | {"width": 4}}
        source = RunSource(name=run, checkpoints="*", model=model)
        subjects.append(Subject(str(audit.store.path), run, ("test",), source, str(audit.folder), "tokens"))
        for step in (0, 3):
            path = audit.folder / f"{run}-{step}.safetensors"
            save_file(dict(holding(np.full(4, keep), seed=step).state_dict()), path)
            files.append(CheckpointFile(run, step, path, "safetensors", (path,)))
            facts = read_file(str(audit.store.path), files[-1], source, str(audit.folder), facts_identity(source))
            for name in ("capture", "gradient_through_time"):
                requests = (named("memory_comparison").request(MemoryComparisonOptions()),)
                unit = Unit("checkpoint", run, step, name)
                weights = {"weights": facts["weights_digest"]}
                outcome = compute_unit(
                    Assignment(
                        unit,
                        name,
                        weights,
                        (subjects[-1],),
                        (files[-1],),
                        capture=CaptureSpec(),
                        requests=requests,
                    )
                )
                assert outcome.status == "computed", outcome.reason
    return audit, subjects, files


def test_the_run_with_the_longer_memory_has_more_gradient_left(cohort):
    audit, subjects, files = cohort
    unit = Unit("cohort", "", -1, "memory_comparison")
    outcome = compute_unit(
        Assignment(unit, "one", {}, tuple(subjects), tuple(files), options={"solved_above": 0.99})
    )
    assert outcome.status == "computed", outcome.reason
    rows = audit.store.rows([unit])
    shares = rows[(rows["metric"] == "gradient_share_at_lag") & (rows["step"] == 3)].set_index(["run", "part"])["value"]  # fmt: skip
    for run, keep in REACH.items():
        assert shares[run, "lag=7"] / shares[run, "lag=1"] == pytest.approx(keep**6, rel=1e-4)
    solved = rows[rows["metric"] == "solved_step"]
    assert set(solved["status"]) == {"does_not_apply"}
    assert solved["reason"].str.contains("accuracy ends at 0").all()
    xarray.open_datatree(audit.store.path / "archive.zarr", engine="zarr", consolidated=False)
    view = View(audit.store, "", "memory_comparison", "cohort", (), rows)
    figures = {figure.key.split("-")[0]: figure for figure in named("memory_comparison").draw(view, MemoryComparisonOptions())}  # fmt: skip
    assert set(figures) == {"gradient", "answers", "maps"}
    assert "in long (LSTM) and" in figures["gradient"].caution
    assert "0 of 2 end at 0.9 or above." in figures["answers"].caution


def test_one_run_alone_is_not_compared(cohort):
    audit, subjects, _ = cohort
    alone = CohortContext(audit.store, {"long": SeriesContext(audit.store, subjects[1], (0, 3))})
    with pytest.raises(DoesNotApply, match="fewer than two runs"):
        compute(alone, MemoryComparisonOptions())


def test_solved_is_solved_for_good():
    steps = [0, 1, 2, 3]
    assert solved_from(steps, np.array([0.1, 0.95, 0.5, 0.9]), 0.9) == 3
    assert solved_from(steps, np.array([0.9, 0.95, 0.9, 0.9]), 0.9) == 0
    assert solved_from(steps, np.array([0.1, 0.95, 0.9, 0.8]), 0.9) is None
    assert solved_from(steps, np.array([0.1, np.nan, 0.9, 0.9]), 0.9) == 2
