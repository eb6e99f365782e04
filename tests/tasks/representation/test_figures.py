"""The figures: their words, their keys, and that they speak of this run."""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import replace
from string import Formatter

import numpy as np
import pytest

from stratascope.storage.units import Unit
from stratascope.tasks import representation
from stratascope.tasks.analysis import named
from stratascope.tasks.models import cifar_resnet
from stratascope.tasks.representation.embedding_drawing import colour_groups
from stratascope.tasks.representation.pictures import figure_key, grid_of, leading_probe

NAMES = ("outputs", "statistics", "gradients", "embedding", "triage")
TEXTS = ("shows", "reading", "caution", "audience", "practitioner", "researcher")
TABLES = {
    f"{module.name}.{key}": texts
    for module in pkgutil.iter_modules(representation.__path__)
    for key, texts in getattr(
        importlib.import_module(f"stratascope.tasks.representation.{module.name}"), "_WORDS", {}
    ).items()
}


@pytest.fixture(scope="module")
def figures(trained_audit):
    trained_audit.analyse("triage")
    return {name: trained_audit.draw(name) for name in NAMES}


def test_every_analysis_draws(figures):
    keys = {name: [figure.key for figure in found] for name, found in figures.items()}
    assert keys["outputs"] == [
        "accuracy", "loss", "confidence", "classes-test", "confusion-test", "classes-train", "confusion-train",
    ]  # fmt: skip
    assert sum(key.startswith("spread-") for key in keys["statistics"]) == 2 * 7
    assert {"activation_std-test", "dead_fraction-test", "sparsity-train", "weight_norm"} <= set(
        keys["statistics"]
    )
    assert keys["gradients"] == ["gradient-norm", "gradient-ratio-test", "gradient-ratio-train"]
    kinds = ("pca_2d", "pca_3d", "tsne_2d", "tsne_3d", "quality", "faithfulness", "price", "movement")
    assert [key.split("-")[0] for key in keys["embedding"]] == ["explorer", "explorer", *2 * kinds]


@pytest.mark.parametrize("name", NAMES[:4])
def test_what_is_filed_is_what_is_registered(trained_audit, name: str):
    rows = trained_audit.view(name).rows
    registered = {metric.name: metric.unit for metric in named(name).metrics}
    assert set(rows.metric) <= set(registered)
    for metric, unit in registered.items():
        # The gap between two losses has the unit of a loss, as its definition says.
        allowed = {unit, registered["loss"]} if metric == "generalization_gap" else {unit}
        assert set(rows[rows.metric == metric].unit) <= allowed, metric


def test_keys_are_safe_and_name_one_figure_each(figures):
    for found in figures.values():
        keys = [figure.key for figure in found]
        assert len(set(keys)) == len(keys)
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", key) for key in keys)
    assert figure_key("a", "b/c") != figure_key("a", "b:c")


def test_every_figure_says_all_it_must_and_speaks_differently_to_both_readers(figures):
    for found in figures.values():
        for figure in found:
            texts = [getattr(figure, name) for name in TEXTS]
            assert all(text.strip() and text.rstrip().endswith((".", "?")) for text in texts), figure.key
            assert len(set(texts)) == len(TEXTS), figure.key
            assert not any("{" in text or "nan" in text.split() for text in texts), figure.key


def test_no_text_serves_two_analyses(figures):
    owner: dict[str, str] = {}
    for name, found in figures.items():
        for text in {getattr(figure, field) for figure in found for field in TEXTS}:
            assert owner.setdefault(text, name) == name, text


def test_no_text_of_the_word_tables_stands_twice():
    texts = [text for words in TABLES.values() for text in words.values()]
    assert len(texts) == len(set(texts))
    assert len(TABLES) >= 18


@pytest.mark.parametrize("key", TABLES)
def test_each_caution_is_computed_from_the_run(key: str):
    words = TABLES[key]
    assert set(words) == set(TEXTS)
    assert {field for _, field, _, _ in Formatter().parse(words["caution"]) if field}
    assert words["practitioner"] != words["researcher"]


