"""`stratascope compare` as a user meets it: the command, its page, and the second run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stratascope.storage.store import Store
from tests.conftest import ENVIRONMENT, stratascope
from tests.tasks.comparison.conftest import write_configuration, write_runs

PAGE = "report/comparisons/width.html"


@pytest.fixture(scope="module")
def compared_by_command(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("compare")
    write_runs(folder, "wide", 24, 0, seeds=2)
    write_runs(folder, "narrow", 4, 0, seeds=2)
    config = write_configuration(folder, traditional={"methods": ["k_nearest_neighbors"], "folds": 0})
    done = stratascope("compare", config, "--json")
    # Untrained networks fail no check; whatever a comparison finds, it exits 0.
    assert done.code == 0, done.err
    return folder, done.json


@pytest.mark.slow
def test_one_command_audits_compares_and_writes_the_page(compared_by_command):
    folder, told = compared_by_command
    assert {
        "schema",
        "store",
        "page",
        "groups",
        "metrics",
        "samples",
        "traditional",
        "audit",
        "units",
        "failures",
    } <= set(told)
    assert told["units"] == {"computed": 2, "cached": 0, "failed": 0}
    assert [len(group["runs"]) for group in told["groups"]] == [2, 2]
    assert told["audit"]["units"]["computed"] > 0
    assert Path(told["page"]) == folder / "store" / PAGE
    assert Path(told["page"]).exists()
    manifests = Store.open(folder / "store").manifests()
    pids = {
        manifests[unit].recorded["pid"] for unit in manifests if ":" in unit.analysis and unit.scope == "cohort"
    }
    assert len(pids) in (1, 2)


@pytest.mark.slow
def test_the_second_run_starts_nothing_and_says_the_same(compared_by_command):
    folder, told = compared_by_command
    script = (
        "import sys\nfrom stratascope.command_line import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as leaving:\n    assert not leaving.code, leaving.code\n"
        "loaded = {name.split('.')[0] for name in sys.modules} & {'prefect', 'torch', 'dask', 'distributed', 'sklearn', 'matplotlib'}\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "compare", str(folder / "compare.yaml"), "--json"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    for key in ("metrics", "samples", "traditional", "groups"):
        assert again[key] == told[key]
    assert again["units"] == {"computed": 0, "cached": 2, "failed": 0}
    # The audit does not take the comparison's pages for a change.
    audited = stratascope("audit", folder / "audit.yaml", "--json")
    assert audited.json["units"]["computed"] == 0
    assert "starting workers" not in audited.err
    page = (folder / "store" / PAGE).read_bytes()
    assert stratascope("report", folder / "store").code == 0
    assert (folder / "store" / PAGE).read_bytes() == page
    shown = stratascope("compare", folder / "compare.yaml")
    assert shown.code == 0
    assert "accuracy test" in shown.out


@pytest.mark.slow
def test_bad_groups_are_refused_before_any_work(compared_by_command):
    folder, _ = compared_by_command
    done = stratascope(
        "compare", folder / "compare.yaml", "--set", "groups={A: {runs: [wild-0]}, B: {runs: [narrow-0]}}"
    )
    assert done.code == 2
    assert "'wild-0' matches no run" in done.err
    assert "Traceback" not in done.err
    assert stratascope("config", "schema", "compare").json["properties"]["groups"]
