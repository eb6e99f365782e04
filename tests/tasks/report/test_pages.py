"""The pages: sound and closed whatever the names, usable whatever the size, honest about what is missing."""

import re

import pytest

from stratascope.errors import StoreError
from stratascope.storage.ledger import Row
from stratascope.storage.verification import verify
from stratascope.tasks.report import build

HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script></figure>", "it's \"quoted\"", "100%2F..%00",
    "a/b/../../c", "..", "層 слой 🙂", "safe\u202egnp.exe", "{{ 7*7 }}", "x" * 300, "name?with#marks&more", " ", "$x$",
    "javascript:alert(1)",
)  # fmt: skip


@pytest.fixture
def Page(reading):
    return reading.Page


@pytest.fixture
def sound(reading):
    def check(pages: dict[str, str], report) -> None:
        found = {page: reading.problems_of(text, report / page) for page, text in pages.items()}
        assert {page: problems for page, problems in found.items() if problems} == {}

    return check


def hostile_report(made_up):
    made_up.captured("run", [0, 5], HOSTILE)
    rows = [
        Row("activation_std", 0.5, layer=name, probe="test", part=f"of={name}", step=step, n=3)
        for name in HOSTILE
        for step in (0, 5)
    ]
    made_up.filed("run", "statistics", rows + [Row("sparsity", status="failed", reason=name) for name in HOSTILE])
    for number, name in enumerate(HOSTILE):
        plot = {"data": [{"type": "scatter3d", "name": name, "x": [1.0], "y": [1.0], "z": [1.0]}], "layout": {}}
        words = dict.fromkeys(("shows", "reading", "caution", "audience", "practitioner", "researcher"), name)
        made_up.drawn("run", f"a{number}", **words, title=name, layer=name, probe=name, headline=True)
        made_up.drawn("run", f"b{number}", title=name, layer=name, plotly=plot)
        made_up.file("run", number + 10, f"/in/{name}", "quarantined", name)
    made_up.audited(
        "fail",
        title=HOSTILE[1],
        failures=list(HOSTILE),
        checks=[made_up.raised("c", "run", 5, name, reason=name, part=name, bound=name) for name in HOSTILE],
        conditions=[{"name": "c", "metric": HOSTILE[0], "bound": "<= 1 <b>", "severity": "fail", "counts": {"fail": 15}}],
    )  # fmt: skip
    return made_up.written()


def test_names_from_outside_can_only_ever_be_text(made_up, sound, Page):
    pages = hostile_report(made_up)
    sound(pages, made_up.report)
    for page, text in pages.items():
        tags = [tag for tag, _, _ in Page(text).elements]
        assert "img" not in tags, page
        sources = [given.get("src", "") for given, _ in Page(text).all("script")]
        assert sources[0] == ""
        assert all(re.fullmatch(r"(\.\./)?(data|assets)/[^:]+\.js", source) for source in sources[1:])
        assert not set("\u202e\x00") & set(text)
        assert "49" not in "".join(text for _, text in Page(text).all("h1"))
    for script in (made_up.report / "data").glob("*.js"):
        assert "<" not in script.read_text()


def test_every_layer_has_its_page_and_says_its_name(made_up, Page):
    pages = hostile_report(made_up)
    headings = {Page(text).all("h1")[0][1] for page, text in pages.items() if page.startswith("layers/")}
    shown = {"safe\u202egnp.exe": "safe\\u202egnp.exe", " ": "␣"}
    assert headings == {f"Layer {shown.get(name, name)}" for name in HOSTILE}
    paths = {page for page in pages if page.startswith("layers/")}
    assert len(paths) == len(HOSTILE)
    assert not any(page.count("/") > 1 or ".." in page.split("/") for page in paths)


