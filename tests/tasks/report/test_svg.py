"""Drawings: small, the same to the eye, and safe to stand inside a page whatever the names in them."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from stratascope.tasks.report.style import COLOURS, heatmap, lines, moving_heatmap, moving_points, new_axes, to_svg
from stratascope.tasks.report.svg import compact, moving_frames, with_prefix

HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</svg><b>", "a & b", "$\\frac{1}$ and $x$", "--><p>",
    "100% 'sure'", "层/слой", "back\u202ewards", "nul\x01",
)  # fmt: skip


def texts(svg: str) -> list[str]:
    return ["".join(item.itertext()) for item in ElementTree.fromstring(svg).iter() if item.tag == "text"]


def tags(svg: str) -> set[str]:
    return {item.tag for item in ElementTree.fromstring(svg).iter()}


def test_a_path_is_shortened_without_moving_more_than_half_a_tenth():
    raw = '<svg viewBox="0 0 9 9"><path d="M 1.04 2.26 L 3.1 2.26 L 5.26 2.26 L 5.26 7 C 1 2 3 4 5 6 z" style="stroke: #000000"/></svg>'
    path = ElementTree.fromstring(compact(raw)).find("path")
    assert path.get("d") == "m1 2.3h4.3v4.7c-4.3-5-2.3-3-.3-1z"
    assert path.get("style") == "stroke:currentColor"


def test_a_line_runs_through_its_points():
    figure, axes = new_axes()
    axes.plot([0, 1, 2], [0, 1, 0.5], color=COLOURS[1])
    svg = to_svg(figure)
    expected = axes.transData.transform([(0, 0), (1, 1), (2, 0.5)])
    expected[:, 1] = 3.2 * 72 - expected[:, 1]
    colour = f"var(--c{COLOURS[1][1:].lower()})"
    path = next(item for item in ElementTree.fromstring(svg).iter("path") if colour in item.get("style", ""))
    moves = np.array([float(n) for n in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", path.get("d"))]).reshape(-1, 2)
    np.testing.assert_allclose(np.cumsum(moves, 0), expected, atol=0.11)


def test_many_round_markers_become_dots_at_their_places():
    maps = np.random.default_rng(0).normal(size=(2, 300, 2))
    groups = np.arange(300) % 3
    (_, first), (_, second) = moving_points([0, 5], maps, groups, {0: "a", 1: "b", 2: "c"})
    dots = [item for item in ElementTree.fromstring(first).iter("path") if item.get("d").count("h0") == 100]
    assert len(dots) == 3
    assert first != second
    places = np.array([[float(n) for n in dot.split()] for dot in re.findall(r"M([^h]+)h0", dots[0].get("d"))])
    # The drawing's horizontal coordinate is an affine map of the data's, its vertical one too and turned over.
    for axis, sign in ((0, 1), (1, -1)):
        assert np.corrcoef(places[:, axis], maps[0][groups == 0][:, axis])[0, 1] * sign > 0.99999


def test_frames_share_their_axes_and_differ_in_what_moves():
    frames = moving_heatmap(
        np.random.default_rng(1).random((3, 4, 4)), [0, 1, 9], list("abcd"), list("efgh"), "x", "r", "c"
    )
    assert [step for step, _ in frames] == [0, 1, 9]
    without = [re.sub(r'href="data:[^"]*"', "", svg) for _, svg in frames]
    assert without[0] == without[1] == without[2]
    assert len({svg for _, svg in frames}) == 3


def test_a_moving_artist_is_drawn_where_a_whole_drawing_puts_it():
    def drawing(height):
        figure, axes = new_axes()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        (line,) = axes.plot([0, 1], [height, height], color="#abcdef")
        return figure, line

    figure, line = drawing(0.2)
    frames = moving_frames(figure, [1, 2], [line], lambda place: line.set_ydata([(0.2, 0.7)[place]] * 2))
    for (_, moving), height in zip(frames, (0.2, 0.7), strict=True):
        found = [
            re.search(r'd="([^"]+)"[^>]*abcdef', svg).group(1) for svg in (moving, to_svg(drawing(height)[0]))
        ]
        assert found[0] == found[1]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_outside_are_text_and_nothing_else(name):
    figure, axes = new_axes()
    axes.plot([0, 1], [0, 1], label=name)
    axes.legend()
    axes.set_xlabel(name)
    axes.set_title(name)
    axes.set_xticks([0, 1], [name, "x"])
    shown = name.replace("\u202e", "\\u202e").replace("\x01", "\\u0001")
    drawn = [
        to_svg(figure),
        lines({name: ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, "y"),
        heatmap(np.eye(2), [name, "b"], [name, "b"], "c", "r", "k"),
    ]
    for svg in drawn:
        assert tags(svg) <= {"svg", "g", "defs", "path", "use", "text", "tspan", "clipPath", "rect", "image"}
        assert "onerror=" not in re.sub(r">[^<]*<", "><", svg)
        assert "xlink" not in svg
    assert texts(drawn[0]).count(shown) == 4


def test_equal_figures_are_equal_bytes_and_names_inside_are_unique_in_a_page():
    def draw():
        return lines({"a": ([0, 10, 2000], [0.1, 0.2, 0.3]), "b": ([0, 10, 2000], [0.3, 0.2, 0.1])}, "y")

    assert draw() == draw()
    first, second = with_prefix(draw(), "f1-"), with_prefix(draw(), "f2-")
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', first))
    assert used == ids[0]


def test_what_is_no_drawing_is_refused():
    with pytest.raises(ValueError, match="no well-formed SVG"):
        compact("<svg><g></svg>")
