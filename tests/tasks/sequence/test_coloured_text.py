"""Coloured text: where lines break, and that what is written is sound SVG whatever stands in the text."""

from xml.etree import ElementTree

import numpy as np

from stratascope.tasks.sequence.coloured_text import TextPiece, coloured_text, text_lines


def test_lines_end_at_line_feeds_and_before_they_grow_too_long():
    lines = text_lines(list("ab\n\ncdefg\nh"), columns=4)
    assert [[number for number, _, _ in line] for line in lines] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10]]
    assert [[number for number, _, _ in line] for line in text_lines(list("a\nb"), breaks=False)] == [[0, 1, 2]]


def test_a_line_feed_hangs_over_the_edge():
    assert len(text_lines(list("abcd\ne"), columns=4)) == 2
    assert [len(line) for line in text_lines(list("abcd\ne"), columns=4)] == [5, 1]


def test_words_of_several_characters_have_their_width_and_a_gap():
    assert text_lines(["the", "cat", "sat"], columns=7) == [[(0, 0, 3), (1, 4, 3)], [(2, 0, 3)]]


def test_any_text_gives_sound_svg_with_a_colour_for_each_value():
    words = list('<&>"\u202e\n') + ["a]]>"]
    colour = np.array([1, -1, 0.5, 0, np.nan, -0.2, 0.7])
    drawn = coloured_text(
        [TextPiece("<b>", words, colour, np.array([0, 1, 1, 0, np.nan, 0, 1]), (1, 3))], "r < 1", "f & g"
    )
    root = ElementTree.fromstring(drawn)
    text = "".join(root.itertext())
    assert "<&>" in text
    assert "\u202e" not in drawn
    fills = [item.get("style") for item in root.iter("rect")]
    assert "fill:var(--c0072b2);fill-opacity:0.8" in fills
    assert "fill:var(--cd55e00);fill-opacity:0.8" in fills


def test_equal_texts_give_equal_bytes():
    piece = TextPiece("a", list("text"), np.linspace(-1, 1, 4))
    assert coloured_text([piece], "x") == coloured_text([piece], "x")