def test_pages_and_what_we_wrote_beside_them_name_no_address_outside(made_up, reading):
    pages = hostile_report(made_up)
    written = [*pages.values(), *(p.read_text() for p in (made_up.report / "data").glob("*.js"))]
    written += [(made_up.report / "assets" / name).read_text() for name in ("report.js", "report.css")]
    assert set().union(*map(reading.addresses_outside, written)) == set()


def test_an_empty_store_says_so(made_up, sound, Page):
    pages = made_up.written()
    assert list(pages) == ["index.html", "history.html"]
    sound(pages, made_up.report)
    overview = Page(pages["index.html"])
    assert overview.all("section", class_="verdict")[0][0]["data-verdict"] == ""
    assert "Nothing has been audited yet" in pages["index.html"]
    assert "stratascope audit" in pages["index.html"]
    assert "everything is new" not in pages["index.html"]


def test_files_that_were_not_used_are_listed_with_their_reason(made_up, sound, Page):
    made_up.captured("a", [0, 5])
    made_up.file("a", 7, "/in/broken.pt", "quarantined", "broken.pt ends too early.")
    made_up.file("a", 8, "/in/fresh.pt", "deferred", "fresh.pt changed while it was read.")
    made_up.file("a", 5, "/in/copy.pt", "duplicate")
    made_up.file("a", None, "/in/stepless.pt", "deferred", "no step can be told from it")
    made_up.file("only-bad", 1, "/in/bad.pt", "quarantined", "bad.pt is no checkpoint.")
    made_up.audited("error", failures=["gradients (a step 5): out of memory"])
    pages = made_up.written()
    sound(pages, made_up.report)
    for text in (pages["index.html"], pages["runs/a.html"]):
        states = [text for _, text in Page(text).all("span", class_="status")]
        assert {"computed", "quarantined", "deferred", "duplicate"} <= set(states)
        assert "broken.pt ends too early." in text
        assert "/in/" not in text
    assert "out of memory" in pages["index.html"]
    assert "bad.pt is no checkpoint." in pages["runs/only-bad.html"]
    assert "4 of 6 files" in pages["runs/a.html"]


def test_raised_checks_are_joined_over_the_steps_and_the_worst_stand_first(made_up, sound):
    made_up.captured("a", [0, 5, 10], ("conv", "fc"))
    checks = [made_up.raised("dead", "a", step, "conv", outcome="warn", value=step / 10) for step in (0, 5, 10)]
    checks.append(made_up.raised("finite", "a", 5, "fc"))
    conditions = [
        {"name": "dead", "metric": "dead_fraction", "bound": "<= 0.9", "severity": "warn", "counts": {"pass": 3, "warn": 3}},
        {"name": "finite", "metric": "non_finite_count", "bound": "<= 0", "severity": "fail", "counts": {}},
    ]  # fmt: skip
    made_up.audited("fail", checks=checks, conditions=conditions)
    pages = made_up.written()
    sound(pages, made_up.report)
    table = pages["index.html"].split('aria-label="Checks that were raised"')[1].split("</table>")[0]
    rows = table.split("<tbody>")[1].split("<tr>")[1:]
    assert len(rows) == 2
    assert "finite" in rows[0]
    assert "3 steps, 0 – 10" in rows[1]
    assert "Raised: 1 fail, 3 warn." in pages["index.html"]
    assert "3 steps, 0 – 10" in pages["checks/dead.html"]
    assert "3 steps, 0 – 10" in pages["layers/conv.html"]
    assert "no finding to judge" in pages["checks/finite.html"]


