"""Which samples are read as sequences: their order, their real tokens, their words."""

import numpy as np
import pytest

from stratascope.errors import DoesNotApply
from stratascope.storage.probes import Probe
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, sequence_blocks, sequence_samples


def pair_probe(order: np.ndarray) -> Probe:
    """Five pairs of a source and a target, padded with 0, in the given order."""
    source = np.array([[3, 4, 0], [4, 3, 3], [3, 0, 0], [4, 4, 0], [3, 3, 4]])[order]
    target = np.array([[1, 3, 4, 0], [1, 4, 3, 3], [1, 3, 0, 0], [1, 4, 4, 0], [1, 3, 3, 4]])[order]
    inputs = {"source": source, "target": target}
    masks = {name: values != 0 for name, values in inputs.items()}
    names = {"source": ("<pad>", "?", "<b>", "ja", "nein"), "target": ("<pad>", "<b>", "?", "yes", "no")}
    return Probe("test", "test", inputs, target, order, (), "digest", "text", None, masks, names)


def test_samples_do_not_depend_on_the_order_of_the_probe():
    options = SequenceOptions(max_samples=4, shown=2)
    one = sequence_samples(pair_probe(np.arange(5)), options)
    other = sequence_samples(pair_probe(np.array([4, 2, 0, 1, 3])), options)
    np.testing.assert_array_equal(one.given.sample_id, other.given.sample_id)
    np.testing.assert_array_equal(one.real("target"), other.real("target"))
    assert one.words(0, "source") == other.words(0, "source")


def test_named_samples_are_shown_first_and_measured_once():
    found = sequence_samples(pair_probe(np.arange(5)), SequenceOptions(sample_ids=(2, 0)))
    assert found.shown == 2
    assert found.given.sample_id.tolist()[:2] == [2, 0]
    assert sorted(found.given.sample_id.tolist()) == [0, 1, 2, 3, 4]
    assert found.words(0, "target") == ["<b>", "yes", "<pad>", "<pad>"]
    assert found.real("source")[0].tolist() == [True, False, False]


def test_what_is_no_sequence_is_named():
    probe = Probe("flat", "test", np.zeros(3, np.float32), None, np.arange(3), (), "digest")
    with pytest.raises(DoesNotApply, match="'flat'"):
        sequence_samples(probe, SequenceOptions())


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_blocks_hold_the_same_samples_those_that_are_shown_first(size):
    probe, options = pair_probe(np.arange(5)), SequenceOptions(shown=2)
    whole, blocks = sequence_samples(probe, options), list(sequence_blocks(probe, options, size))
    assert blocks[0].shown == 2
    assert not any(block.shown for block in blocks[1:])
    names = np.concatenate([block.given.sample_id for block in blocks])
    np.testing.assert_array_equal(names[:2], whole.given.sample_id[:2])
    np.testing.assert_array_equal(np.sort(names), np.sort(whole.given.sample_id))
    real = np.concatenate([block.real("source") for block in blocks])
    np.testing.assert_array_equal(real[np.argsort(names)], whole.real("source")[np.argsort(whole.given.sample_id)])
