"""Words and numbers for people."""

import pytest

from stratascope.tasks.report.text import (
    counted,
    joined,
    marked,
    natural_order,
    plain_number,
    plain_step,
    shortened,
    visible,
)


def test_characters_that_hide_or_reorder_become_escapes_and_all_others_stay():
    assert visible("safe\u202egnp.exe\x00\u200b\ud800") == "safe\\u202egnp.exe\\u0000\\u200b\\ud800"
    assert visible(" ") == "␣"
    assert visible("Größe 层 <b> %2F \"'\n") == "Größe 层 <b> %2F \"'\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (12.0, "12"), (1234567, "1,234,567"), (0.123456, "0.1235"), (0.0001, "0.0001"),
        (2.5e-7, "2.5e-7"), (-3e9, "-3e9"), (12345.678, "12,346"), (float("nan"), "–"), (None, "–"), (float("inf"), "–"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_do(value, text):
    assert plain_number(value) == text


def test_steps_are_plain_numbers():
    assert [plain_step(step) for step in (0, 45, 1500, 100000, 2_000_000, 1_234_567)] == [
        "0", "45", "1,500", "100,000", "2M", "1,234,567",
    ]  # fmt: skip


def test_long_names_lose_their_middle_and_keep_the_end_that_tells_them_apart():
    name = "features.stage3.block17.convolution.conv2"
    assert shortened(name, 20).endswith(".conv2")
    assert len(shortened(name, 20)) == 20
    assert shortened("conv1", 20) == "conv1"


def test_lists_and_counts_in_words():
    assert joined(["a", "b", "c"], 2) == "a; b; and 1 more"
    assert [counted(number, "file") for number in (0, 1, 1200)] == ["0 files", "1 file", "1,200 files"]


def test_numbers_in_names_sort_as_numbers():
    names = ["run-10", "run-2", "a", "run-2b", "10", "9"]
    assert sorted(names, key=natural_order) == ["9", "10", "a", "run-2", "run-2b", "run-10"]


def test_backticks_become_code_and_everything_else_stays_text():
    assert marked("entries (`part`), <b>`a<i>`") == "entries (<code>part</code>), &lt;b&gt;<code>a&lt;i&gt;</code>"
