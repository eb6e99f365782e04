"""A whole comparison in one process: what is filed, that it is filed once, and what cannot be compared."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from stratascope.errors import AnalysisError, ConfigurationError
from stratascope.flows.compare_config import load_comparison, sides
from stratascope.flows.compare_plan import make_comparison_plan
from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from stratascope.tasks.comparison.metrics import COMPARISON_METRICS, TRADITIONAL_METRICS
from stratascope.tasks.comparison.page import notes, sentences, summaries
from stratascope.tasks.comparison.spec import METHODS
from tests.tasks.comparison.conftest import compare_here, write_configuration

OWN = ("comparison:width", *(f"traditional:width:{method}" for method in METHODS))


@pytest.fixture
def store(compared: Path) -> Store:
    return Store.open(compared / "store")


def test_the_ledger_has_the_difference_of_the_runs_own_accuracies(store):
    rows = store.rows()
    accuracy = rows[
        (rows["metric"] == "accuracy") & (rows["part"] == "") & (rows["step"] == 120) & (rows["probe"] == "test")
    ]
    a, b = (accuracy.loc[accuracy["run"].str.startswith(kind), "value"].to_numpy() for kind in ("wide", "narrow"))
    filed = rows[(rows["analysis"] == "comparison:width") & (rows["probe"] == "test")]
    (difference,) = filed[(filed["metric"] == "mean_difference") & (filed["part"] == "of=accuracy")].itertuples()
    reference = stats.ttest_ind(a, b, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert difference.value == pytest.approx(a.mean() - b.mean())
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    (p,) = filed[(filed["metric"] == "p_value") & (filed["part"] == "of=accuracy;test=t_test")]["value"]
    assert p == pytest.approx(reference.pvalue)
    assert set(filed["metric"]) <= {metric.name for metric in COMPARISON_METRICS}
    assert not filed[filed["status"] != "ok"]["reason"].eq("").any()


def test_the_correction_is_over_all_that_was_tested(store):
    found, _ = summaries(store, "width")
    p = [item["p"] for item in found["metrics"] if item["p"] is not None]
    assert found["family"] == len(p) > 5
    smallest = min((item for item in found["metrics"] if item["p"] is not None), key=lambda item: item["p"])
    assert smallest["adjusted_p"] == pytest.approx(min(1.0, min(p) * len(p)))
    assert all(item["reason"] for item in found["metrics"] if item["p"] is None)


def test_the_counts_of_samples_fit_the_archive(store):
    found, _ = summaries(store, "width")
    samples = found["samples"]
    targets = store.array("probes/test/target")
    answers = [store.array(f"cohort/comparison:width/samples/answer_{side}") for side in "ab"]
    assert samples["only_a_right"] == ((answers[0] == targets) & (answers[1] != targets)).sum()
    assert samples["both_right"] + samples["only_a_right"] + samples["only_b_right"] + samples["both_wrong"] == 200
    loss = [store.array(f"cohort/comparison:width/samples/loss_{side}").mean() for side in "ab"]
    assert samples["loss"]["difference"]["value"] == pytest.approx(loss[0] - loss[1])
    rows = store.rows()
    mean = rows[
        (rows["metric"] == "loss") & (rows["step"] == 120) & (rows["probe"] == "test") & (rows["part"] == "")
    ]
    assert loss[0] == pytest.approx(mean[mean["run"].str.startswith("wide")]["value"].mean(), rel=1e-6)


def test_traditional_methods_answer_the_same_samples_on_every_kind_of_features(store):
    _, methods = summaries(store, "width")
    assert len(methods) == 4
    for item in methods.values():
        kinds = [(result["features"], result["run"]) for result in item["results"]]
        runs = [("network", f"{kind}-{seed}") for kind in ("wide", "narrow") for seed in range(3)]
        assert kinds == [("raw", ""), ("pca", ""), *runs]
        assert {result["n"] for result in item["results"]} == {item["test_samples"]} == {200}
        assert [result["dimensions"] for result in item["results"]] == [64, 12, 24, 24, 24, 4, 4, 4]
        assert all(result["low"] <= result["accuracy"] <= result["high"] for result in item["results"])
        # Four numbers a sample hold less than the pixels do.
        assert item["gains"][1]["gain"]["high"] < 0
    filed = store.rows()
    filed = filed[filed["analysis"].str.startswith("traditional:")]
    assert set(filed["metric"]) == {metric.name for metric in TRADITIONAL_METRICS}


def test_the_second_time_nothing_is_computed_and_another_seed_computes_again(compared, tmp_path):
    shutil.copytree(compared, tmp_path / "here")
    config = tmp_path / "here" / "compare.yaml"
    plan = make_comparison_plan(config, [])
    assert not plan.outstanding()
    assert {item.status for item in compare_here(config)} == {"cached"}
    assert len(make_comparison_plan(config, ["seed=1"]).outstanding()) == 5
    # The traditional methods do not depend on how metrics are corrected.
    changed = make_comparison_plan(config, ["correction=benjamini_hochberg"]).outstanding()
    assert [item.unit.analysis for item in changed] == ["comparison:width"]
    assert verify(plan.store) == []


def test_the_same_comparison_elsewhere_gives_the_same_bytes(compared, tmp_path):
    shutil.copytree(compared, tmp_path / "here")
    store = Store.open(tmp_path / "here" / "store")
    folders = [f"archive.zarr/cohort/{name}" for name in OWN]
    files = [f"ledger/_cohort/{name}.parquet" for name in OWN]
    before = bytes_of(store.path, [*folders, *files])
    for name in OWN:
        shutil.rmtree(store.path / "archive.zarr" / "cohort" / name)
        (store.path / "ledger" / "_cohort" / f"{name}.parquet").unlink()
        (store.path / "manifests" / "_cohort" / f"{name}.json").unlink()
    assert {item.status for item in compare_here(tmp_path / "here" / "compare.yaml")} == {"computed"}
    assert bytes_of(store.path, [*folders, *files]) == before


def bytes_of(root: Path, places: list[str]) -> dict[str, bytes]:
    found = [path for place in places for path in ((root / place), *(root / place).rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def test_one_run_a_side_is_no_replication_and_says_so(compared, tmp_path):
    shutil.copytree(compared, tmp_path / "here")
    config = write_configuration(
        tmp_path / "here",
        name="single",
        groups={"A": {"runs": ["wide-0"]}, "B": {"runs": ["narrow-0"]}},
        traditional=None,
    )
    config.write_text(config.read_text() + "traditional: null\n")
    assert [item.status for item in compare_here(config)] == ["computed"]
    found, methods = summaries(Store.open(tmp_path / "here" / "store"), "single")
    assert not methods
    assert not found["replicated"]
    assert {item["differs"] for item in found["metrics"]} == {None}
    assert all("fewer than two runs" in item["reason"] for item in found["metrics"])
    assert found["samples"]["accuracy"]["mcnemar"]["p"] < 0.05
    assert found["samples"]["loss"]["difference"]["low"] is not None
    assert "no replication" in notes(found, [])[0]
    assert any("not tested" in text for text in sentences(found))


def test_without_a_training_probe_the_methods_do_not_apply(compared, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(compared, folder)
    config = write_configuration(folder, name="untaught", traditional={"methods": ["rbf_svm"]})
    text = (folder / "audit.yaml").read_text()
    (folder / "audit.yaml").write_text(text.replace("split: train", "split: train\n    role: shifted"))
    outcomes = compare_here(config)
    assert [item.status for item in outcomes] == ["computed", "computed"]
    _, methods = summaries(Store.open(folder / "store"), "untaught")
    (method,) = methods.values()
    assert "no probe has the role `train`" in method["reason"]


def test_best_takes_each_runs_own_best_step_and_a_number_must_be_there(compared):
    config = compared / "compare.yaml"
    plan = make_comparison_plan(config, ["step=best"])
    rows = plan.store.rows()
    rows = rows[
        (rows["metric"] == "accuracy") & (rows["part"] == "") & (rows["probe"] == "test") & (rows["step"] >= 0)
    ]
    for group in plan.assignments[0].groups:
        for run, step in group.runs:
            mine = rows[rows["run"] == run].sort_values("step")
            assert step == mine["step"].iloc[int(mine["value"].argmax())]
    assert make_comparison_plan(config, ["step=0"]).assignments[0].groups[0].runs[0] == ("wide-0", 0)
    with pytest.raises(ConfigurationError, match="no audited step 41; it has 0, 120"):
        make_comparison_plan(config, ["step=41"])


def test_bad_configurations_are_refused_with_the_thing_at_fault(compared, tmp_path):
    config = compared / "compare.yaml"
    for override, words in (
        ("grups={}", "no key 'grups'. Did you mean 'groups'"),
        ("traditional.methds=[]", "Did you mean 'methods'"),
        ("probe=tset", "no probe 'tset'; it has test, train. Did you mean 'test'"),
        ("traditional.train_probe=test", "also the probe that is compared on"),
        ("name=../up", "not allowed"),
        ("confidence=95", "less than 1"),
        ("groups={A: {runs: [x]}}", "at least 2"),
        ("audit=nowhere.yaml", "cannot be read"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            load_comparison(config, [override])
        assert words in str(caught.value), override
    settings, _, _ = load_comparison(config, [])
    with pytest.raises(ConfigurationError, match="'narrow-\\*' matches no run"):
        sides(settings, ["wide-0", "wide-1"])
    settings, _, _ = load_comparison(config, ["groups={A: {runs: ['*']}, B: {runs: ['narrow-*']}}"])
    with pytest.raises(ConfigurationError, match="both sides"):
        sides(settings, ["wide-0", "narrow-0"])
    settings, _, _ = load_comparison(config, ["pair=true"])
    with pytest.raises(ConfigurationError, match="2 and 1 runs"):
        sides(settings, ["wide-0", "wide-1", "narrow-0"])


def test_a_group_without_checkpoints_is_named(compared, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(compared, folder)
    shutil.rmtree(folder / "store")
    Store.open(folder / "store", create=True)
    with pytest.raises(AnalysisError, match="group 'A': none of its runs"):
        make_comparison_plan(folder / "compare.yaml", [])


def test_numbers_of_a_layer_are_compared_under_its_alias(compared, tmp_path):
    """The rows of a layer are made up here; the alias is the one that the capture resolved."""
    from stratascope.storage.ledger import Row
    from stratascope.storage.units import Unit

    folder = tmp_path / "here"
    shutil.copytree(compared, folder)
    store = Store.open(folder / "store")
    for kind in ("wide", "narrow"):
        for seed in range(3):
            unit = Unit("checkpoint", f"{kind}-{seed}", 120, "statistics")
            value = seed + (10.0 if kind == "wide" else 0.0)
            with store.stage(unit, "x", {}) as staged:
                staged.write_rows(
                    [
                        Row("sparsity", value, layer="fc2:input", probe="test"),
                        Row("sparsity", value, layer="fc1", probe="test"),
                    ]
                )
                staged.commit()
    compare_here(folder / "compare.yaml")
    found, _ = summaries(store, "width")
    (item,) = [item for item in found["metrics"] if item["metric"] == "sparsity"]
    assert item["layer"] == "@last_linear:input"
    assert item["difference"]["value"] == pytest.approx(10)
    assert np.isfinite(item["adjusted_p"])
    assert math.isfinite(item["effect"]["low"])
