"""The report in a real browser: from files alone, for two readers, with a keyboard, on a telephone, in the dark."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from stratascope.storage.audits import write_audit
from stratascope.storage.store import Store
from stratascope.tasks.report import build

pytestmark = pytest.mark.browser

SECTIONS = "return Array.from(document.querySelectorAll('.ordered > section > h2')).map(h => h.textContent)"
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
CAMERA = "return JSON.parse(JSON.stringify(arguments[0]._fullLayout.scene._scene.getCamera().eye))"


def pages_of(report):
    return sorted(report.rglob("*.html"))


def test_every_page_opens_without_complaint_and_asks_nothing_of_the_network(browser, report):
    for page in pages_of(report):
        browser.open(page)
        assert browser.run("return document.querySelector('h1').textContent")
    assert browser.complaints() == []
    asked = browser.requests()
    assert {address.split(":", 1)[0] for address in asked} <= {"file", "data", "blob"}
    assert any(address.endswith("report.js") for address in asked)


@pytest.mark.parametrize("width", [390, 820, 1300])
def test_no_page_is_wider_than_the_screen(browser, report, width):
    wide = {}
    for page in pages_of(report):
        browser.open(page, width=width, height=844)
        if browser.run(OVERFLOW) > 0:
            wide[str(page)] = browser.run(OVERFLOW)
    assert wide == {}


def test_on_a_telephone_the_list_of_pages_is_folded_and_text_is_large_enough(browser, report):
    browser.open(report / "index.html", width=390, height=844)
    assert not browser.run("return document.querySelector('nav details').open")
    drawn = browser.run(
        "return Array.from(document.querySelectorAll('.drawing svg text'))"
        ".map(t => t.getBoundingClientRect()).filter(r => r.height).map(r => Math.min(r.height, r.width || 99))"
    )
    assert drawn
    sizes = browser.run(
        "return Array.from(document.querySelectorAll('.pair .drawing svg')).map(s =>"
        " s.getBoundingClientRect().width / s.viewBox.baseVal.width * 10)"
    )
    assert min(sizes) >= 7.5


def test_the_report_asks_who_reads_then_orders_and_words_its_pages(browser, report):
    browser.open(report / "index.html")
    first = browser.run(SECTIONS)
    assert browser.one(".ask").is_displayed()
    browser.one(".ask [data-reader-choice=researcher]").click()
    assert not browser.run("return document.querySelector('.ask').checkVisibility()")
    researcher = browser.run(SECTIONS)
    assert researcher != first
    assert sorted(researcher) == sorted(first)
    assert not browser.run("return document.querySelector('figcaption .practitioner').checkVisibility()")
    assert browser.run("return document.querySelector('figcaption .researcher').checkVisibility()")

    # The choice holds on the next page, and can be changed there.
    browser.driver.find_element("css selector", "nav a[href*='analyses/outputs']").click()
    assert browser.run("return document.documentElement.dataset.reader") == "researcher"
    browser.one(".reader-choice [data-reader-choice=practitioner]").click()
    assert browser.run("return document.querySelector('figcaption .practitioner').checkVisibility()")
    pressed = browser.driver.find_element("css selector", ".reader-choice [aria-pressed=true]")
    assert pressed.get_attribute("data-reader-choice") == "practitioner"


def test_without_a_store_in_the_browser_the_choice_travels_in_the_address(browser, report):
    browser.open(report / "index.html")
    browser.run("document.documentElement.dataset.reader = 'researcher'")
    browser.driver.find_element("css selector", "nav a[href*='runs/']").click()
    browser.run("localStorage.clear()")
    assert "reader=researcher" in browser.driver.current_url
    assert browser.run("return document.documentElement.dataset.reader") == "researcher"


def test_the_keyboard_moves_the_step_slider_and_picture_and_label_follow(browser, report):
    browser.open(report / "analyses" / "outputs.html")
    slider = browser.one("figure:has(.drawing[role=img]) input[type=range][data-role=step]")
    figure = slider.find_element("xpath", "ancestor::figure")
    picture = "return arguments[0].querySelector('.drawing').innerHTML"
    label = figure.find_element("css selector", "output")
    last, last_label = browser.run(picture, figure), label.text
    slider.send_keys(Keys.HOME)
    first = browser.run(picture, figure)
    assert first != last
    assert label.text != last_label
    assert slider.get_attribute("aria-valuetext") == f"training step {label.text.replace(',', '')}"
    first_label = label.text
    slider.send_keys(Keys.ARROW_RIGHT)
    assert label.text not in (first_label, last_label)
    slider.send_keys(Keys.END)
    assert browser.run(picture, figure) == last
    assert label.text == last_label


def test_the_play_button_runs_through_the_steps_and_stops(browser, report):
    browser.open(report / "analyses" / "outputs.html")
    button = browser.one("figure:has(.drawing[role=img]) [data-role=play]")
    figure = button.find_element("xpath", "ancestor::figure")
    label = figure.find_element("css selector", "output")
    last = label.text
    button.click()
    started = browser.until(lambda: label.text != last and label.text, "playing starts at the first step")
    browser.until(lambda: label.text != started, "the step moves by itself")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"


def solid(browser, report):
    browser.open(report / "analyses" / "embedding.html")
    target = browser.one("figure:not([hidden]) [data-plotly]")
    browser.until(
        lambda: browser.run("return !!arguments[0]._fullLayout?.scene?._scene", target), "a solid drawing"
    )
    browser.until(lambda: browser.run("return !!arguments[0].querySelector('canvas')", target), "a canvas")
    return target


def test_the_solid_embedding_turns_with_the_mouse_and_with_the_keyboard(browser, report):
    target = solid(browser, report)
    start = browser.run(CAMERA, target)
    moves = ActionChains(browser.driver).move_to_element(target).click_and_hold()
    for _ in range(6):
        moves = moves.move_by_offset(15, 6)
    moves.release().perform()
    dragged = browser.until(
        lambda: (now := browser.run(CAMERA, target)) != start and now, "dragging turns the drawing"
    )
    assert abs(dragged["x"] - start["x"]) + abs(dragged["y"] - start["y"]) > 0.05
    browser.run("arguments[0].focus()", target)
    target.send_keys(Keys.ARROW_LEFT)
    turned = browser.until(lambda: (now := browser.run(CAMERA, target)) != dragged and now, "a key turns it too")
    target.send_keys("+")
    browser.until(
        lambda: (
            sum(v**2 for v in browser.run(CAMERA, target).values()) < 0.95 * sum(v**2 for v in turned.values())
        ),
        "plus brings it nearer",
    )


def test_the_step_slider_of_a_solid_drawing_changes_its_points_and_keeps_the_view(browser, report):
    target = solid(browser, report)
    browser.run("arguments[0].focus()", target)
    target.send_keys(Keys.ARROW_LEFT)
    points = "return JSON.stringify(arguments[0].data[0].x)"
    before, view = browser.run(points, target), browser.run(CAMERA, target)
    target.find_element("xpath", "ancestor::figure").find_element("css selector", "[data-role=step]").send_keys(
        Keys.HOME
    )
    browser.until(lambda: browser.run(points, target) != before, "the points move")
    now = browser.run(CAMERA, target)
    assert all(abs(now[axis] - view[axis]) < 1e-6 for axis in view)


def test_the_dark_scheme_changes_paper_ink_and_drawings(browser, report):
    look = (
        "const s = e => getComputedStyle(document.querySelector(e));"
        "return [s('html').backgroundColor, s('figure').backgroundColor, s('h1').color, s('.drawing svg text').fill]"
    )
    browser.open(report / "index.html")
    light = browser.run(look)
    browser.scheme("dark")
    dark = browser.run(look)
    assert all(first != second for first, second in zip(light, dark, strict=True))


def test_paper_carries_no_navigation_and_is_light_even_in_the_dark(browser, report):
    browser.open(report / "index.html", scheme="dark", media="print")
    shown = (
        "return [...document.querySelectorAll('nav, .top, .slider, .ask')].filter(e => e.checkVisibility()).length"
    )
    assert browser.run(shown) == 0
    assert browser.run("return getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("return getComputedStyle(document.querySelector('h1')).color") == "rgb(29, 37, 48)"


def test_the_first_stop_of_the_keyboard_leads_past_the_navigation(browser, report):
    browser.open(report / "index.html")
    browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    link = browser.driver.switch_to.active_element
    assert link.get_attribute("class") == "skip"
    link.send_keys(Keys.ENTER)
    assert browser.run("return document.activeElement.id") == "main"


def test_a_link_to_a_figure_that_is_filtered_away_shows_it(browser, report):
    browser.open(report / "analyses" / "embedding.html")
    hidden = browser.run("return document.querySelector('figure[hidden]')?.id")
    if hidden is None:
        assert browser.run("return document.querySelectorAll('figure').length") < 7
        return
    browser.run("location.hash = arguments[0]", hidden)
    browser.until(
        lambda: browser.run("return !document.getElementById(arguments[0]).hidden", hidden), "it is shown"
    )


def test_a_long_table_is_paged_and_filtered_and_a_hostile_name_does_nothing(browser, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    evil = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    files = [
        {"run": "a", "step": step, "file": f"in/step-{step}.pt", "status": "cached", "reason": ""}
        for step in range(90)
    ]
    files.append({"run": "a", "step": 90, "file": evil, "status": "quarantined", "reason": evil})
    record = {
        "checks": [],
        "conditions": [],
        "failures": [evil],
        "title": evil,
        "verdict": "pass",
        "checkpoints": files,
    }
    write_audit(store, record)
    pages = build.plan_pages(str(store.path))
    build.write_pages(str(store.path), pages)
    build.finish_report(str(store.path), pages, "")
    browser.open(store.path / "report" / "index.html")
    rows = "return [...document.querySelectorAll('table[data-page] tbody tr')].filter(r => r.checkVisibility()).length"
    assert browser.run(rows) == 25
    browser.one(".pager button:last-child").click()
    assert "26–50 of 91" in browser.one(".pager").text
    browser.one(".tools input[type=search]").send_keys("quarantined")
    assert browser.run(rows) == 1
    assert "onerror" in browser.one("table[data-page] tbody tr:not([hidden])").text
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.images.length") == 0
    assert browser.complaints() == []
