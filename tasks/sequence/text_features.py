"""What stands in a text at each of its tokens: in quotes, how deep in brackets, how far in the line, in a speaker's name.

Every feature is computed from the text of one sample alone, for the moment after the token was read. NaN stands where the
sample does not tell, such as the place in a line of which the sample does not hold the beginning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stratascope.errors import ConfigurationError

_NAN = float("nan")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_MARK = "\ufffc"
_OPENING, _CLOSING = "([{", ")]}"
_SPEAKER = re.compile(r"(?:^|(?<=\n))[ \t]*((?:[A-Z][\w'’.-]*)(?: (?:[A-Z][\w'’.-]*|of|the|and)){0,4}:)(?=\n|$)")


@dataclass(frozen=True)
class TokenText:
    """The tokens of one sample as one text: `ends` (token,) is where in `text` each of them ends."""

    text: str
    ends: np.ndarray

    @classmethod
    def of(cls, words: Sequence[str]) -> TokenText:
        """Characters stand side by side; tokens of several characters are parted by spaces. A mark such as `<eos>` counts as one
        character that is no letter."""
        words = [_MARK if len(word) > 1 and word[0] == "<" and word[-1] == ">" else word for word in words]
        between = "" if all(len(word) <= 1 for word in words) else " "
        lengths = np.array([len(word) for word in words], np.int64)
        ends = np.cumsum(lengths) + len(between) * np.arange(len(words)) - 1
        return cls(between.join(words), np.maximum(ends, 0))


@dataclass(frozen=True)
class TextFeature:
    """A feature: its name for people, whether it is yes or no, and its values float64 (character,) of a text."""

    title: str
    boolean: bool
    values: Callable[[str], np.ndarray]


def inside_quotes(text: str) -> np.ndarray:
    """1 between double quotes (straight or curved), from the opening one until before the closing one.

    A straight quote opens where a blank, an opening bracket or nothing stands before it. A blank line ends a quotation
    that nobody closed. Where the first quote of the text closes, what stands before it is inside.
    """
    found = np.zeros(len(text))
    inside = False
    seen = False
    for place, character in enumerate(text):
        if character in '“”"':
            before = text[place - 1] if place else ""
            closes = character == "”" or (character == '"' and bool(before) and not before.isspace() and before not in _OPENING)  # fmt: skip
            if closes and not seen:
                found[:place] = 1
            inside, seen = not closes, True
        elif text[place - 1 : place + 1] == "\n\n":
            inside = False
        found[place] = inside
    return found


def bracket_depth(text: str) -> np.ndarray:
    """How many brackets of any kind are open; one that closes what no one opened was open from the beginning."""
    found = np.zeros(len(text))
    depth = 0
    for place, character in enumerate(text):
        depth += character in _OPENING
        if character in _CLOSING:
            if depth == 0:
                found[:place] += 1
            else:
                depth -= 1
        found[place] = depth
    return found


def since(text: str, marks: str, from_start: bool = False) -> np.ndarray:
    """Characters since the last of `marks`, itself 0. NaN before the first one, unless `from_start`."""
    found = np.full(len(text), _NAN)
    last = -1 if from_start else None
    for place, character in enumerate(text):
        if character in marks:
            last = place
        if last is not None:
            found[place] = place - last
    return found


def left_in_line(text: str) -> np.ndarray:
    """Characters up to the end of the line; NaN in a last line whose end the text does not hold."""
    found = np.full(len(text), _NAN)
    next_end = None
    for place in range(len(text) - 1, -1, -1):
        if next_end is not None:
            found[place] = next_end - place
        if text[place] == "\n":
            next_end = place
    return found


def indentation(text: str) -> np.ndarray:
    """Blanks at the beginning of the line, so far as they were read (a tab is 4); NaN in a line that began before."""
    found = np.full(len(text), _NAN)
    width, leading = _NAN, False
    for place, character in enumerate(text):
        if character == "\n":
            width, leading = 0.0, True
        elif leading and character in " \t":
            width += 4 if character == "\t" else 1
        else:
            leading = False
        found[place] = width
    return found


def place_in_word(text: str) -> np.ndarray:
    """1 at first letter of a word, 2 at the second …, 0 outside words."""
    found = np.zeros(len(text))
    for match in _WORD.finditer(text):
        found[match.start() : match.end()] = np.arange(1, match.end() - match.start() + 1)
    return found


def in_upper_case_word(text: str) -> np.ndarray:
    """1 in words of two capitals or more and nothing else."""
    return _marked(text, (match.span() for match in _WORD.finditer(text) if len(match.group()) > 1 and match.group().isupper()))  # fmt: skip


def in_speaker_name(text: str) -> np.ndarray:
    """1 in a line that holds a name and a colon alone, as plays name their speakers: capitalised words, then ':'."""
    return _marked(text, (match.span(1) for match in _SPEAKER.finditer(text)))


def lines_since_blank(text: str) -> np.ndarray:
    """Line ends since the last blank line, itself 0; NaN before the first one."""
    found = np.full(len(text), _NAN)
    count = _NAN
    for place, character in enumerate(text):
        if character == "\n":
            count = 0.0 if text[place - 1 : place] == "\n" else count + 1
        found[place] = count
    return found


def inside_matches(pattern: str) -> Callable[[str], np.ndarray]:
    """1 inside the matches of the regular expression `pattern`. Raises ConfigurationError where it is none."""
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ConfigurationError(f"{pattern!r} is no regular expression: {error}.") from None
    return lambda text: _marked(text, (match.span() for match in compiled.finditer(text)))


def _marked(text: str, spans: Iterable[tuple[int, int]]) -> np.ndarray:
    found = np.zeros(len(text))
    for start, stop in spans:
        found[start:stop] = 1
    return found


def _each(test: Callable[[str], bool]) -> Callable[[str], np.ndarray]:
    return lambda text: np.array([test(character) for character in text], np.float64)


FEATURES: Mapping[str, TextFeature] = {
    "inside_quotes": TextFeature("inside quotes", True, inside_quotes),
    "inside_brackets": TextFeature("inside brackets", True, lambda text: (bracket_depth(text) > 0).astype(float)),
    "bracket_depth": TextFeature("open brackets", False, bracket_depth),
    "in_speaker_name": TextFeature("in a speaker's name", True, in_speaker_name),
    "in_upper_case_word": TextFeature("in a word of capitals", True, in_upper_case_word),
    "line_start": TextFeature("end of a line", True, _each(lambda character: character == "\n")),
    "space": TextFeature("a blank", True, _each(lambda character: character in " \t")),
    "vowel": TextFeature("a vowel", True, _each(lambda character: character.lower() in "aeiou")),
    "capital": TextFeature("a capital", True, _each(str.isupper)),
    "digit": TextFeature("a digit", True, _each(str.isdigit)),
    "punctuation": TextFeature("a punctuation mark", True, _each(lambda character: not (character.isalnum() or character.isspace()))),
    "word_start": TextFeature("first letter of a word", True, lambda text: (place_in_word(text) == 1).astype(float)),
    "place_in_word": TextFeature("letters of the word", False, place_in_word),
    "place_in_line": TextFeature("place in the line", False, lambda text: since(text, "\n")),
    "left_in_line": TextFeature("left in the line", False, left_in_line),
    "indentation": TextFeature("indentation of the line", False, indentation),
    "place_in_sentence": TextFeature("place in the sentence", False, lambda text: since(text, ".!?")),
    "lines_since_blank": TextFeature("lines since a blank line", False, lines_since_blank),
}  # fmt: skip
"""The features that are looked at without being asked for."""


def text_features(
    samples: Sequence[Sequence[str]], real: np.ndarray, features: Mapping[str, TextFeature]
) -> dict[str, np.ndarray]:
    """float64 (sample, token) by name, NaN at padding and where a sample does not tell.

    `samples` are the words of each sample, padding included; `real` is bool (sample, token). The text of a sample is
    that of its real tokens. A feature of a token of several characters is that of its last one.
    """
    found = {name: np.full(real.shape, _NAN) for name in features}
    for row, words in enumerate(samples):
        places = np.flatnonzero(real[row])
        if not len(places):
            continue
        made = TokenText.of([words[place] for place in places.tolist()])
        for name, feature in features.items():
            found[name][row, places] = feature.values(made.text)[made.ends] if made.text else _NAN
    return found


def spans(values: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of each run of ones in `values` (token,)."""
    inside = np.concatenate([[0], (np.nan_to_num(values) > 0).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(inside))
    return [(int(start), int(stop)) for start, stop in list(pairwise(edges))[::2]]
