"""Probes: the same samples every time, known by their content."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from stratascope.errors import ConfigurationError, ProbeError
from stratascope.storage.datasets.dataset import Normalization
from stratascope.storage.probes import (
    Probe,
    ProbeSpec,
    build_probe,
    stratified_sample,
)

HERE = Path("unused")


def build(**spec) -> Probe:
    return build_probe("probe", ProbeSpec(**spec), HERE)


@pytest.fixture
def factory(tmp_path: Path):
    """Builds a probe from the code of a factory, in a module of its own."""
    counter = iter(range(100))

    def make(code: str, **spec) -> Probe:
        name = f"factory_{tmp_path.name.replace('-', '_')}_{next(counter)}"
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\ndef build(**options):\n    {code}\n")
        return build_probe("probe", ProbeSpec(factory=f"{name}:build", **spec), tmp_path)

    return make


# -- sampling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 50, 99, 100, 333])
def test_every_class_has_its_share_to_within_one_sample(limit: int):
    sizes = np.array([1, 10, 100, 222, 67])
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(5), sizes))
    rows = stratified_sample(targets, 400, limit, 3)
    assert len(rows) == limit
    assert (np.diff(rows) > 0).all()
    counts = np.bincount(targets[rows], minlength=5)
    exact = sizes * limit / 400
    assert (np.abs(counts - exact) < 1).all()
    # Largest remainders: no class that was rounded down had more left over than one that was rounded up.
    over = exact - np.floor(exact)
    up = counts > exact
    if up.any():
        assert over[up].min() >= over[~up].max() - 1e-9


def test_balanced_classes_are_drawn_exactly():
    targets = np.tile(np.arange(10), 30)
    rows = stratified_sample(targets, 300, 100, 0)
    np.testing.assert_array_equal(np.bincount(targets[rows]), np.full(10, 10))


def test_shares_are_exact_where_floating_point_would_round():
    targets = np.repeat([0, 1], [1, 48])
    for limit in range(1, 49):
        assert len(stratified_sample(targets, 49, limit, 0)) == limit


def test_another_seed_is_another_sample_and_the_same_one_is_not():
    targets = np.repeat(np.arange(10), 30)
    one, same, other = (stratified_sample(targets, 300, 50, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("targets", [None, np.linspace(0, 1, 60), np.zeros((60, 3), int)])
def test_what_has_no_classes_is_drawn_uniformly(targets):
    rows = np.concatenate([stratified_sample(targets, 60, 20, seed) for seed in range(60)])
    assert np.bincount(rows, minlength=60).min() > 5


def test_a_limit_beyond_the_data_takes_all():
    np.testing.assert_array_equal(stratified_sample(np.zeros(5, int), 5, 9, 0), np.arange(5))


# -- identity ------------------------------------------------------------------------------------------------


def test_one_spec_has_one_digest_in_any_process():
    code = (
        "from pathlib import Path; from stratascope.storage.probes import *;"
        "print(build_probe('other name', ProbeSpec(dataset='digits', limit=100, seed=4), Path('x')).digest)"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1] == build(dataset="digits", limit=100, seed=4).digest


def test_everything_that_a_network_or_a_reader_sees_is_part_of_the_digest():
    base = {"dataset": "digits", "limit": 100}
    others = [
        {"seed": 1}, {"limit": 101}, {"split": "all"}, {"role": "shifted"}, {"normalize": "unit"},
        {"normalize": "none"}, {"normalize": {"mean": 0.3, "std": 0.4}},
    ]  # fmt: skip
    digests = [build(**base).digest, *(build(**{**base, **other}).digest for other in others)]
    assert len(set(digests)) == len(digests)


def test_only_the_effect_of_a_normalisation_counts_not_how_it_was_written():
    written = build(dataset="digits", limit=50, normalize={"mean": [0.3053], "std": 0.3760, "scale": 16})
    assert written.digest == build(dataset="digits", limit=50).digest


def test_a_normalisation_counts_even_where_it_leaves_the_inputs_as_they_were(factory):
    code = "return {'inputs': np.zeros((4, 1, 2, 2)), 'denormalize': {'mean': %s, 'std': 1}}"
    assert factory(code % "0.0").digest != factory(code % "0.5").digest


@pytest.mark.parametrize(
    "change",
    ["'targets': np.array([0, 1, 2, 3])", "'sample_id': [5, 1, 2, 3]", "'class_names': ['x', 'y']", "'lengths': [3, 3, 3, 2]"],
)  # fmt: skip
def test_what_a_factory_adds_is_part_of_the_digest(factory, change: str):
    plain = "return {'inputs': np.ones((4, 3)), %s}"
    assert factory(plain % "").digest != factory(plain % change).digest


def test_the_role_follows_from_the_data_unless_it_is_given():
    assert ProbeSpec(dataset="digits").role == "test"
    assert ProbeSpec(dataset="digits", split="train").role == "train"
    assert ProbeSpec(dataset="cifar10_jpeg").role == "shifted"
    assert ProbeSpec(dataset="cifar10_jpeg", role="test").role == "test"
    again = ProbeSpec.model_validate(ProbeSpec(dataset="cifar10_jpeg").model_dump(mode="json"))
    assert again.role == "shifted"


# -- normalisation -------------------------------------------------------------------------------------------


def test_standard_means_a_mean_of_zero_and_a_spread_of_one():
    inputs = build(dataset="digits", split="all").inputs
    assert inputs.mean(dtype=np.float64) == pytest.approx(0, abs=5e-4)
    assert inputs.std(dtype=np.float64) == pytest.approx(1, abs=5e-4)


def test_channels_are_normalised_each_by_its_own_numbers(tmp_path: Path):
    raw = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", inputs=raw)
    mean, std = [0.1, 0.2, 0.3], [1.0, 2.0, 4.0]
    spec = ProbeSpec(dataset="npz", args={"path": "images.npz"}, normalize={"mean": mean, "std": std})
    probe = build_probe("probe", spec, tmp_path)
    for channel in range(3):
        expected = (raw[:, channel] / 255 - mean[channel]) / std[channel]
        np.testing.assert_allclose(probe.inputs[:, channel], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(probe.pictures_at(slice(0, 5)), raw.transpose(0, 2, 3, 1))


def test_a_series_is_normalised_by_its_columns(tmp_path: Path):
    (tmp_path / "series.csv").write_text("a,b\n" + "".join(f"{row},{2 * row}\n" for row in range(40)))
    spec = ProbeSpec(
        dataset="csv_series", args={"path": "series.csv", "history": 2, "horizon": 1}, split="all",
        normalize={"mean": [1, 2], "std": [2, 4]},
    )  # fmt: skip
    probe = build_probe("probe", spec, tmp_path)
    np.testing.assert_allclose(probe.inputs[..., 0], probe.inputs[..., 1])
    np.testing.assert_allclose(probe.inputs[3, :, 0], [1.0, 1.5])


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"dataset": "digits", "normalize": {"mean": [1, 2], "std": [1, 2]}}, "has 1 channels"),
        (
            {"dataset": "text", "args": {"path": "t"}, "split": "all", "normalize": {"mean": 1}},
            "applies to one array of measured values",
        ),
        (
            {"dataset": "text", "args": {"path": "t"}, "split": "all", "normalize": "unit"},
            "not known what is white",
        ),
    ],
)
def test_a_normalisation_that_cannot_be_is_refused(tmp_path: Path, spec: dict, reason: str):
    (tmp_path / "t").write_text("ab" * 200)
    with pytest.raises(ProbeError, match=reason):
        build_probe("probe", ProbeSpec(**spec), tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"std": 0}, {"std": []}, {"mean": "x"}, {"mean": float("nan")}, {"scale": 0}, {"sd": 1}]
)
def test_numbers_that_normalise_nothing_are_refused_with_the_configuration(wrong: dict):
    with pytest.raises(ValidationError):
        ProbeSpec(dataset="digits", normalize=wrong)


# -- factories -----------------------------------------------------------------------------------------------

PAIRS = "return [(np.full(3, i, np.float32), i % 2) for i in range(8)]"
CLASS = """class Items:
        def __len__(self): return 8
        def __getitem__(self, i):
            if i > 7: raise IndexError
            return np.full(3, i, np.float32), i % 2
    return Items()"""
SAME = {
    "a pair of arrays": "return np.repeat(np.arange(8, dtype=np.float32), 3).reshape(8, 3), np.arange(8) % 2",
    "a mapping": "return {'inputs': np.repeat(np.arange(8, dtype=np.float32), 3).reshape(8, 3), 'targets': np.arange(8) % 2}",
    "a list of pairs": PAIRS,
    "a map-style data set": CLASS,
    "tensors": "import torch; return torch.arange(8.).repeat_interleave(3).reshape(8, 3), torch.arange(8) % 2",
    "big-endian arrays": "return np.repeat(np.arange(8, dtype='>f4'), 3).reshape(8, 3), np.arange(8, dtype='>i8') % 2",
}


def test_all_that_a_factory_may_return_makes_the_same_probe(factory):
    probes = {case: factory(code, limit=4) for case, code in SAME.items()}
    assert len({probe.digest for probe in probes.values()}) == 1
    for probe in probes.values():
        np.testing.assert_array_equal(np.bincount(probe.targets), [2, 2])
        np.testing.assert_array_equal(probe.inputs[:, 0], probe.sample_id)


def test_only_wanted_items_of_a_map_style_data_set_are_asked_for(factory):
    code = """class Items:
        targets = [0] * 50 + [1] * 50
        classes = ['low', 'high']
        asked = []
        def __len__(self): return 100
        def __getitem__(self, i):
            self.asked.append(i)
            assert len(self.asked) <= 10, 'too many'
            return np.zeros(2, np.float32), self.targets[i]
    return Items()"""
    probe = factory(code, limit=10)
    assert len(probe) == 10
    assert probe.class_names == ("low", "high")


def test_arrays_without_targets_and_items_without_targets_are_probes_too(factory):
    assert factory("return np.ones((4, 3))").targets is None
    assert factory("return [np.ones(3), np.ones(3)]").targets is None


def test_texts_as_targets_become_classes(factory):
    probe = factory(
        "return {'inputs': np.ones((3, 2)), 'targets': ['b', 'a', 'b'], 'class_names': ['b', 'a', 'c']}"
    )
    np.testing.assert_array_equal(probe.targets, [0, 1, 0])
    assert probe.class_names == ("b", "a", "c")
    with pytest.raises(ProbeError, match="'q' is none of the `class_names`"):
        factory("return {'inputs': np.ones((1, 2)), 'targets': ['q'], 'class_names': ['b']}")


FAILING = {
    "an error of its own": ("raise RuntimeError('the disk is on fire')", "failed with RuntimeError: the disk is on fire"),
    "an error without words": ("raise KeyError", "failed with KeyError$"),
    "an unexpected argument": ("return build.missing", "failed with AttributeError"),
    "nothing": ("return None", "returned NoneType; expected"),
    "a text": ("return 'data'", "returned str; expected"),
    "three things": ("return np.ones(2), np.ones(2), np.ones(2)", "returned tuple; expected"),
    "fewer targets": ("return np.ones((3, 2)), np.ones(2)", "3 samples, but targets have shape"),
    "ids that are no numbers": ("return {'inputs': np.ones((1, 2)), 'sample_id': [0.5]}", "whole numbers or texts"),
    "fewer ids": ("return {'inputs': np.ones((3, 2)), 'sample_id': [1]}", "3 samples, but sample_id"),
    "equal ids": ("return {'inputs': np.ones((3, 2)), 'sample_id': [1, 2, 1]}", "ids are not unique"),
    "inputs of two lengths": ("return {'inputs': {'a': np.ones((3, 2)), 'b': np.ones((2, 2))}}", "3 samples, but input 'b'"),
    "a number": ("return {'inputs': 3}", "but inputs have shape|is empty"),
    "an unknown key": ("return {'inputs': np.ones((3, 2)), 'labels': []}", "'labels' is none of"),
    "no inputs": ("return {'targets': np.ones(3)}", "`inputs` are missing"),
    "ragged inputs": ("return [(np.ones(2), 0), (np.ones(3), 0)]", "same shape"),
    "texts as inputs": ("return {'inputs': np.array(['a', 'b'])}", "expected numbers"),
    "objects": ("return {'inputs': np.array([{}, {}])}", "expected numbers"),
    "no samples": ("return np.ones((0, 3)), np.ones(0)", "is empty"),
    "an empty list": ("return []", "is empty"),
    "a mask of another shape": ("return {'inputs': np.ones((3, 2)), 'mask': np.ones((3, 4))}", r"expected \(3, 2\)"),
    "lengths beyond the tokens": ("return {'inputs': np.ones((2, 4)), 'lengths': [4, 5]}", "inputs have 4 tokens"),
    "lengths that are no numbers": ("return {'inputs': np.ones((2, 4)), 'lengths': [.5, 1.]}", "integers"),
    "mask and lengths": ("return {'inputs': np.ones((1, 2)), 'mask': [[1, 1]], 'lengths': [2]}", "not both"),
    "a mask of no sequence": ("return {'inputs': np.ones(3), 'mask': np.ones((3, 1))}", "needs inputs of shape"),
    "a mask of another input": ("return {'inputs': {'a': np.ones((1, 2))}, 'mask': {'b': np.ones((1, 2))}}", "'b'"),
    "an unknown normalisation": ("return {'inputs': np.ones((1, 2)), 'denormalize': {'sigma': 1}}", "sigma"),
    "a name with a slash": ("return {'inputs': {'a/b': np.ones((1, 2))}}", "without slashes"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILING)
def test_a_factory_that_fails_is_told_in_one_sentence(factory, case: str):
    code, reason = FAILING[case]
    with pytest.raises(ProbeError, match=reason) as caught:
        factory(code)
    assert "probe" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_failing_item_is_the_factory_s_failure(factory):
    code = CLASS.replace("return np.full", "assert i < 5, 'item 5 is damaged'; return np.full")
    with pytest.raises(ProbeError, match="item 5 is damaged"):
        factory(code)


def test_a_factory_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="no_such_module"):
        build_probe("probe", ProbeSpec(factory="no_such_module:build"), tmp_path)
    with pytest.raises(ProbeError, match="not a callable"):
        build_probe("probe", ProbeSpec(factory="math:pi"), tmp_path)


def test_a_factory_may_import_what_lies_beside_it_when_it_is_called(tmp_path: Path):
    (tmp_path / "late_neighbour_of_a_factory.py").write_text("COUNT = 3")
    (tmp_path / "factory_with_a_neighbour.py").write_text(
        "def build():\n    from late_neighbour_of_a_factory import COUNT\n    return [[1.0]] * COUNT\n"
    )
    assert len(build_probe("probe", ProbeSpec(factory="factory_with_a_neighbour:build"), tmp_path)) == 3


@pytest.mark.parametrize("spec", [{"dataset": "digits", "limit": 0}])
def test_an_empty_probe_is_refused(spec: dict):
    with pytest.raises(ProbeError, match="probe 'probe' is empty"):
        build(**spec)


def test_a_probe_has_one_source():
    for spec in ({}, {"dataset": "digits", "factory": "a:b"}, {"dataset": "digits", "limit": -1}):
        with pytest.raises(ValidationError):
            ProbeSpec(**spec)


# -- memory and planning -------------------------------------------------------------------------------------


def test_building_a_small_probe_of_much_data_does_not_copy_the_data(tmp_path: Path):
    import zarr

    array = zarr.open_group(str(tmp_path / "data"), mode="w").create_array(
        "inputs", shape=(20_000, 1024), chunks=(100, 1024), dtype="float32"
    )
    for start in range(0, 20_000, 1000):
        array[start : start + 1000] = np.ones((1000, 1024), np.float32)
    spec = ProbeSpec(dataset="zarr", args={"path": "data"}, limit=50)
    tracemalloc.start()
    try:
        probe = build_probe("probe", spec, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert probe.inputs.shape == (50, 1024)
    assert peak < 20_000 * 1024 * 4 / 8


def test_planning_knows_the_files_without_building_anything(tmp_path: Path):
    code = """
