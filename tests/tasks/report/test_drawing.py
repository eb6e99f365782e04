"""Figures on their way to the pages: packed without loss, free of anything that could act, swept when stale."""

import gzip
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.drawing import (
    MOST_FRAMES,
    draw_analysis,
    pack_frames,
    read_figures,
    safe_plotly,
    script_of,
    write_figures,
)

WORDS = {
    name: f"{name}." for name in ("shows", "reading", "caution", "audience", "practitioner", "researcher", "title")
}
SVG = '<svg viewBox="0 0 9 9" style="--w:9"><text x="1" y="{0}">step {0}</text></svg>'


def unpacked(packed):
    return [
        packed["head"] + "".join(packed["pieces"][piece] for piece in order) + packed["tail"]
        for order in packed["frames"]
    ]


def loaded(script: str):
    """The data that a script hands over, and the name it goes by."""
    found = re.fullmatch(
        r"\(window\.stratascope=window\.stratascope\|\|\{\}\)\[(.*?)\]=(.*);\n", script, re.DOTALL
    )
    return json.loads(found.group(1)), json.loads(found.group(2))


@settings(deadline=None)
@given(some.lists(some.text("<abc>/ ", max_size=30), min_size=1, max_size=5))
def test_packed_frames_unpack_to_what_they_were(frames):
    assert unpacked(pack_frames(frames)) == frames


def test_what_frames_share_is_kept_once():
    frames = [SVG.format(step).replace("</svg>", "<path/>" * 200 + "</svg>") for step in range(30)]
    packed = pack_frames(frames)
    assert unpacked(packed) == frames
    assert len(json.dumps(packed)) < sum(map(len, frames)) / 10


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--", "]]>", "\u2028", '"\\', "ü"])
def test_no_text_can_leave_a_data_script(text):
    script = script_of(text, {text: [text, math.nan, math.inf, 0.5]})
    assert "<" not in script
    assert script.isascii()
    assert loaded(script) == (text, {text: [text, None, None, 0.5]})


def test_names_in_a_plotly_figure_are_text():
    name = '<a href="http://x.test">click</a>'
    trace = {"name": name, "x": [1], "text": [name], "hovertemplate": f"{name}<extra></extra>"}
    plot = {
        "data": [trace],
        "frames": [{"name": "0", "data": [trace]}, {"name": "5", "data": [trace]}],
        "layout": {},
    }
    for frame in safe_plotly(plot)["frames"]:
        for key in ("name", "text", "hovertemplate"):
            assert "<a" not in str(frame["data"][0][key])
        assert frame["data"][0]["hovertemplate"] == "%{fullData.name}<extra></extra>"
    assert "data" not in safe_plotly(plot)


def test_frames_and_plotly_frames_are_thinned_to_the_same_even_choice(tmp_path):
    steps = [step * 10 for step in range(200)]
    frames = tuple((step, SVG.format(step)) for step in steps)
    plot = {"frames": [{"name": str(step), "data": []} for step in steps], "layout": {}}
    write_figures(
        tmp_path,
        "some",
        "a",
        [
            Figure(key="flat", **WORDS, frames=frames),
            Figure(key="solid", **WORDS, plotly=plot),
        ],
    )
    flat, solid = read_figures(tmp_path)
    assert flat["steps"] == solid["steps"]
    assert len(flat["steps"]) == MOST_FRAMES
    assert (flat["steps"][0], flat["steps"][-1]) == (0, 1990)
    _, data = loaded((tmp_path / flat["script"]).read_text())
    assert [f"step {step}<" in svg for step, svg in zip(flat["steps"], unpacked(data), strict=True)] == [True] * 40
    assert "step 1990" in (tmp_path / flat["picture"]).read_text()


def test_the_numbers_behind_a_figure_lie_beside_the_pages_and_large_ones_compressed(tmp_path):
    small = Figure(key="small", **WORDS, svg=SVG, table={"layer": ["a,b", 'c"'], "value": [1 / 3, math.nan]})
    large = Figure(key="large", **WORDS, svg=SVG, table={"value": [number / 7 for number in range(60_000)]})
    write_figures(tmp_path, "some", "a", [small, large])
    first, second = read_figures(tmp_path)
    assert (tmp_path / first["csv"]).read_text() == 'layer,value\n"a,b",0.333333333\n"c""",nan\n'
    assert second["csv"].endswith(".csv.gz")
    packed = (tmp_path / second["csv"]).read_bytes()
    numbers = gzip.decompress(packed).decode().split()
    assert float(numbers[-1]) == pytest.approx(59_999 / 7, rel=1e-8)
    write_figures(tmp_path, "some", "a", [small, large])
    assert (tmp_path / second["csv"]).read_bytes() == packed


def test_an_analysis_is_drawn_from_the_findings_of_its_own_run(made_up):
    made_up.captured("a", [0, 5])
    made_up.captured("b", [0, 5])
    for run, norm in (("a", 1.5), ("b", 2.5)):
        rows = [Row("parameter_norm", norm * (1 + step), step=step, n=9) for step in (0, 5)]
        rows += [
            Row(name, 0, step=step)
            for name in ("non_finite_count", "missing_keys", "unexpected_keys")
            for step in (0, 5)
        ]
        made_up.filed(run, "intake", rows)
    assert draw_analysis(str(made_up.store.path), "b", "intake", {}) == 1
    (figure,) = read_figures(made_up.report)
    assert figure["run"] == "b"
    assert "2.5" in figure["caution"]
    assert "15" in figure["caution"]
    assert draw_analysis(str(made_up.store.path), "absent", "intake", {}) == 0


def test_figures_that_are_drawn_no_more_are_forgotten(tmp_path):
    one, two = (Figure(key=key, **WORDS, svg=SVG) for key in ("one", "two"))
    write_figures(tmp_path, "some", "a", [one, two])
    write_figures(tmp_path, "some", "a", [two])
    assert [item["key"] for item in read_figures(tmp_path)] == ["two"]
    assert len(list((tmp_path / ".figures").rglob("*.svg"))) == 1
