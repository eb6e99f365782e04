"""Mangled bytes never get more than a refusal in our own words; `benchmarks/fuzz.py` feeds millions (docs/reliability.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.parsers import PARSERS, feed

FOUND = sorted((Path(__file__).parent / "found").iterdir())
CUTS = st.tuples(
    st.integers(0, 10**6), st.sampled_from(["flip", "cut", "drop", "double", "insert"]), st.binary(max_size=9)
)


def mangled(data: bytes, cuts: list[tuple[int, str, bytes]]) -> bytes:
    for number, kind, extra in cuts:
        place = number % (len(data) + 1)
        if kind == "flip" and place < len(data):
            data = data[:place] + bytes([data[place] ^ (1 << number % 8)]) + data[place + 1 :]
        elif kind == "cut":
            data = data[:place]
        elif kind == "drop":
            data = data[:place] + data[place + 1 + number % 13 :]
        elif kind == "double":
            data = data[:place] + data[place // 2 :]
        else:
            data = data[:place] + extra + data[place:]
    return data


@pytest.mark.parametrize("name", PARSERS)
def test_mangled_bytes_are_refused_in_our_own_words(name):
    parser = PARSERS[name]

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(parser.examples), st.lists(CUTS, min_size=1, max_size=4))
    def check(example, cuts):
        feed(parser, mangled(example, cuts))

    check()


@pytest.mark.parametrize("name", PARSERS)
def test_noise_is_refused(name):
    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
    def check(data):
        feed(PARSERS[name], data)

    check()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_fuzzing_once_found_is_refused(path):
    """Inputs on which `benchmarks/fuzz.py` met an error that was none of ours."""
    name = max((name for name in PARSERS if path.name.startswith(name)), key=len)
    assert feed(PARSERS[name], path.read_bytes()) is False


def test_the_first_example_of_each_is_accepted():
    for name, parser in PARSERS.items():
        if not name.startswith("list"):  # the files that they name are not there
            assert feed(parser, parser.examples[0]), name
