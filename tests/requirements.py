"""Programs that a test needs. Where one is missing the test is skipped, but in CI it fails: nothing there may go
untested unnoticed."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest


def in_ci() -> bool:
    """Whether the environment says so: `CI=1` or `CI=true`."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def missing(what: str, advice: str) -> None:
    """Skip the test that asks, or fail it in CI, since `what` is missing; `advice` tells how to get it."""
    message = f"{what} is not installed: {advice}"
    if in_ci():
        pytest.fail(f"{message} (CI runs every test)", pytrace=False)
    pytest.skip(message)


def need_program(name: str, package: str) -> str:
    """The path of the program `name`, which Debian's `package` brings; system folders are looked into too."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")
    if found is None:
        missing(name, f"apt-get install {package}")
    return str(found)


def need_module(name: str, extra: str) -> None:
    """That the Python package `name` is there, which the `extra` of this project brings."""
    if importlib.util.find_spec(name) is None:
        missing(name, f"pip install 'stratascope[{extra}]'")


def need_root(why: str) -> None:
    """That the test runs as root; elsewhere it is skipped, in CI it fails."""
    if os.geteuid() != 0:
        message = f"only root can do this: {why}"
        if in_ci():
            pytest.fail(f"{message} (CI runs every test)", pytrace=False)
        pytest.skip(message)
