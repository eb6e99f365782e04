"""A training's trace, whatever wrote it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from stratascope.errors import ConfigurationError
from stratascope.storage.recorded_traces import rates_after, recorded_trace
from stratascope.storage.traces import write_trace


def test_all_kinds_of_files_tell_the_same(tmp_path):
    entries = [{"step": 2, "loss": 0.5, "lr": 0.1, "grad_norm": 3.0}, {"step": 1, "loss": 0.75, "lr": 0.2, "grad_norm": 2.0}]  # fmt: skip
    pd.DataFrame(entries).to_csv(tmp_path / "trace.csv", index=False)
    pd.DataFrame(entries).to_parquet(tmp_path / "trace.parquet")
    (tmp_path / "trace.jsonl").write_text("\n".join(json.dumps(item) for item in entries))
    history = [{"step": 2, "loss": 0.5, "learning_rate": 0.1, "grad_norm": 3.0}, {"step": 2, "eval_loss": 9.0}, {"step": 1, "loss": 0.75, "learning_rate": 0.2, "grad_norm": 2.0}]  # fmt: skip
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    for name in ("trace.csv", "trace.parquet", "trace.jsonl", "trainer_state.json"):
        found = recorded_trace(tmp_path / name)
        known = np.isfinite(found["loss"])
        assert found["step"][known].tolist() == [1, 2]
        assert found["loss"][known].tolist() == [0.75, 0.5]
        assert found["rate"][known].tolist() == [0.2, 0.1]
        assert found["gradient_norm"][known].tolist() == [2.0, 3.0]


def test_our_own_trace_has_the_norm_from_its_square_and_rates_of_the_updates_that_follow(tmp_path):
    rows = [{"step": 0}, {"step": 1, "rate": 0.5, "gradient_norm_squared": 16.0}, {"step": 2, "rate": 0.25, "gradient_norm_squared": 9.0}]  # fmt: skip
    write_trace(tmp_path / "trace.parquet", rows)
    found = recorded_trace(tmp_path / "trace.parquet")
    np.testing.assert_array_equal(found["gradient_norm"], [np.nan, 4, 3])
    assert rates_after(found, [0, 1, 2, 9]).tolist() == [0.5, 0.25, 0.25, 0.25]
    assert np.isnan(rates_after({"step": found["step"]}, [0])).all()


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="is not there"):
        recorded_trace(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(ConfigurationError, match=r"no column of steps .*; it has epoch, loss"):
        recorded_trace(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text("{nonsense\n")
    with pytest.raises(ConfigurationError, match=r"a\.jsonl cannot be read as jsonl"):
        recorded_trace(tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ConfigurationError, match="of no known kind"):
        recorded_trace(tmp_path / "a.txt")
