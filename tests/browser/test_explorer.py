"""Maps to explore, in a real browser: the slider, pointing, loops, classes, the keyboard, and no picture where none is allowed."""

from __future__ import annotations

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from stratascope.storage.audits import write_audit
from stratascope.storage.store import Store
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report import build
from stratascope.tasks.report.drawing import drawing_folder, write_figures
from stratascope.tasks.report.explorer import explorer_data

pytestmark = pytest.mark.browser

COUNT = 30
NAMES = {0: "ant", 1: "<b>bee</b>", 2: "cat"}
LISTED = "return Array.from(document.querySelectorAll('[data-role=samples] li')).map(li => li.dataset.sample)"
PIXELS = (
    "const c = arguments[0]; const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
    "let sum = 0; for (let n = 0; n < d.length; n += 1) { sum = (sum * 31 + d[n]) % 1000003; } return sum;"
)


def clusters() -> np.ndarray:
    """(step, sample, 2): three groups in three corners at the last step, mixed at the first."""
    corners = np.array([[-8.0, -8.0], [8.0, -8.0], [0.0, 8.0]])
    spread = np.random.default_rng(0).normal(size=(2, COUNT, 2))
    return np.stack([spread[0], corners[np.arange(COUNT) % 3] + spread[1] * 0.4])


