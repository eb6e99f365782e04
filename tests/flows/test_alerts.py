"""Alerts on their way: a real web server on loopback, and a real Prefect server with its events and blocks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stratascope.flows.alerts import post, tell_changes
from stratascope.tasks.checks.alerting import AlertSpec
from tests.conftest import ENVIRONMENT, ONE_WORKER, Workplace

RECORD = {"title": "Nightly", "store": "/s", "report": "/s/report/index.html", "verdict": "fail"}
FAILED = [
    {"name": "finite", "metric": "m", "bound": "<= 0", "by_run": {"a": {"fail": 1}}, "fresh": {"a": "fail"},
     "suite": "soundness", "severity": "fail", "counts": {"fail": 1}},
]  # fmt: skip
RAISED = [
    {
        "name": "finite",
        "run": "a",
        "outcome": "fail",
        "step": 7,
        "layer": "",
        "value": 3.0,
        "reason": "3 is above 0",
    }
]


class Listener:
    """A web server that notes what it gets and answers as it is told: codes one after the other, the last for ever."""

    def __init__(self) -> None:
        self.got: list[dict] = []
        self.codes = [200]
        self.delay = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append(
                    {"path": self.path, "type": self.headers["Content-Type"], "body": json.loads(body)}
                )
                time.sleep(outer.delay)
                code = outer.codes.pop(0) if len(outer.codes) > 1 else outer.codes[0]
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                outer.got.append({"path": self.path, "type": "GET"})
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/hook/secret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.stop()


def test_a_change_arrives_as_json_and_is_remembered(listener):
    alert = AlertSpec(name="night", webhook=listener.address)
    told = tell_changes([alert], {}, FAILED, RAISED, RECORD)
    (got,) = listener.got
    assert (got["path"], got["type"]) == ("/hook/secret", "application/json")
    assert got["body"]["changes"][0]["reason"] == "3 is above 0"
    assert got["body"]["text"].startswith("Nightly: verdict fail\nfinite (a): fail")
    assert told.alerts == [
        {"alert": "night", "check": "finite", "run": "a", "change": "raised", "outcome": "fail", "delivered": True, "reason": ""}
    ]  # fmt: skip
    record = json.loads(json.dumps({"states": told.states, "alert_memory": told.memory}))
    again = tell_changes([alert], record, FAILED, RAISED, RECORD)
    assert (again.alerts, len(listener.got)) == ([], 1)


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(listener):
    listener.codes = [503, 429, 204]
    assert post(listener.address, {}, timeout=30, attempts=3) == ""
    assert len(listener.got) == 3
    listener.codes = [404]
    assert post(listener.address, {}, timeout=30, attempts=3) == "127.0.0.1 answered 404"
    assert len(listener.got) == 4


def test_a_redirect_is_no_delivery_and_is_not_followed(listener):
    listener.codes = [302]
    assert post(listener.address, {}, timeout=30, attempts=3) == "127.0.0.1 answered 302"
    assert [item["path"] for item in listener.got] == ["/hook/secret"]


def test_what_cannot_be_delivered_is_reported_without_the_secret_and_told_the_next_time(listener):
    listener.stop()
    alert = AlertSpec(name="night", webhook=listener.address, attempts=1)
    told = tell_changes([alert], {}, FAILED, RAISED, RECORD)
    assert [item["delivered"] for item in told.alerts] == [False]
    assert "secret" not in json.dumps([told.alerts, told.memory])
    assert told.memory == {"night": {}}
    second = Listener()
    try:
        working = alert.model_copy(update={"webhook": second.address})
        record = {"states": told.states, "alert_memory": told.memory}
        assert tell_changes([working], record, [], RAISED, RECORD).alerts[0]["delivered"]
        assert len(second.got) == 1
    finally:
        second.stop()


def test_a_server_that_does_not_answer_costs_no_more_than_the_timeout(listener):
    listener.delay = 5
    assert post(listener.address, {}, timeout=0.3, attempts=1) == "127.0.0.1 cannot be reached (TimeoutError)"


def test_an_audit_tells_its_change_of_state_and_a_deaf_webhook_does_not_fail_it(tmp_path, listener):
    """The address comes from the environment; the first audit finds nobody who takes it, the second has only that to do."""
    from xml.etree import ElementTree

    import pandas
    import torch
    from safetensors.torch import load_file, save_file

    place = Workplace(tmp_path)
    place.configure(
        alerts=[{"name": "night", "webhook": "${HOOK}", "attempts": 1}],
        analyses={"outputs": {}}, report={"title": "Night | watch"}, cluster=ONE_WORKER,
    )  # fmt: skip
    place.checkpoint(0)
    broken = place.checkpoint(1)
    tensors = load_file(broken)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, broken)
    listener.codes = [500]
    files = ("--junit", str(tmp_path / "audit.xml"), "--markdown", str(tmp_path / "audit.md"))
    done = place.audit(*files, HOOK=listener.address)
    assert done.code == 1, done.err
    assert "alert night was not delivered: 127.0.0.1 answered 500" not in done.out
    (alert,) = done.json["alerts"]
    assert (alert["check"], alert["run"], alert["delivered"]) == ("finite", "small", False)

    root = ElementTree.parse(tmp_path / "audit.xml").getroot()
    failures = {(case.get("classname"), case.get("name")) for case in root.iter("testcase") if case.find("failure") is not None}  # fmt: skip
    assert failures == {("stratascope.small", "finite")}
    assert root.get("errors") == "0"
    assert "# Night \\| watch" in (tmp_path / "audit.md").read_text()
    outcomes = pandas.read_parquet(place.store / "ledger" / "small" / "series" / "checks.parquet")
    finite = outcomes[outcomes["part"] == "check=finite"]
    assert list(zip(finite["step"], finite["value"], strict=True)) == [(0, 0.0), (1, 3.0)]

    listener.codes = [200]
    listener.got.clear()
    again = place.audit(*files, HOOK=listener.address)
    assert again.code == 1, again.err
    assert again.json["units"]["computed"] == 0
    assert [item["delivered"] for item in again.json["alerts"]] == [True]
    (got,) = listener.got
    assert got["body"]["changes"][0]["step"] == 1
    records = "".join(path.read_text() for path in (place.store / "audits").glob("*.json"))
    assert listener.address not in records


SCRIPT = """
import json, sys
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from stratascope.flows.alerts import tell_changes
from stratascope.flows.artifacts import publish
from stratascope.flows.result import AuditResult
from stratascope.tasks.checks.alerting import AlertSpec
conditions, raised, record, address = json.loads(sys.argv[1])
CustomWebhookNotificationBlock(name="team", url=address, json_data={"text": "{{body}}", "title": "{{subject}}"}).save("team")