import json, sys
from pathlib import Path
from stratascope.storage.probes import ProbeSpec, probe_source_files
def names(**spec):
    found = probe_source_files(ProbeSpec(**spec), Path("/config"))
    return None if found is None else [str(path) for path in found]
print(json.dumps({
    "digits": names(dataset="digits"), "npz": names(dataset="npz", args={"path": "a.npz"}),
    "folder": names(dataset="image_folder", args={"path": "/images/{split}"}, split="train"),
    "factory": names(factory="a:b"),
    "imported": sorted({"torch", "zarr", "pyarrow", "pandas", "sklearn", "PIL", "pooch"} & set(sys.modules)),
}))"""
    found = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    assert found["digits"][0].endswith("digits.csv.gz")
    assert found["npz"] == ["/config/a.npz"]
    assert found["folder"] == ["/images/train"]
    assert found["factory"] is None
    assert found["imported"] == []


def test_a_normalization_is_undone_by_its_own_formula():
    raw = np.random.default_rng(0).uniform(0, 9, (3, 2, 4, 4)).astype(np.float32)
    by = Normalization(mean=(0.1, 0.2), std=(0.5, 2.0), scale=9.0)
    shaped = [np.reshape(part, (1, 2, 1, 1)) for part in (by.mean, by.std)]
    np.testing.assert_allclose(by.undo((raw / 9 - shaped[0]) / shaped[1]), raw, rtol=1e-5, atol=1e-5)
