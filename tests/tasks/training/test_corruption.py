"""Corruption: drawn once for each sample, from its id and the seed and nothing else."""

import math

import numpy as np
import pytest

from stratascope.errors import ConfigurationError
from stratascope.tasks.training.corruption import corrupt_images, corrupt_labels
from stratascope.tasks.training.data import load_data

IDS = np.arange(4000)
LABELS = np.arange(4000) % 10


def test_no_corruption_changes_nothing():
    labels, redrawn = corrupt_labels(LABELS, IDS, 0.0, 10, 0)
    assert np.array_equal(labels, LABELS)
    assert not redrawn.any()
    images = np.random.default_rng(0).random((3, 1, 4, 4))
    assert corrupt_images(images, IDS[:3], "none", 0, (0, 1), False) is images


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_a_share_of_the_labels_is_drawn_again_evenly_from_all_classes(share):
    labels, redrawn = corrupt_labels(LABELS, IDS, share, 10, 0)
    wrong = (labels != LABELS).mean()
    expected = share * 0.9
    assert abs(wrong - expected) < 4 * math.sqrt(expected * (1 - expected) / len(LABELS))
    assert np.array_equal(labels[~redrawn], LABELS[~redrawn])
    counts = np.bincount(labels[redrawn], minlength=10)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 27.9  # chi-square, 9 degrees, 0.1 %


def test_what_is_spoilt_at_a_small_share_is_spoilt_alike_at_a_larger_one():
    few, in_few = corrupt_labels(LABELS, IDS, 0.2, 10, 3)
    many, in_many = corrupt_labels(LABELS, IDS, 0.5, 10, 3)
    assert (in_many[in_few]).all()
    assert np.array_equal(few[in_few], many[in_few])
    assert in_many.sum() > in_few.sum()


@pytest.mark.parametrize("ids", [IDS, np.array([f"image {number}" for number in IDS])])
def test_a_label_does_not_depend_on_which_other_samples_there_are_or_on_their_order(ids):
    whole, _ = corrupt_labels(LABELS, ids, 0.5, 10, 0)
    rows = np.random.default_rng(0).permutation(4000)[:700]
    part, _ = corrupt_labels(LABELS[rows], ids[rows], 0.5, 10, 0)
    assert np.array_equal(part, whole[rows])
    other, _ = corrupt_labels(LABELS, ids, 0.5, 10, 1)
    assert not np.array_equal(other, whole)


@pytest.mark.parametrize("kind", ["random", "gaussian"])
def test_an_image_is_spoilt_by_its_id_alone(kind):
    images = np.random.default_rng(0).random((30, 3, 5, 4)).astype(np.float32)
    whole = corrupt_images(images, IDS[:30], kind, 0, (0.5, 2.0), False)
    rows = np.array([7, 29, 2])
    assert np.array_equal(corrupt_images(images[rows], IDS[rows], kind, 0, (0.5, 2.0), False), whole[rows])
    assert whole.dtype == np.float32


def test_shuffled_pixels_move_by_one_permutation_and_random_ones_by_one_for_each_image():
    places = np.tile(np.arange(20.0).reshape(1, 1, 5, 4), (6, 2, 1, 1))
    for kind, orders in (("shuffled", 1), ("random", 6)):
        spoilt = corrupt_images(places, IDS[:6], kind, 0, (0, 1), False).reshape(6, 2, 20)
        assert np.array_equal(np.sort(spoilt, axis=2), np.tile(np.arange(20.0), (6, 2, 1)))
        assert np.array_equal(spoilt[:, 0], spoilt[:, 1])
        assert len(np.unique(spoilt[:, 0], axis=0)) == orders
    train, test = (corrupt_images(places, IDS[:6], "shuffled", 0, (0, 1), testing) for testing in (False, True))
    assert np.array_equal(train, test)


def test_normal_pixels_have_the_mean_and_the_spread_of_the_data():
    images = np.zeros((200, 1, 10, 10))
    noise = corrupt_images(images, IDS[:200], "gaussian", 0, (3.0, 0.5), False)
    assert abs(noise.mean() - 3) < 4 * 0.5 / math.sqrt(noise.size)
    assert abs(noise.std() - 0.5) < 4 * 0.5 / math.sqrt(2 * noise.size)


def test_targets_and_inputs_that_cannot_be_spoilt_are_refused():
    with pytest.raises(ConfigurationError, match="one class for each sample"):
        corrupt_labels(np.zeros((4, 3), int), IDS[:4], 0.5, 10, 0)
    with pytest.raises(ConfigurationError, match="needs images"):
        corrupt_images(np.zeros((4, 3)), IDS[:4], "shuffled", 0, (0, 1), False)


def test_a_smaller_draw_of_samples_is_part_of_a_larger_one_with_the_same_labels(plain_config, tmp_path):
    few, many = (
        load_data(plain_config(samples=count, corruption={"labels": share}, batch_size=size), tmp_path).train
        for count, share, size in ((40, 0.3, 8), (90, 0.6, 16))
    )
    assert np.array_equal(few.sample_id, many.sample_id[:40])
    assert np.array_equal(few.original, many.original[:40])
    redrawn = few.redrawn
    assert 0 < redrawn.sum() < 40
    assert many.redrawn[:40][redrawn].all()
    assert np.array_equal(few.targets.numpy()[redrawn], many.targets.numpy()[:40][redrawn])


def test_test_labels_stay_right(plain_config, tmp_path):
    data = load_data(plain_config(corruption={"labels": 1.0}), tmp_path)
    assert np.array_equal(data.test.targets.numpy(), data.test.original)
    assert not np.array_equal(data.train.targets.numpy(), data.train.original)