def figure(pictures: bool) -> Figure:
    groups = np.arange(COUNT) % 3
    shown = np.broadcast_to(np.arange(COUNT, dtype=np.uint8)[:, None, None, None] * 8, (COUNT, 6, 6, 1))
    data = explorer_data(
        [0, 10], ["first", "last"], ["t-SNE in 2-D", "PCA in 2-D"], [[clusters(), clusters()[:, ::-1]]] * 2,
        [f"s{n}" for n in range(COUNT)], groups, NAMES, shown if pictures else None,
    )  # fmt: skip
    words = {
        name: f"{name} 1." for name in ("shows", "reading", "caution", "audience", "practitioner", "researcher")
    }
    table = {"sample_id": [f"s{n}" for n in range(COUNT)]}
    return Figure(
        key="explorer", title="Maps to explore", explorer=data, animation=b"GIF89a", table=table, **words
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return written(tmp_path_factory.mktemp("explorer"), pictures=True)


@pytest.fixture(scope="module")
def report(place):
    """Instead of the demo's: these tests need none."""
    return place.parents[1]


def written(folder, pictures: bool):
    store = Store.open(folder / "store", create=True)
    write_audit(store, {"checks": [], "conditions": [], "failures": [], "title": "t", "verdict": "pass", "checkpoints": []})  # fmt: skip
    with drawing_folder(store, "embedding", "") as report:
        write_figures(report, "embedding", "", [figure(pictures)])
    pages = build.plan_pages(str(store.path))
    build.write_pages(str(store.path), pages)
    build.finish_report(str(store.path), pages, "")
    return store.path / "report" / "analyses" / "embedding.html"


def opened(browser, place, **more):
    browser.open(place, **more)
    browser.one(".explorer[data-drawn]")
    canvases = browser.driver.find_elements("css selector", ".explorer-box canvas[tabindex]")
    browser.until(lambda: canvases[0].get_property("width") > 100, "the maps are drawn")
    return canvases


def dragged(browser, canvas, points):
    """The mouse goes along `points`, in shares of the canvas's width from its middle, with its button held."""
    size = canvas.size["width"]
    browser.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
    moves = ActionChains(browser.driver, duration=20)
    first, *rest = [(round(x * size), round(y * size)) for x, y in points]
    moves.move_to_element_with_offset(canvas, *first).click_and_hold()
    for point in rest:
        moves.move_to_element_with_offset(canvas, *point)
    moves.release().perform()


CORNER = [(-0.48, 0.05), (-0.1, 0.05), (-0.1, 0.48), (-0.48, 0.48), (-0.48, 0.05)]
"""Around the lower left."""


def test_a_loop_lists_the_samples_inside_it_and_marks_them_in_every_map(browser, place):
    canvases = opened(browser, place)
    before = browser.run(PIXELS, canvases[1])
    dragged(browser, canvases[0], CORNER)
    wanted = [f"s{n}" for n in range(0, COUNT, 3)]
    assert browser.run(LISTED) == wanted
    assert "10 samples: 10 × ant" in browser.one("[data-role=samples] p").text
    assert browser.run(PIXELS, canvases[1]) != before
    assert browser.run("return document.querySelectorAll('[data-role=samples] li canvas').length") == 10
    browser.one("[data-role=clear]").click()
    assert browser.run(LISTED) == []


def test_the_slider_moves_all_maps_and_a_loop_means_the_step_that_is_shown(browser, place):
    canvases = opened(browser, place)
    before = [browser.run(PIXELS, canvas) for canvas in canvases]
    browser.one("input[data-role=step]").send_keys(Keys.HOME)
    browser.until(
        lambda: all(browser.run(PIXELS, canvas) != old for canvas, old in zip(canvases, before, strict=True)),
        "all maps follow the slider",
    )
    dragged(browser, canvases[0], CORNER)
    assert set(browser.run(LISTED)) != {f"s{n}" for n in range(0, COUNT, 3)}


def test_pointing_shows_the_picture_and_the_class(browser, place):
    canvases = opened(browser, place)
    size = canvases[0].size["width"]
    browser.run("arguments[0].scrollIntoView({block: 'center'})", canvases[0])
    middle = np.abs(clusters()).max()
    x, y = clusters()[1][1] / middle / 2 * 0.92
    moves = ActionChains(browser.driver).move_to_element_with_offset(
        canvases[0], round(x * size), round(-y * size)
    )
    moves.perform()
    tip = browser.until(
        lambda: browser.driver.find_element("css selector", ".explorer-tip:not([hidden])"), "a note"
    )
    assert "<b>bee</b>" in tip.text
    assert browser.run("return arguments[0].querySelectorAll('canvas').length", tip) == 1
    assert browser.run("return document.querySelectorAll('.explorer-tip b b').length") == 0


def test_the_keyboard_goes_from_sample_to_sample_marks_and_clears(browser, place):
    canvases = opened(browser, place)
    browser.run("arguments[0].focus()", canvases[0])
    canvases[0].send_keys(Keys.ARROW_LEFT)
    tip = browser.until(
        lambda: browser.driver.find_element("css selector", ".explorer-tip:not([hidden])"), "a note"
    )
    first = tip.text
    canvases[0].send_keys(Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert tip.text != first
    canvases[0].send_keys(Keys.ENTER)
    assert len(browser.run(LISTED)) == 1
    assert browser.run(LISTED)[0] in tip.text
    canvases[0].send_keys(Keys.ESCAPE)
    assert browser.run(LISTED) == []


def test_a_class_can_be_chosen_and_another_method_shown(browser, place):
    canvases = opened(browser, place)
    browser.one("[data-role=class]:nth-child(3)").click()
    assert browser.run(LISTED) == [f"s{n}" for n in range(2, COUNT, 3)]
    assert browser.one("[data-role=class]:nth-child(3)").get_attribute("aria-pressed") == "true"
    before = browser.run(PIXELS, canvases[0])
    browser.one("[data-role=method]:nth-child(2)").click()
    browser.until(lambda: browser.run(PIXELS, canvases[0]) != before, "the other method's map")


def test_on_a_telephone_the_maps_stand_below_each_other_and_in_the_dark_their_colours_change(browser, place):
    light = browser.run(PIXELS, opened(browser, place, width=390, height=844)[0])
    tops = browser.run("return Array.from(document.querySelectorAll('.explorer-box')).map(b => b.getBoundingClientRect().top)")  # fmt: skip
    assert tops[1] > tops[0] + 200
    assert browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert browser.run(PIXELS, opened(browser, place, width=390, height=844, scheme="dark")[0]) != light
    assert browser.complaints() == []


def test_an_animation_is_offered(browser, place):
    opened(browser, place)
    link = browser.one("a[aria-label^='Animation']")
    address = link.get_attribute("href")
    assert address.startswith("file:")
    assert address.endswith(".gif")
    assert (place.parents[1] / "data").joinpath(address.rpartition("/")[2]).read_bytes() == b"GIF89a"


def test_without_pictures_the_words_remain(browser, tmp_path):
    canvases = opened(browser, written(tmp_path, pictures=False))
    dragged(browser, canvases[0], CORNER)
    assert len(browser.run(LISTED)) == 10
    assert browser.run("return document.querySelectorAll('.explorer canvas[aria-hidden]').length") == 0
    assert browser.complaints() == []
