"""The published files themselves, where they are here: shapes, class counts, and the means that were published."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.storage.datasets import Dataset, data_folder, load_dataset, source_files
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.probes import ProbeSpec, build_probe

COUNTS = {
    ("mnist", "train"): [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    ("mnist", "test"): [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ("fashion_mnist", "train"): [6000] * 10,
    ("fashion_mnist", "test"): [1000] * 10,
    ("cifar10_jpeg", "test"): [1000] * 10,
}
BATCH_1 = [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
FIRST_1000 = [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]


def real(name: str, split: str) -> Dataset:
    try:
        files = source_files(name, split=split)
    except Exception:
        files = [data_folder() / "absent"]
    if not all(path.exists() for path in files):
        pytest.skip(f"the files of {name} are not in {data_folder()}: set STRATASCOPE_DATA")
    return load_dataset(name, split=split)


@pytest.mark.parametrize(("name", "split"), COUNTS)
def test_every_class_has_its_published_count(name: str, split: str):
    found = real(name, split)
    np.testing.assert_array_equal(np.bincount(found.targets), COUNTS[name, split])
    shape = (3, 32, 32) if name == "cifar10_jpeg" else (1, 28, 28)
    assert found.inputs.shape == (sum(COUNTS[name, split]), *shape)
    assert (found.inputs.min(), found.inputs.max()) == (0, 255)


def test_cifar10_has_the_counts_of_the_batches_that_are_here():
    train, test = real("cifar10", "train"), real("cifar10", "test")
    np.testing.assert_array_equal(np.bincount(train.targets[:10_000]), BATCH_1)
    np.testing.assert_array_equal(np.bincount(test.targets[:1000]), FIRST_1000)
    assert len(train) % 10_000 == 0
    assert train.inputs.shape[1:] == (3, 32, 32)
    # The first batch is a fifth of the data that the published means are of.
    mean = train.inputs.mean((0, 2, 3)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.004)


@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)])
def test_the_training_images_have_the_published_mean_and_spread(name: str, mean: float, std: float):
    found = real(name, "train")
    scaled = found.inputs / np.float32(255)
    assert scaled.mean(dtype=np.float64) == pytest.approx(mean, abs=5e-5)
    assert scaled.std(dtype=np.float64) == pytest.approx(std, abs=5e-5)
    assert (found.mean, found.std) == ((mean,), (std,))


def test_the_jpeg_pictures_are_the_exact_ones_but_for_their_compression():
    lossy, exact = real("cifar10_jpeg", "test"), real("cifar10", "test")
    places = np.concatenate([np.flatnonzero(exact.targets[:1000] == number) for number in range(10)])
    rank = np.concatenate([np.arange(count) for count in FIRST_1000])
    same = np.searchsorted(lossy.sample_id, 1000 * exact.targets[places] + rank)
    gap = np.abs(lossy.inputs[same].astype(float) - exact.inputs[places])
    assert gap.mean() == pytest.approx(5.8, abs=0.1)


def test_tiny_shakespeare_has_65_characters_in_9_to_1_parts():
    train, test = real("tiny_shakespeare", "train"), real("tiny_shakespeare", "test")
    assert len(train.class_names) == len(test.class_names) == 65
    assert train.inputs.shape == (15_685, 64)
    assert "".join(train.class_names[code] for code in train.inputs[0, :13]) == "First Citizen"
    assert test.sample_id[0] == int(0.9 * 1_115_394)


def test_multi30k_has_its_pairs():
    for split, count in (("train", 29_000), ("val", 1014), ("test", 1000), ("test_2017", 1000)):
        found = real("multi30k", split)
        assert {name: values.shape for name, values in leaves_of(found.inputs).items()} == {
            "source": (count, 32), "target": (count, 32),
        }  # fmt: skip
        assert found.names["source"][:6] == ("<pad>", "<unk>", "<bos>", "<eos>", "a", ".")
        unknown = (found.inputs["source"] == 1).sum() / found.masks["source"].sum()
        assert unknown < 0.03, split
    words = [found.names["source"][code] for code in load_dataset("multi30k", split="train").inputs["source"][0]]
    assert words[:6] == ["two", "young", ",", "white", "males", "are"]


def test_metr_la_has_207_detectors_and_plausible_speeds():
    found = real("metr_la_week", "all")
    assert found.inputs.shape == (2016 - 24 + 1, 12, 207)
    assert len(found.names["series"]) == 207
    assert found.names["series"][0] == "773869"
    speeds = found.inputs[::12].reshape(-1, 207)
    assert speeds.mean() == pytest.approx(58.9, abs=0.2)
    assert (speeds.min() >= 1, speeds.max()) == (True, 70)


def test_a_probe_of_mnist_is_normalised_by_the_published_values(tmp_path):
    data = real("mnist", "test")
    probe = build_probe("test", ProbeSpec(dataset="mnist", limit=500), tmp_path)
    raw = data.inputs[probe.sample_id]
    np.testing.assert_array_equal(probe.inputs, (raw / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081))
    np.testing.assert_array_equal(probe.pictures_at(slice(0, 500)), raw.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(np.bincount(probe.targets), [49, 57, 52, 50, 49, 45, 48, 51, 49, 50])