def test_what_changed_is_told_against_the_audit_before(made_up, Page):
    made_up.captured("a", [0])
    made_up.filed("a", "outputs", made_up.accuracy_rows([0, 5], start=0.5, end=0.52))
    made_up.audited("pass")
    assert "everything is new, 1 checkpoint in all" in made_up.written()["index.html"]
    made_up.checkpoints.clear()
    made_up.file("a", 0, "a-0.pt", "cached")
    made_up.file("a", 5, "a-5.pt")
    made_up.file("a", 7, "a-7.pt", "quarantined", "a-7.pt is no checkpoint.")
    made_up.audited("warn", checks=[made_up.raised("dead", "a", 5, "conv", outcome="warn")])
    told = "\n".join(text for _, text in Page(made_up.written()["index.html"]).all("li"))
    for sentence in (
        "Computed anew: a step 5.",
        "The verdict went from pass to warn.",
        "Newly raised: dead (a in conv).",
        "Newly quarantined: a-7.pt (a-7.pt is no checkpoint).",
        "Accuracy of a on test: 0.500 at step 0, 0.520 at step 5 (within its interval, hence no sure change).",
    ):
        assert sentence in told
    made_up.checkpoints[:] = [item | {"status": item["status"].replace("computed", "cached")} for item in made_up.checkpoints]  # fmt: skip
    made_up.audited("warn", checks=[made_up.raised("dead", "a", 5, "conv", outcome="warn")])
    assert "Nothing changed since the audit before." in made_up.written()["index.html"]


def test_a_run_without_accuracy_shows_how_far_its_weights_moved(made_up, sound, Page):
    made_up.captured("a", [0, 5])
    made_up.filed("a", "triage", [Row("distance_to_first", step / 2, step=step, n=9) for step in (0, 5)])
    made_up.audited("pass")
    pages = made_up.written()
    sound(pages, made_up.report)
    assert "Distance of the weights from the start" in pages["index.html"]
    assert "accuracy" not in "".join(text for _, text in Page(pages["index.html"]).all("th"))


def test_a_thousand_checkpoints_stay_usable_and_small(made_up, sound, Page):
    steps = list(range(0, 100_000, 100))
    made_up.captured("long", steps)
    made_up.filed("long", "outputs", made_up.accuracy_rows(steps))
    made_up.checkpoints[3] |= {"status": "quarantined", "reason": "unreadable"}
    made_up.audited("pass")
    pages = made_up.written()
    sound(pages, made_up.report)
    overview, run = Page(pages["index.html"]), Page(pages["runs/long.html"])
    assert len(overview.all("span", class_="status")) == 200
    assert "unreadable" in pages["index.html"]
    assert "800 more" in pages["index.html"]
    assert len(run.all("span", class_="status")) == 1000
    assert run.all("table", data_page="25")
    assert len(pages["index.html"]) < 200_000
    assert len(pages["runs/long.html"]) < 500_000


def test_hundreds_of_layers_and_eight_runs_stay_small_and_within_reach(made_up, sound, Page):
    layers = [f"features.stage{n // 10}.block{n % 10}.convolution" for n in range(300)]
    for number in range(8):
        made_up.captured(f"run-{number}", [0, 10, 100], layers)
        for probe in ("test", "train"):
            made_up.filed(
                f"run-{number}",
                f"outputs-{probe}",
                made_up.accuracy_rows([0, 10, 100], probe, end=0.5 + number / 20),
            )
    made_up.filed(
        "run-0", "statistics", [Row("activation_std", 0.1 * step, layer=name, probe="test", step=step) for name in layers for step in (0, 10, 100)]
    )  # fmt: skip
    made_up.drawn("run-0", "statistics", headline=True)
    made_up.audited("pass")
    pages = made_up.written()
    sound(pages, made_up.report)
    assert sum(map(len, pages.values())) < 5_000_000
    everything = Page(pages["all-layers.html"]).all("a")
    assert {text for _, text in everything} >= set(layers)
    near = [text for _, text in Page(pages[f"layers/{layers[150]}.html"]).all("a")]
    assert layers[148] in near
    assert layers[0] not in near
    rows = Page(pages["index.html"]).all("svg", class_="spark")
    assert len(rows) == 8 * 2 * 2
    assert "16 runs and probes" in pages["index.html"]
    # Sixteen lines: a picture for each probe.
    assert {"overview-trend-accuracy-test", "overview-trend-accuracy-train"} <= {
        given.get("id") for given, _ in Page(pages["index.html"]).all("figure")
    }


