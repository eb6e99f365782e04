"""Stored probes: read back slice by slice, and with plain tools."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from stratascope.errors import ProbeError
from stratascope.storage.probes import Probe, ProbeSpec, build_probe, read_probe, store_probe
from stratascope.storage.store import Store
from stratascope.storage.units import Unit

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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def keep(store: Store, probe: Probe) -> Probe:
    unit = Unit("probe", "", -1, probe.name)
    with store.stage(unit, probe.digest, {}) as staged:
        store_probe(staged, probe)
        staged.commit()
    return read_probe(store, probe.name)


@pytest.mark.parametrize("normalize", ["standard", "unit", "none", {"mean": 0.2, "std": 0.7}])
def test_pictures_come_back_exactly_from_normalised_inputs(store: Store, normalize):
    from sklearn.datasets import load_digits

    probe = build(dataset="digits", split="all", normalize=normalize)
    white = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert probe.inputs.dtype == np.float32
    np.testing.assert_array_equal(probe.pictures_at(slice(0, None))[..., 0], white)
    np.testing.assert_allclose(probe.normalization.undo(probe.inputs)[:, 0], load_digits().images, atol=1e-5)
    kept = keep(store, probe)
    np.testing.assert_array_equal(kept.pictures_at(slice(10, 20))[..., 0], white[10:20])
    assert kept.normalization == probe.normalization


# -- arrays ------------------------------------------------------------------------------------------

NESTED = """return {
        'inputs': {'words': np.arange(20).reshape(4, 5), 'deep': {'image': np.ones((4, 3, 2, 2), np.float32), 'b': np.ones((4, 7))}},
        'targets': np.arange(12.).reshape(4, 3), 'lengths': {'words': [5, 1, 0, 3]},
        'sample_id': ['a', 'b/c', 'ü', '€'], 'denormalize': {'mean': 0.5, 'std': 0.25}}"""  # fmt: skip


def same(one, other) -> None:
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            same(one[name], other[name])
    else:
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_a_plain_probe_reads_back_whole_and_by_slices(store: Store):
    probe = build(dataset="digits", limit=100)
    kept = keep(store, probe)
    assert (kept.digest, kept.role, kept.kind, kept.class_names) == (
        probe.digest,
        "test",
        "image",
        probe.class_names,
    )
    np.testing.assert_array_equal(kept.targets, probe.targets)
    np.testing.assert_array_equal(kept.sample_id, probe.sample_id)
    for rows in (slice(0, 100), slice(7, 30), slice(90, 200), slice(10, 40, 7), slice(-5, None), slice(8, 3)):
        np.testing.assert_array_equal(kept.inputs_at(rows), probe.inputs[rows])
    batches = list(kept.batches(33))
    assert [rows for _, _, rows in batches] == [slice(0, 33), slice(33, 66), slice(66, 99), slice(99, 100)]
    np.testing.assert_array_equal(np.concatenate([inputs for inputs, _, _ in batches]), probe.inputs)
    assert kept.mask_at(slice(0, 3)) is None
    assert kept.inputs.shape == probe.inputs.shape


def test_nested_inputs_keep_their_shape_and_order(store: Store, factory):
    probe = factory(NESTED)
    kept = keep(store, probe)
    same(kept.inputs_at(slice(0, 4)), probe.inputs)
    same(kept.inputs_at(slice(1, 3)), probe.inputs_at(slice(1, 3)))
    assert list(kept.sample_id) == ["a", "b/c", "ü", "€"]
    np.testing.assert_array_equal(kept.mask_at(slice(0, 3)), [[1] * 5, [1, 0, 0, 0, 0], [0] * 5])
    assert kept.mask_at(slice(0, 3)).dtype == bool
    assert kept.mask_at(slice(0, 3), "deep/b") is None
    assert kept.pictures_at(slice(0, 2)).shape == (2, 2, 2, 3)
    paths = [path.removeprefix("probes/probe/") for path in store.list_arrays("probes/probe/input")]
    assert paths == ["input/deep/b", "input/deep/image", "input/words"]


def open_quietly(store: Store) -> xr.DataTree:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(store.path / "archive.zarr", engine="zarr", consolidated=False)
        for node in tree.subtree:
            node.load()
    return tree["probes/probe"]


def test_images_have_named_dimensions_and_say_how_to_undo_them(store: Store):
    probe = build(dataset="digits", limit=20)
    keep(store, probe)
    tree = open_quietly(store)
    assert tree["input"].dims == ("sample", "channel", "y", "x")
    assert tree["target"].dims == tree["sample_id"].dims == ("sample",)
    assert tree["sample_id"].attrs["role"] == "test"
    assert tree["sample_id"].attrs["digest"] == probe.digest
    assert tree["target"].attrs["class_names"][3] == "3"
    undo = tree["input"].attrs["normalization"]
    assert undo == {"mean": [0.3053], "std": [0.376], "scale": 16.0}
    raw = (tree["input"].values * undo["std"] + undo["mean"]) * undo["scale"]
    np.testing.assert_allclose(raw, np.round(raw), atol=1e-5)


def test_nested_inputs_and_texts_open_with_plain_tools(store: Store, factory):
    keep(store, factory(NESTED))
    tree = open_quietly(store)
    assert list(tree["sample_id"].values) == ["a", "b/c", "ü", "€"]
    assert tree["input/words"].dims == ("sample", "words_token")
    assert tree["mask/words"].dims == ("sample", "words_token")
    assert tree["input/deep/image"].dims == ("sample", "deep_image_channel", "deep_image_y", "deep_image_x")
    assert tree["target"].dims == ("sample", "target_axis_1")


@pytest.mark.parametrize(
    ("code", "dims"),
    [
        ("return np.ones((4, 6)), np.ones((4, 2))", {"input": ("axis_1",), "target": ("target_axis_1",)}),
        ("return np.ones((4, 6), int)", {"input": ("token",)}),
        ("return {'inputs': np.ones((4, 6, 3)), 'lengths': [1, 2, 3, 4]}", {"input": ("token", "feature"), "mask": ("token",)}),
        ("return np.ones((4, 6, 6))", {"input": ("axis_1", "axis_2")}),
        ("return np.ones((4, 3, 8, 8)), np.zeros((4, 8, 8))", {"target": ("target_axis_1", "target_axis_2")}),
        ("return {'inputs': {'target': np.ones((4, 3))}, 'targets': np.ones((4, 5))}", {"target": ("target_axis_1_",)}),
    ],
)  # fmt: skip
def test_every_axis_has_a_name_that_no_other_length_shares(store: Store, factory, code: str, dims: dict):
    keep(store, factory(code))
    tree = open_quietly(store)
    for name, expected in dims.items():
        assert tree[name].dims == ("sample", *expected)


def test_text_and_series_have_their_dimensions(store: Store, tmp_path: Path):
    (tmp_path / "text.txt").write_text("abcd" * 100)
    (tmp_path / "series.csv").write_text("a,b\n" + "1,2\n" * 60)
    text = build_probe("probe", ProbeSpec(dataset="text", args={"path": "text.txt", "length": 8}), tmp_path)
    keep(store, text)
    tree = open_quietly(store)
    assert tree["input"].dims == tree["target"].dims == ("sample", "token")
    args = {"path": "series.csv", "history": 3, "horizon": 2}
    keep(store, build_probe("probe", ProbeSpec(dataset="csv_series", args=args), tmp_path))
    tree = open_quietly(store)
    assert tree["input"].dims == ("sample", "time", "series")
    assert tree["target"].dims == ("sample", "horizon", "series")
    assert list(tree["names/series"].values) == ["a", "b"]


def test_parallel_text_keeps_both_sides_their_masks_and_words(store: Store, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("STRATASCOPE_DATA", str(tmp_path))
    folder = tmp_path / "text" / "multi30k"
    folder.mkdir(parents=True)
    for stem in ("train", "val"):
        (folder / f"{stem}.en").write_text("a dog\na cat sits\n")
        (folder / f"{stem}.de").write_text("ein Hund\neine Katze sitzt da\n")
    spec = ProbeSpec(dataset="multi30k", split="val", args={"minimum_count": 1, "length": 6})
    kept = keep(store, build_probe("probe", spec, tmp_path))
    words = kept.names["target"]
    assert [words[code] for code in kept.inputs_at(slice(1, 2))["target"][0]] == [
        "<bos>",
        "eine",
        "katze",
        "sitzt",
        "da",
        "<pad>",
    ]
    assert [words[code] for code in kept.targets[1]] == ["eine", "katze", "sitzt", "da", "<eos>", "<pad>"]
    np.testing.assert_array_equal(kept.mask_at(slice(0, 2)), np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]))
    np.testing.assert_array_equal(kept.mask_at(slice(0, 2), "target"), kept.targets != 0)
    tree = open_quietly(store)
    assert tree["input/source"].dims == ("sample", "source_token")
    assert tree["input/target"].dims == tree["target"].dims == ("sample", "target_token")
    assert tuple(tree["names/target"].values) == words


def test_equal_probes_are_equal_bytes(tmp_path: Path, factory):
    kept = []
    for name in "ab":
        store = Store.open(tmp_path / name, create=True)
        keep(store, factory(NESTED))
        place = store.path / "archive.zarr" / "probes"
        kept.append(
            {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        )
    assert kept[0] == kept[1]


# -- memory -------------------------------------------------------------------------------------


def test_a_slice_of_a_stored_probe_reads_no_more_than_its_chunks(store: Store, factory):
    probe = factory("return np.ones((4000, 4096), np.float32)")
    kept = keep(store, probe)
    size = probe.inputs.nbytes
    tracemalloc.start()
    try:
        again = read_probe(store, "probe")
        for inputs, _, _ in again.batches(100):
            assert inputs.shape == (100, 4096)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept.digest == again.digest
    assert peak < size / 4


# -- probes that are larger than the memory ---------------------------------------------------------------------

DRAWN = """class Items:
        targets = [i %% 10 for i in range(%d)]
        def __len__(self): return len(self.targets)
        def __getitem__(self, i):
            %s
            return np.full((1, 16, 16), i / 7, np.float32), self.targets[i]
    return Items()"""


@pytest.mark.parametrize("source", ["items", "zarr", "npz"])
def test_a_streamed_probe_is_the_probe_that_was_held(tmp_path, factory, monkeypatch, source):
    zarr = pytest.importorskip("zarr")
    raw = np.random.default_rng(0).integers(0, 255, (500, 3, 4, 4)).astype(np.uint8)
    zarr.open_group(str(tmp_path / "zarr"), mode="w").create_array("inputs", data=raw, chunks=(64, 3, 4, 4))
    np.savez(tmp_path / "npz", inputs=raw, targets=np.arange(500) % 7)

    def made() -> Probe:
        if source == "items":
            return factory(DRAWN % (500, ""), limit=400)
        path = {"zarr": "zarr", "npz": "npz.npz"}[source]
        return build_probe("probe", ProbeSpec(dataset=source, args={"path": path}, limit=333), tmp_path)

    held = made()
    monkeypatch.setattr("stratascope.storage.probe_rows.HELD_BYTES", 0)
    monkeypatch.setattr("stratascope.storage.probe_rows.SLICE_BYTES", 9_000)
    streamed = made()
    assert isinstance(held.inputs, np.ndarray)
    assert not isinstance(streamed.inputs, np.ndarray)
    assert streamed.digest == held.digest
    np.testing.assert_array_equal(streamed.inputs, held.inputs)
    stores = []
    for probe in (held, streamed):
        store = Store.open(tmp_path / f"store-{len(stores)}", create=True)
        keep(store, probe)
        place = store.path / "archive.zarr" / "probes"
        stores.append({path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()})
    assert stores[0] == stores[1]


def test_the_memory_of_a_streamed_probe_does_not_grow_with_its_samples(tmp_path, factory, monkeypatch):
    monkeypatch.setattr("stratascope.storage.probe_rows.HELD_BYTES", 0)
    monkeypatch.setattr("stratascope.storage.probe_rows.SLICE_BYTES", 1 << 20)
    peaks = {}
    for count in (100, 4_000, 12_000):  # the first time, what is imported once counts too
        store = Store.open(tmp_path / f"store-{count}", create=True)
        tracemalloc.start()
        try:
            keep(store, factory(DRAWN % (count, "")))
            for inputs, _, _ in read_probe(store, "probe").batches(256):
                assert inputs.shape[1:] == (1, 16, 16)
            peaks[count] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    # 8,000 more samples are 8 MB of inputs, and a few dozen bytes each of targets and ids.
    assert peaks[12_000] - peaks[4_000] < 8_000 * 16 * 16 * 4 / 5


def test_a_source_that_gives_other_samples_when_it_is_read_again_is_refused(store, factory, monkeypatch):
    monkeypatch.setattr("stratascope.storage.probe_rows.HELD_BYTES", 0)
    monkeypatch.setattr("stratascope.storage.probe_rows.SLICE_BYTES", 9_000)
    asked = "self.asked = getattr(self, 'asked', 0) + 1; i = i if self.asked < 60 else 0"
    with pytest.raises(ProbeError, match="other samples each time"):
        keep(store, factory(DRAWN % (50, asked)))


def test_samples_of_another_kind_in_the_middle_of_a_streamed_probe_are_refused(factory, monkeypatch):
    monkeypatch.setattr("stratascope.storage.probe_rows.HELD_BYTES", 0)
    monkeypatch.setattr("stratascope.storage.probe_rows.SLICE_BYTES", 16 * 16 * 4)
    odd = "if i == 30: return np.zeros((1, 16, 15), np.float32), 0"
    with pytest.raises(ProbeError, match="of one shape"):
        factory(DRAWN % (50, odd))
