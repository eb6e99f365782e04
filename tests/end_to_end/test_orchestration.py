"""What the server of Prefect records of an audit: every unit and every page was a named task on a Dask worker."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from stratascope.storage.store import Store
from tests.conftest import ENVIRONMENT, Workplace

SCRIPT = """
import json, sys, urllib.request, os
from stratascope.flows.server import prefect_server
with prefect_server(own=True) as address:
    import subprocess
    done = subprocess.run([sys.executable, "-m", "stratascope", "audit", sys.argv[1], "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    import time
    def ask(what, **content):
        request = urllib.request.Request(f"{address}/{what}/filter", json.dumps(content).encode(), {"Content-Type": "application/json"})
        return json.loads(urllib.request.urlopen(request).read())
    for _ in range(60):
        runs = [run for start in range(0, 2000, 200) for run in ask("task_runs", limit=200, offset=start)]
        if runs and all(run["state_type"] == "COMPLETED" for run in runs):
            break
        time.sleep(0.5)
    flows = ask("flow_runs", limit=50)
    settings = json.loads(urllib.request.urlopen(f"{address}/admin/settings").read())
    print(json.dumps({
        "audit": json.loads(done.stdout),
        "tasks": [[run["name"], run["state_type"]] for run in runs],
        "flows": [[run["name"], run["state_type"]] for run in flows],
        "address": address, "analytics": settings["server"]["analytics_enabled"], "do_not_track": os.environ["DO_NOT_TRACK"],
    }))
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Workplace, dict]:
    place = Workplace(tmp_path_factory.mktemp("recorded"))
    place.configure()
    for step in range(3):
        place.checkpoint(step)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(place.config)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout.splitlines()[-1])


def test_every_unit_every_drawing_and_every_page_was_a_named_task_that_completed(recorded):
    place, told = recorded
    tasks = dict(told["tasks"])
    assert set(tasks.values()) == {"COMPLETED"}
    for unit in Store.open(place.store).manifests():
        if unit.scope == "checkpoint":
            assert f"{unit.analysis}-{unit.run}-{unit.step}" in tasks
        elif unit.analysis == "checks":
            assert "judge-checks" in tasks
        elif unit.scope == "series":
            assert f"{unit.analysis}-{unit.run}" in tasks
        elif unit.scope == "probe":
            assert f"store-probe-{unit.analysis}" in tasks
    report = place.store / "report"
    pages = {path.relative_to(report).as_posix() for path in report.rglob("*.html")}
    assert pages == {name.removeprefix("page-") for name in tasks if name.startswith("page-")}
    assert {"draw-overview", "draw-outputs-small", "draw-embedding-small"} <= set(tasks)
    assert {state for _, state in told["flows"]} == {"COMPLETED"}


def test_the_work_was_done_in_the_workers_and_not_in_the_flows_process(recorded):
    place, _ = recorded
    manifests = [item for unit, item in Store.open(place.store).manifests().items() if unit.scope != "report"]
    assert 1 <= len({item.recorded["pid"] for item in manifests}) <= 2
    driver = Store.open(place.store).path / "audits"
    record = json.loads(next(driver.glob("*.json")).read_bytes())
    assert record["id"].rsplit("-", 1)[1] not in {str(item.recorded["pid"]) for item in manifests}


def test_nothing_is_said_to_the_outside(recorded):
    """The settings that the command gives its server and its workers, as Prefect itself reads them."""
    _, told = recorded
    assert told["analytics"] is False
    assert told["do_not_track"] == "1"
    assert told["address"].startswith("http://127.0.0.1:")