def test_pictures_of_many_layers_stand_on_the_layers_own_pages(made_up, sound, Page):
    layers = [f"layer{n}" for n in range(9)]
    made_up.captured("a", [0], layers)
    made_up.filed("a", "statistics", [Row("sparsity", 0.5, layer=name, step=0) for name in layers])
    made_up.drawn("a", "statistics", *[{"key": f"k{number}", "layer": name} for number, name in enumerate(layers)])
    made_up.audited("pass")
    pages = made_up.written()
    sound(pages, made_up.report)
    assert Page(pages["analyses/statistics.html"]).all("figure") == []
    assert 'href="../layers/layer3.html#statistics-a-k3"' in pages["analyses/statistics.html"]
    assert [given["data-layer"] for given, _ in Page(pages["layers/layer3.html"]).all("figure")] == ["layer3"]


def test_a_page_stands_alone_for_each_reader(made_up, Page):
    made_up.captured("a", [0])
    made_up.drawn("a", "statistics", headline=True, practitioner="Lower the rate.", researcher="In float64.")
    made_up.audited("pass")
    page = Page(made_up.written()["index.html"])
    assert {given["data-reader-choice"] for given, _ in page.all("button") if "data-reader-choice" in given} == {
        "practitioner", "researcher",
    }  # fmt: skip
    orders = [
        (int(given["data-practitioner"]), int(given["data-researcher"]))
        for given, _ in page.all("section")
        if "data-practitioner" in given
    ]
    assert sorted(orders) != sorted(orders, key=lambda pair: pair[1])
    figure = next(given for given, _ in page.all("figure") if given["data-analysis"] == "statistics")
    assert figure["data-run"] == "a"
    for name in ("shows", "reading", "caution", "audience", "practitioner", "researcher"):
        assert page.all("p", class_=name)


def test_the_same_store_gives_the_same_bytes_and_one_more_audit_changes_overview_and_history_alone(made_up):
    made_up.captured("a", [0, 5], ("conv", "fc"))
    made_up.filed("a", "outputs", made_up.accuracy_rows([0, 5]))
    made_up.audited("pass")
    before = made_up.written()
    assert made_up.written() == before
    made_up.audited("pass")
    after = made_up.written()
    assert {page for page in after if after[page] != before[page]} == {"index.html", "history.html"}


def test_stale_pages_and_data_go_and_the_report_is_vouched_for(made_up):
    made_up.captured("a", [0], ("conv", "fc"))
    made_up.filed("a", "outputs", made_up.accuracy_rows([0]))
    made_up.drawn("a", "outputs", table={"value": [1.0]})
    made_up.audited("pass")
    pages = made_up.written()
    stale = [made_up.report / "layers" / "gone.html", made_up.report / "data" / "gone.js"]
    for path in stale:
        path.write_text("old")
    assert made_up.rewritten() == pages
    assert not any(path.exists() for path in stale)
    assert verify(made_up.store) == []
    (made_up.report / "data" / "outputs-a-k.csv").write_text("value\n2.0\n")
    assert [item.path for item in verify(made_up.store)] == ["report/data/outputs-a-k.csv"]


def test_a_page_that_is_not_planned_is_refused(made_up):
    made_up.audited("pass")
    with pytest.raises(StoreError, match=r"no page '\.\./\.\./escape\.html'"):
        build.write_page(str(made_up.store.path), "../../escape.html")


def test_the_zip_holds_the_report_and_nothing_else(made_up, tmp_path):
    import zipfile

    made_up.captured("a", [0])
    made_up.audited("pass")
    made_up.written()
    target = build.zip_report(str(made_up.store.path), tmp_path / "report.zip")
    names = zipfile.ZipFile(target).namelist()
    assert {"report/index.html", "report/runs/a.html", "report/assets/plotly.min.js"} <= set(names)
    assert not any("/." in name for name in names)
