"""Which settings of Prefect travel with a task, and that workers of this machine have the others themselves."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from prefect.context import SettingsContext, refresh_global_settings_context, serialize_context
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from stratascope.flows.inherited_settings import settings_inherited

ADDRESS = "http://127.0.0.1:9/api"


def present() -> dict[str, Any]:
    """All settings of this process, and the profile that it uses."""
    found = SettingsContext.get()
    assert found is not None
    return {"settings": get_current_settings().model_dump(mode="json"), "profile": found.profile.name}


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Settings from a profile and from the environment, as a user may have them."""
    (tmp_path / "profiles.toml").write_text(f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{ADDRESS}"\n')
    with monkeypatch.context() as patch:
        for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("PREFECT_HOME", str(tmp_path))
        patch.setenv("PREFECT_CLIENT_MAX_RETRIES", "7")
        # Prefect looks for profiles where its settings so far say: a second time it finds those of the new home.
        refresh_global_settings_context()
        refresh_global_settings_context()
        yield
    refresh_global_settings_context()


def test_a_process_that_inherits_the_environment_has_the_settings_that_are_not_sent(configured):
    here = present()
    assert (here["profile"], here["settings"]["api"]["url"]) == ("mine", ADDRESS)
    assert here["settings"]["client"]["max_retries"] == 7
    with settings_inherited():
        assert serialize_context()["settings_context"] == {}
        assert present() == here
        with multiprocessing.get_context("spawn").Pool(1) as worker:
            assert worker.apply(present) == here
    assert serialize_context()["settings_context"]


def test_settings_that_code_has_changed_are_sent():
    with temporary_settings({PREFECT_API_URL: ADDRESS}), settings_inherited():
        assert serialize_context()["settings_context"]["settings"]["api"]["url"] == ADDRESS