@pytest.mark.parametrize("name", ["outputs", "statistics", "gradients", "embedding"])
def test_cautions_change_with_the_numbers(trained_audit, figures, name: str):
    view = trained_audit.view(name)
    rows = view.rows.copy()
    rows["value"] = 0.8 * rows["value"].abs() ** 1.7 + 0.01
    rows["n"] += 7
    changed = list(named(name).draw(replace(view, rows=rows), named(name).options()))
    before = {figure.key: figure.caution for figure in figures[name]}
    for figure in changed:
        # These two are drawn from arrays, which stayed as they were.
        if not figure.key.startswith(("spread-", "confusion-")):
            assert figure.caution != before[figure.key], figure.key


def test_sliders_have_a_frame_for_each_step_and_solid_maps_name_theirs(figures):
    for figure in (*figures["outputs"], *figures["embedding"]):
        if figure.key.startswith(("confusion", "pca_2d", "tsne_2d")):
            assert [step for step, _ in figure.frames] == [0, 3, 10, 30]
            assert len({svg for _, svg in figure.frames}) == 4
        if figure.key.startswith(("pca_3d", "tsne_3d")):
            assert [frame["name"] for frame in figure.plotly["frames"]] == ["0", "3", "10", "30"]
            assert [trace["name"] for trace in figure.plotly["data"]] == ["ant", "bee", "a;b=c%"]


def test_every_figure_offers_its_numbers(figures):
    for found in figures.values():
        for figure in found:
            lengths = {len(values) for values in figure.table.values()}
            assert len(lengths) == 1, figure.key
            assert lengths.pop() > 0, figure.key


def test_drawing_twice_gives_the_same_bytes(trained_audit, figures):
    for name in ("outputs", "gradients"):
        again = trained_audit.draw(name)
        assert [(figure.svg, figure.frames) for figure in again] == [
            (figure.svg, figure.frames) for figure in figures[name]
        ]


def test_classes_keep_their_names_and_amounts_are_grouped():
    groups, names = colour_groups(np.array([2, 0, 2]), ("a", "b", "c"))
    assert groups.tolist() == [2, 0, 2]
    assert names == {0: "a", 2: "c"}
    groups, names = colour_groups(np.arange(100.0), ())
    assert np.bincount(groups).tolist() == [20] * 5
    assert names[0] == "up to 19.8"
    assert names[4] == "above 79.2"
    assert colour_groups(None, ()) == (None, {})


def test_a_grid_has_a_place_for_every_step_and_nothing_where_nothing_is_known(trained_audit):
    view = trained_audit.view("outputs")
    rows = view.metric("accuracy", probe="test", part="class=ant")
    grid, steps = grid_of(rows[rows.step != 3], "part", ["class=ant", "class=absent"])
    assert steps == [0, 10, 30]
    assert np.isfinite(grid[0]).all()
    assert np.isnan(grid[1]).all()


def test_a_figure_over_all_probes_speaks_of_the_test_probe(trained_audit):
    assert leading_probe(trained_audit.view("outputs"), ["train", "test"]) == "test"


def test_layers_stand_in_the_order_of_execution_though_two_probes_and_blocks_have_them(trained_audit):
    import pandas as pd

    view = trained_audit.view("statistics")
    assert len(view.probes) == 2
    captured = [layer for layer in view.store.manifest(Unit("checkpoint", "run", view.steps[-1], "capture")).summary["test"]["layers"] if layer != "@output"]  # fmt: skip
    assert len(captured) > 3
    names = ["unknown", *captured[::-1], "another"]
    rows = pd.DataFrame({"metric": "made_up", "layer": names, "status": "ok"})
    assert replace(view, rows=rows).layers("made_up") == [*captured, "another", "unknown"]


def test_a_block_stands_after_the_layers_within_it(little_audit):
    import pandas as pd

    arguments = {"depth": 8, "width": 4, "channels": 1}
    audit = little_audit("stratascope.tasks.models:cifar_resnet", arguments)
    audit.probe("test", inputs=np.zeros((4, 1, 8, 8), np.float32), targets=np.arange(4))
    audit.checkpoint(0, cifar_resnet(**arguments))
    audit.capture("outputs")
    names = ["fc", "layer1", "layer2.0.conv1", "layer1.0.conv2", "layer2", "conv1"]
    rows = pd.DataFrame({"metric": "made_up", "layer": names, "status": "ok"})
    ordered = replace(audit.view("outputs"), rows=rows).layers("made_up")
    assert ordered == ["conv1", "layer1.0.conv2", "layer1", "layer2.0.conv1", "layer2", "fc"]
