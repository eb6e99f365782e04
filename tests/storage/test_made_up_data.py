"""Data sets that are made up: what they promise holds for every sample, so that what a network learned can be held against it."""

from __future__ import annotations

import datetime

import numpy as np
import pytest

from stratascope.errors import ConfigurationError, ProbeError
from stratascope.storage.datasets import SOURCES, load_dataset, source_files
from stratascope.storage.datasets.dates import FORMATS, MONTHS, NOWHERE, written_date
from stratascope.storage.probes import ProbeSpec, build_probe

MADE_UP = ("dates", "repeated_tokens", "delayed_recall", "adding_problem")
IGNORED = -100


@pytest.mark.parametrize("name", MADE_UP)
def test_a_seed_decides_the_samples_more_of_them_begin_with_the_same_and_splits_share_none(name, tmp_path):
    found = {
        (split, count, seed): build_probe(
            "test", ProbeSpec(dataset=name, split=split, args={"count": count, "seed": seed}), tmp_path
        )
        for split, count, seed in (("test", 40, 0), ("test", 80, 0), ("train", 80, 0), ("test", 40, 1))
    }
    first, more, train, other = found.values()
    assert build_probe("test", ProbeSpec(dataset=name, args={"count": 40}), tmp_path).digest == first.digest
    assert other.digest != first.digest
    np.testing.assert_array_equal(more.sample_id[:40], first.sample_id)
    np.testing.assert_array_equal(more.targets[:40], first.targets)
    assert not np.intersect1d(more.sample_id, train.sample_id).size
    assert all(path.exists() for path in source_files(name))
    assert SOURCES[name].splits == ("train", "test")


def test_a_repeat_of_arrays_is_equal_to_the_bit():
    for name in MADE_UP[1:]:
        one, two = (load_dataset(name, split="train", count=30, seed=5) for _ in range(2))
        np.testing.assert_array_equal(one.inputs, two.inputs)
        different = load_dataset(name, split="test", count=30, seed=5)
        assert not any((row == other).all() for row in one.inputs for other in different.inputs)


# -- dates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", range(len(FORMATS)))
@pytest.mark.parametrize(
    "date", [datetime.date(2031, 9, 4), datetime.date(1287, 11, 23), datetime.date(1600, 2, 29)]
)
def test_each_iso_digit_comes_from_the_characters_that_tell_it(date, form):
    written = written_date(date, form)
    assert written.iso == date.isoformat()
    spans = [
        "" if first == NOWHERE else written.text[first : last + 1]
        for first, last in zip(written.first, written.last, strict=True)
    ]
    for place, (digit, span) in enumerate(zip(written.iso, spans, strict=True)):
        if digit == "-":
            assert span == ""
        elif place in (5, 6) and span[0].isalpha():
            assert MONTHS[date.month - 1].startswith(span)
            assert len(span) in (3, len(MONTHS[date.month - 1]))
        elif digit == span:
            continue
        else:
            # A leading zero that is not written stands where its digit does.
            assert place in (5, 8)
            assert (digit, span) == ("0", written.iso[place + 1])


def test_a_written_date_reads_as_one_knows_it():
    date = datetime.date(2001, 8, 3)
    texts = [written_date(date, form).text for form in range(len(FORMATS))]
    assert texts == [
        "3 August 2001", "August 3, 2001", "Friday, 3 August 2001", "Friday, August 3, 2001", "3rd of August, 2001",
        "03 Aug 2001", "Aug 3, 2001", "2001 Aug 3", "3.8.2001", "03.08.2001", "8/3/2001", "08/03/2001",
    ]  # fmt: skip
    ordinals = [written_date(datetime.date(2000, 1, day), 4).text.split()[0] for day in (1, 2, 3, 4, 11, 12, 13, 21, 22, 31)]  # fmt: skip
    assert ordinals == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "31st"]


def test_the_data_set_of_dates_is_what_an_encoder_and_a_decoder_are_shown():
    data = load_dataset("dates", split="test", count=200)
    names = data.names["source"], data.names["target"]
    for row in range(200):
        real = data.inputs["source"][row][data.masks["source"][row]]
        assert names[0][real[-1]] == "<eos>"
        text = "".join(names[0][code] for code in real[:-1])
        day, form = divmod(int(data.sample_id[row]), 100)
        written = written_date(datetime.date.fromordinal(day), form)
        said = [names[1][code] for code in data.targets[row]]
        assert (text, "".join(said[:-1]), said[-1]) == (written.text, written.iso, "<eos>")
        assert tuple(data.inputs["alignment"][row]) == (*written.first, NOWHERE)
        assert tuple(data.inputs["alignment_end"][row]) == (*written.last, NOWHERE)
    assert (data.inputs["target"][:, 0] == names[1].index("<bos>")).all()
    np.testing.assert_array_equal(data.inputs["target"][:, 1:], data.targets[:, :-1])
    assert set(np.unique(data.sample_id % 100)) == set(range(len(FORMATS)))


