"""What `stratascope deploy` refuses before it registers anything; that it registers is tested end to end."""

from __future__ import annotations

import socket
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from stratascope.errors import ConfigurationError
from stratascope.flows.config import load_config
from stratascope.flows.deploy import deployment_name, next_run, parameters_of, wish_of, worker_command
from tests.conftest import Workplace, stratascope


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    place = Workplace(tmp_path)
    place.configure()
    place.checkpoint(0)
    return place


def test_without_a_server_that_lasts_it_says_how_to_start_one(place: Workplace):
    home = {"PREFECT_HOME": str(place.folder / "prefect")}
    done = stratascope("deploy", place.config, "--cron", "0 3 * * *", PREFECT_API_URL="", **home)
    assert done.code == 2
    assert "PREFECT_API_URL" in done.err
    assert "prefect server start" in done.err
    assert "Traceback" not in done.err
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/api"
        silent = stratascope("deploy", place.config, PREFECT_API_URL=address, **home)
    assert (silent.code, address in silent.err) == (2, True), silent.err


def test_the_configuration_is_checked_as_an_audit_would(place: Workplace):
    settings = yaml.safe_load(place.config.read_text())
    assert parameters_of(wish_of(place.config, None, "pool")) == {"config": str(place.config), "overrides": []}
    place.config.write_text(yaml.safe_dump({**settings, "sttle": 3}))
    with pytest.raises(ConfigurationError, match="settle"):
        parameters_of(wish_of(place.config, None, "pool"))
    place.configure()
    (place.folder / "runs" / "step-0.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="no checkpoint matches"):
        parameters_of(wish_of(place.config, None, "pool"))
    # A folder that is watched may be empty so far.
    wish = wish_of(place.config, None, "pool", watch=True, overrides=["report.title=Mine"])
    assert parameters_of(wish)["overrides"] == ["report.title=Mine", "watch=true"]
    assert not place.store.exists()


def test_watching_lets_files_rest_unless_the_configuration_says_how_long(place: Workplace):
    watched = load_config(place.config, ["watch=true"])
    assert (watched.settle, watched.runs[0].allow_empty) == (60, True)
    own = load_config(place.config, ["watch=true", "settle=5", "runs.0.allow_empty=false"])
    assert (own.settle, own.runs[0].allow_empty) == (5, False)
    plain = load_config(place.config)
    assert (plain.settle, plain.runs[0].allow_empty) == (0, False)


def test_what_is_no_schedule_is_refused_and_the_next_run_is_told():
    due = datetime.fromisoformat(next_run("30 4 * * *", "Europe/Berlin"))
    assert (due.hour, due.minute) == (4, 30)
    assert due > datetime.now(due.tzinfo)
    with pytest.raises(ConfigurationError, match=r"--cron 'every night'.*five fields"):
        next_run("every night", "UTC")
    with pytest.raises(ConfigurationError, match=r"--timezone 'Mars/Olympus'"):
        next_run("0 3 * * *", "Mars/Olympus")


def test_names_and_schedules_have_defaults():
    assert wish_of(Path("/a/my audit.yaml"), None, "pool").full_name == "audit/my-audit"
    assert wish_of(Path("/a/b.yaml"), None, "pool").schedule == "0 3 * * *"
    assert wish_of(Path("/a/b.yaml"), None, "pool", watch=True).schedule == "*/5 * * * *"
    assert wish_of(Path("/a/b.yaml"), None, "pool", cron="1 2 * * *", watch=True).schedule == "1 2 * * *"
    with pytest.raises(ConfigurationError, match="--name"):
        deployment_name(Path("/a/b.yaml"), "a/b")
    assert worker_command("http://h/api", "a pool").endswith("--pool 'a pool'")
