"""The look of the figures: readable axes, names at line ends, maps of any size."""

from xml.etree import ElementTree

import numpy as np
import pytest

from stratascope.tasks.report.style import heatmap, lines


def texts(svg: str) -> list[tuple[str, float, float]]:
    return [
        ("".join(item.itertext()), float(item.get("x", 0)), float(item.get("y", 0)))
        for item in ElementTree.fromstring(svg).iter("text")
    ]


@pytest.mark.parametrize("steps", [[0, 1, 3, 7, 17, 45, 360], [0, 100, 200, 300], [5], [0, 10, 1_000_000]])
def test_steps_are_plain_numbers_on_the_axis(steps):
    names = [text for text, _, _ in texts(lines({"a": (steps, [0.5] * len(steps))}, "fraction"))]
    assert not any("^" in name or "$" in name or "10\u2070" in name for name in names)
    assert any(name.startswith("training step") for name in names)
    assert "fraction" in names
    numbers = [float(name.replace(",", "").replace("M", "e6")) for name in names if name[0].isdigit()]
    assert max(numbers) > 1 or steps == [5]


def test_lines_are_named_at_their_ends_in_the_order_of_their_last_values():
    series = {f"line{number}": ([0, 1, 2], [0.5, 0.5, number / 10]) for number in range(10)}
    ends = [(y, text) for text, _, y in texts(lines(series, "y")) if text.startswith("line")]
    assert [text for _, text in sorted(ends, reverse=True)] == sorted(series)


def test_names_of_lines_that_end_together_do_not_touch():
    series = {f"run {number}": ([0, 1], [0.0, 0.9]) for number in range(16)}
    heights = sorted(y for text, _, y in texts(lines(series, "y")) if text.startswith("run "))
    assert len(heights) == 16
    assert min(np.diff(heights)) >= 12


def test_of_very_many_lines_the_outermost_are_named_and_the_picture_says_so():
    series = {f"r{number:03}": ([0, 1], [0.0, float(number)]) for number in range(100)}
    names = [text for text, _, _ in texts(lines(series, "y"))]
    assert {"r000", "r099"} <= set(names)
    assert "r050" not in names
    assert any("of 100 lines are named" in name for name in names)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 13), (60, 100), (400, 3)])
def test_a_map_of_any_size_keeps_its_scale_its_labels_and_a_bounded_height(rows, columns):
    grid = np.random.default_rng(0).random((rows, columns))
    grid[0, 0] = np.nan
    svg = heatmap(
        grid, [f"layer{n}" for n in range(rows)], [str(n * 500) for n in range(columns)], "std", "layer", "step"
    )
    names = [text for text, _, _ in texts(svg)]
    assert {"std", "layer", "step", "layer0", str((columns - 1) * 500)} <= set(names)
    _, _, width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split())
    assert height < 2 * width
    labels = sorted(x for text, x, _ in texts(svg) if text.isdigit() and int(text) % 500 == 0 and int(text) > 400)
    assert all(np.diff(labels) > 14)


def test_a_map_without_any_number_is_still_drawn():
    assert "<image" in heatmap(np.full((2, 2), np.nan), ["a", "b"], ["0", "1"], "x", "r", "c")
