"""Similarity between runs of different architectures on one probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stratascope.errors import DoesNotApply
from stratascope.storage.checkpoint_files import CheckpointFile, RunSource
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import named
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.contexts import CohortContext, SeriesContext, Subject, View
from stratascope.tasks.models import lenet, mlp
from stratascope.tasks.representation.similarity_between_runs import BetweenRunsOptions, compute
from stratascope.tasks.representation.similarity_measures import MEASURES, cka
from stratascope.tasks.representation.similarity_sides import Side
from stratascope.tasks.units import Assignment, compute_unit, facts_identity, read_file

FAST = {"bootstrap": 6, "permutations": 4}
MLP = ("stratascope.tasks.models:mlp", {"inputs": 64, "widths": [12, 6], "outputs": 3})
LENET = ("stratascope.tasks.models:lenet", {"size": 8, "width": 2, "outputs": 3})


class Runs:
    """Several runs in one store, each captured and decomposed."""

    def __init__(self, audit) -> None:
        self.audit = audit
        self.subjects: list[Subject] = []
        self.files: list[CheckpointFile] = []

    def add(self, run: str, model: tuple[str, dict], networks: dict[int, torch.nn.Module]) -> None:
        store, folder = self.audit.store, self.audit.folder
        source = RunSource(name=run, checkpoints="*", model={"factory": model[0], "args": model[1]})
        subject = Subject(str(store.path), run, tuple(self.audit.probes), source, str(folder))
        self.subjects.append(subject)
        for step, network in networks.items():
            path = folder / f"{run}-{step}.safetensors"
            save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
            file = CheckpointFile(run, step, path, "safetensors", (path,))
            digest = read_file(str(store.path), file, source, str(folder), facts_identity(source))[
                "weights_digest"
            ]
            self.files.append(file)
            for name in ("capture", "decomposition"):
                unit = Unit("checkpoint", run, step, name)
                outcome = compute_unit(Assignment(unit, name, {"weights": digest}, (subject,), (file,), capture=CaptureSpec()))  # fmt: skip
                assert outcome.status == "computed", outcome.reason

    def analyse(self, **options):
        unit = Unit("cohort", "", -1, "similarity_between_runs")
        assignment = Assignment(unit, str(options), {}, tuple(self.subjects), tuple(self.files), options=options)
        outcome = compute_unit(assignment)
        assert outcome.status == "computed", outcome.reason
        return self.audit.store.rows([unit])

    def features(self, run: str, step: int, layer: str) -> np.ndarray:
        return self.audit.store.array(f"runs/{run}/{step:012d}/activations/probe/{layer}/pooled")


def seeded(build, args: dict, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(**args)


@pytest.fixture
def runs(little_audit):
    audit = little_audit()
    targets = np.arange(45) % 3
    inputs = np.random.default_rng(0).normal(size=(45, 1, 8, 8)) + targets[:, None, None, None]
    audit.probe("probe", inputs=inputs.astype(np.float32), targets=targets)
    made = Runs(audit)
    made.add("wide", MLP, {0: seeded(mlp, MLP[1], 0), 4: seeded(mlp, MLP[1], 1)})
    made.add("deep", LENET, {0: seeded(lenet, LENET[1], 2), 9: seeded(lenet, LENET[1], 3)})
    return made


def test_every_layer_of_a_run_is_held_against_every_layer_of_another_architecture(runs):
    rows = runs.analyse(**FAST)
    assert set(rows.status) == {"ok"}
    place = "cohort/similarity_between_runs/probe/cka/wide/deep/layer_by_layer"
    dims, shape, _, about = runs.audit.store.array_info(place)
    assert dims == ("layer", "other_layer")
    assert shape == (len(about["layers"]), len(about["other_layers"]))
    assert (about["step"], about["other_step"]) == (4, 9)
    values = runs.audit.store.array(place)
    expected = cka(Side.of(runs.features("wide", 4, "fc1")), Side.of(runs.features("deep", 9, "conv1")))
    assert values[about["layers"].index("fc1"), about["other_layers"].index("conv1")] == pytest.approx(expected, abs=1e-5)  # fmt: skip
    between = rows[(rows.metric == "cka") & (rows.part == "against=run")]
    assert len(between) == values.size
    assert set(between.run) == {"wide"}
    assert set(between.other_run) == {"deep"}
    assert set(between.other_step) == {9}
    sure = between[between.low.notna()]
    assert {("fc1", "fc1"), ("fc2", "fc2")} <= set(zip(sure.layer, sure.other_layer, strict=True))
    assert set(sure.layer) == set(between.layer)
    assert (rows[rows.part == "against=run;null=permuted"].n == 45).all()


def test_layers_of_one_name_are_followed_over_the_steps_that_both_runs_have(runs):
    rows = runs.analyse(**FAST)
    course = rows[(rows.metric == "cka") & (rows.part == "against=same_step")]
    assert set(course.step) == {0}
    assert set(course.other_step) == {0}
    assert {"fc1", "fc2"} <= set(course.layer)
    assert (course.layer == course.other_layer).all()


def test_a_run_is_its_own_copy_and_prediction_goes_both_ways(runs):
    runs.add("copy", MLP, {4: seeded(mlp, MLP[1], 1)})
    rows = runs.analyse(measures=("cka", "linear_predictivity"), bootstrap=0, permutations=0)
    twins = rows[(rows.run == "wide") & (rows.other_run == "copy") & (rows.part == "against=run") & (rows.layer == rows.other_layer)]  # fmt: skip
    np.testing.assert_allclose(twins[twins.metric == "cka"].value, 1, atol=1e-5)
    own = rows[(rows.metric == "linear_predictivity") & (rows.layer == "fc2") & (rows.other_layer == "fc1") & (rows.other_run == "deep")].set_index("part").value  # fmt: skip
    here, there = Side.of(runs.features("wide", 4, "fc2")), Side.of(runs.features("deep", 9, "fc1"))
    predict = MEASURES["linear_predictivity"].compare
    # Here all components are kept, there those that `lost_gram` asks for.
    assert own["against=run"] == pytest.approx(predict(here, there), abs=1e-3)
    assert own["against=run;direction=from_other"] == pytest.approx(predict(there, here), abs=1e-3)
    assert abs(predict(here, there) - predict(there, here)) > 0.01


def test_one_run_alone_has_nothing_to_be_compared_with(runs):
    series = SeriesContext(runs.audit.store, runs.subjects[0], (0, 4))
    with pytest.raises(DoesNotApply, match="one run only"):
        compute(CohortContext(runs.audit.store, {"wide": series}), BetweenRunsOptions())


def test_the_pictures_name_both_runs_and_speak_of_their_numbers(runs):
    runs.add("later", MLP, {0: seeded(mlp, MLP[1], 7), 4: seeded(mlp, MLP[1], 8)})
    rows = runs.analyse(**FAST)
    view = View(runs.audit.store, "", "similarity_between_runs", "cohort", (), rows)
    analysis = named("similarity_between_runs")
    figures = {figure.key: figure for figure in analysis.draw(view, analysis.options())}
    assert {"between-cka-probe-wide-deep", "between-cka-probe-wide-later", "course-cka-probe-wide-later"} <= set(figures)  # fmt: skip
    for figure in figures.values():
        assert figure.svg.startswith("<svg")
        assert "nan" not in figure.caution
        assert "wide" in figure.title + figure.shows or "deep" in figure.title
