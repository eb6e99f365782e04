"""What stands in a text at each character, against values read by eye."""

import numpy as np
import pytest

from stratascope.errors import ConfigurationError
from stratascope.tasks.sequence.given_features import checked_source
from stratascope.tasks.sequence.text_features import FEATURES, inside_matches, spans, text_features

TEXT = 'ab" c (d\n\nFirst Citizen:\nHe "said) it" so.\n  ROMEO:\nx'


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("inside_quotes", "11000000000000000000000000001111111110000000000000000"),
        ("bracket_depth", "00000011111111111111111111111111100000000000000000000"),
        ("in_speaker_name", "00000000001111111111111100000000000000000000011111100"),
        ("in_upper_case_word", "00000000000000000000000000000000000000000000011111000"),
        ("line_start", "00000000110000000000000010000000000000000010000000010"),
        ("place_in_word", "12001001001234501234567001200123400120012000012345001"),
        ("place_in_line", "........001234567890123401234567890123456701234567801"),
        ("left_in_line", "876543211543210987654321876543210987654321987654321.."),
        ("indentation", "........000000000000000000000000000000000001222222200"),
        ("place_in_sentence", ".........................................012345678901"),
        ("lines_since_blank", ".........00000000000000011111111111111111122222222233"),
    ],
)
def test_each_character_has_the_value_that_a_reader_gives_it(name, wanted):
    values = FEATURES[name].values(TEXT)
    assert "".join("." if np.isnan(value) else str(int(value))[-1] for value in values) == wanted


def test_curved_quotes_and_a_blank_line_end_a_quotation():
    assert FEATURES["inside_quotes"].values("“a” b").tolist() == [1, 1, 0, 0, 0]
    assert FEATURES["inside_quotes"].values('"a\n\nb').tolist() == [1, 1, 1, 0, 0]


def test_words_that_are_tokens_have_the_value_of_their_last_character():
    found = text_features([["(", "He", "said", ")", "<pad>"]], np.array([[1, 1, 1, 1, 0]], bool), FEATURES)
    np.testing.assert_array_equal(found["bracket_depth"], [[1, 1, 1, 0, np.nan]])
    np.testing.assert_array_equal(found["place_in_word"], [[0, 2, 4, 0, np.nan]])


def test_a_mark_among_characters_parts_no_word():
    words = ["<bos>", "a", "b", " ", "c", "<eos>"]
    found = text_features([words], np.ones((1, 6), bool), FEATURES)
    np.testing.assert_array_equal(found["place_in_word"], [[0, 1, 2, 0, 1, 0]])


def test_padding_is_no_text():
    words, real = [list("((a"), list("a(x")], np.array([[1, 1, 1], [1, 1, 0]], bool)
    found = text_features(words, real, FEATURES)["bracket_depth"]
    np.testing.assert_array_equal(found, [[1, 2, 2], [0, 1, np.nan]])


def test_a_regular_expression_marks_its_matches():
    assert inside_matches(r"b+")("abba").tolist() == [0, 1, 1, 0]
    with pytest.raises(ConfigurationError, match="no regular expression"):
        inside_matches("(")


@pytest.mark.parametrize("source", ["vowels", "re:["])
def test_a_source_that_cannot_be_used_is_named(source):
    with pytest.raises(ConfigurationError):
        checked_source("mine", source)


def test_spans_are_the_runs_of_ones():
    assert spans(np.array([1, 1, 0, np.nan, 1])) == [(0, 2), (4, 5)]