def test_no_day_is_in_both_splits_whatever_its_format():
    days = {
        split: load_dataset("dates", split=split, count=count, years=(2000, 2002)).sample_id // 100
        for split, count in (("train", 980), ("test", 100))
    }
    assert not np.intersect1d(days["train"], days["test"]).size
    with pytest.raises(ProbeError, match="2000 to 2002 have 109 days for 'test', not 200"):
        load_dataset("dates", split="test", count=200, years=(2000, 2002))
    with pytest.raises(ConfigurationError, match="1000 to 9999"):
        load_dataset("dates", years=(900, 2000))


def test_targets_of_a_decoder_are_masked_by_the_decoder_s_mask(tmp_path):
    probe = build_probe("test", ProbeSpec(dataset="dates", args={"count": 12}), tmp_path)
    np.testing.assert_array_equal(probe.mask_at(slice(0, 12)), probe.inputs["source"] != 0)
    np.testing.assert_array_equal(probe.target_mask_at(slice(0, 12)), np.ones_like(probe.targets, bool))
    plain = build_probe("test", ProbeSpec(dataset="repeated_tokens", args={"count": 12}), tmp_path)
    assert plain.target_mask_at(slice(0, 12)) is None


# -- tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [(8, 20), (20, 20)])
def test_a_repeat_is_a_repeat_and_each_token_in_it_has_one_earlier_occurrence(period):
    data = load_dataset("repeated_tokens", split="train", count=100, period=period)
    known = data.targets != IGNORED
    periods = known.sum(1)
    assert (periods.min(), periods.max()) == period
    for codes, targets, length in zip(data.inputs, data.targets, periods, strict=True):
        start = len(codes) - length
        block = codes[start:]
        np.testing.assert_array_equal(block, codes[start - length : start])
        before = codes[:start]
        assert len(set(before.tolist())) == len(before)
        assert (before[0], data.class_names[0]) == (0, "<bos>")
        np.testing.assert_array_equal(targets[start:], [*block[1:], block[0]])
        assert (targets[:start] == IGNORED).all()
    assert data.inputs.max() == 60
    assert len(data.class_names) == 61


@pytest.mark.parametrize(
    ("options", "match"),
    [({"period": (8, 21)}, "twice the most"), ({"tokens": 31}, "at least `length`"), ({"period": (9, 8)}, "twice the most")],
)  # fmt: skip
def test_blocks_that_do_not_fit_are_refused(options, match):
    with pytest.raises(ConfigurationError, match=match):
        load_dataset("repeated_tokens", **options)


def test_the_symbol_to_be_recalled_stands_first_and_nowhere_else():
    data = load_dataset("delayed_recall", split="train", count=300, length=30)
    np.testing.assert_array_equal(data.targets[:, -1], data.inputs[:, 0])
    assert (data.targets[:, :-1] == IGNORED).all()
    assert (data.inputs[:, 0] < 8).all()
    assert (data.inputs[:, 1:] >= 8).all()
    assert [data.class_names[code] for code in (data.inputs[0, -1], 0, 15)] == ["?", "A", "P"]
    assert (data.inputs[:, -1] == 16).all()
    assert set(data.inputs[:, 0].tolist()) == set(range(8))
    one = load_dataset("delayed_recall", count=3, length=4, distractors=1)
    assert one.class_names[8:] == ("·", "?")


def test_two_marked_values_add_up_to_the_target():
    data = load_dataset("adding_problem", split="train", count=2000, length=11)
    values, marks = data.inputs[..., 0], data.inputs[..., 1]
    np.testing.assert_allclose((values * marks).sum(1, keepdims=True), data.targets, rtol=1e-6)
    assert (marks[:, :5].sum(1) == 1).all()
    assert (marks[:, 5:].sum(1) == 1).all()
    assert (marks.sum(0) > 0).all()
    # Always saying 1 loses the variance of the sum of two uniform numbers.
    assert np.mean((data.targets - 1) ** 2) == pytest.approx(1 / 6, abs=0.01)
