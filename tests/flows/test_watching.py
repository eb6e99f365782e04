"""Audits of a folder that a training is still filling, two at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from tests.conftest import ENVIRONMENT, Workplace

ROOT = Path(__file__).parents[2]
SETTLE = 5.0
AUDITOR = """
import json, sys
from pathlib import Path
from tests.flows.without_workers import audit_here

config, log, stop = (Path(word) for word in sys.argv[1:4])
while True:
    last = stop.exists()
    result, outcomes, _ = audit_here(config, "watch=true", f"settle={sys.argv[4]}")
    with open(log, "a") as stream:
        stream.write(json.dumps({
            "computed": [[item.unit.step, item.unit.analysis] for item in outcomes if item.status == "computed"],
            "files": {Path(item["file"]).name: item["status"] for item in result.checkpoints},
            "failures": result.failures, "code": result.exit_code,
        }) + "\\n")
    if last:
        break
"""


def audits(log: Path) -> list[dict]:
    """What the audits so far wrote down; a line that is being written is not there yet."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def until(condition, what: str) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def test_half_written_checkpoints_wait_and_two_auditors_do_nothing_twice(tmp_path: Path):
    place = Workplace(tmp_path)
    place.configure(analyses={"outputs": {}})
    place.checkpoint(9)
    runs, whole = tmp_path / "runs", (tmp_path / "runs" / "step-9.safetensors").read_bytes()
    (runs / "step-9.safetensors").unlink()
    stop, logs = tmp_path / "stop", [tmp_path / "first.log", tmp_path / "second.log"]
    auditors = [
        subprocess.Popen(
            [sys.executable, "-c", AUDITOR, str(place.config), str(log), str(stop), str(SETTLE)],
            cwd=ROOT, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        )
        for log in logs
    ]  # fmt: skip
    try:
        # Nothing is there yet, and that is no failure.
        until(lambda: all(audits(log) for log in logs), "both look at the empty folder")
        assert {(item["code"], len(item["files"])) for log in logs for item in audits(log)} == {(0, 0)}

        # One file grows under its final name, and never rests long enough to be taken for whole.
        slow = runs / "step-0.safetensors"
        written = 0
        with open(slow, "wb") as stream:
            while not all(any(item["files"].get(slow.name) for item in audits(log)) for log in logs):
                stream.write(whole[written : written + 8])
                stream.flush()
                written = min(written + 8, len(whole) - 8)
                stream.seek(written)
                time.sleep(0.2)
            stream.write(whole[written:])
        assert {item["files"].get(slow.name) for log in logs for item in audits(log)} <= {None, "deferred"}

        # Others come whole, by another name and a rename.
        for step in (1, 2):
            hidden = place.checkpoint(step, name=f"step-{step}.safetensors.tmp")
            os.replace(hidden, runs / f"step-{step}.safetensors")
        three = {f"step-{step}.safetensors" for step in range(3)}
        until(
            lambda: all(
                audits(log)[-1]["files"].keys() >= three and set(audits(log)[-1]["files"].values()) == {"cached"}
                for log in logs
            ),
            "everything is audited",
        )
    finally:
        stop.touch()
        complaints = [auditor.communicate(timeout=120)[1] for auditor in auditors]
    assert [auditor.returncode for auditor in auditors] == [0, 0], complaints
    seen = [item for log in logs for item in audits(log)]
    assert {item["code"] for item in seen} == {0}
    assert not any(item["failures"] for item in seen)
    assert {status for item in seen for status in item["files"].values()} == {"deferred", "computed", "cached"}
    count = Counter((step, analysis) for item in seen for step, analysis in item["computed"] if step >= 0)
    assert set(count.values()) == {1}
    assert set(count) == {(step, name) for step in range(3) for name in ("capture", "intake", "outputs")}
    assert verify(Store.open(place.store)) == []