@flow
def audit():
    alerts = [AlertSpec(name="block", block="custom-webhook/team"), AlertSpec(name="nobody", block="custom-webhook/nobody")]
    about = {name: record[name] for name in ("store", "report", "verdict", "title")}
    publish(AuditResult(checkpoints=[], units={}, checks=raised, conditions=conditions, **about), record["title"])
    return tell_changes(alerts, {}, conditions, raised, record)

told = audit()
print(json.dumps([told.alerts, told.memory]))
"""


@pytest.mark.slow
def test_prefect_hears_an_event_and_its_block_notifies(tmp_path: Path, listener):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    inherited = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("PREFECT")}
    environment = {
        **inherited, "PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": address, "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_UI_ENABLED": "false",
    }  # fmt: skip
    with open(tmp_path / "server.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=environment, cwd=tmp_path, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def ask(path: str, **content):
        request = urllib.request.Request(f"{address}/{path}", json.dumps(content).encode(), {"Content-Type": "application/json"})  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    try:
        until(lambda: urllib.request.urlopen(f"{address}/health", timeout=5).status == 200)
        given = json.dumps([FAILED, RAISED, RECORD, listener.address])
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, given], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        alerts, memory = json.loads(done.stdout.splitlines()[-1])
        by_name = {item["alert"]: item for item in alerts}
        assert by_name["block"]["delivered"]
        assert by_name["nobody"]["reason"] == "the block custom-webhook/nobody failed (ValueError)"
        assert by_name["prefect-events"]["delivered"]
        assert memory["nobody"] == {}
        (got,) = listener.got
        assert got["body"]["title"] == "Nightly: verdict fail"
        assert "finite (a): fail" in got["body"]["text"]
        wanted = {"event": {"name": ["stratascope.check.raised"]}}
        (event,) = until(lambda: ask("events/filter", filter=wanted)["events"])
        resource = event["resource"]
        assert resource["prefect.resource.id"] == "stratascope.check.a.finite"
        assert (resource["stratascope.run"], resource["stratascope.outcome"]) == ("a", "fail")
        assert event["payload"]["reason"] == "3 is above 0"
        pages = {item["key"]: item["data"] for item in ask("artifacts/filter")}
        (row,) = json.loads(pages["audit-checks"])
        assert (row["name"], row["bound"], row["fail"]) == ("finite", "<= 0", 1)
        assert "3 is above 0" in pages["audit-summary"]
        assert pages["audit-report"].startswith("[report](file:///s/report")
    finally:
        os.killpg(server.pid, 15)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


def until(condition, seconds: float = 240):
    """The first true value of `condition`, which may raise until then."""
    end = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.3)
