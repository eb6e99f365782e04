"""Prefect's settings, which workers of this machine have from their environment and need not be sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import context


class InheritedSettings(context.SettingsContext):
    """Settings that are not sent along with a task: the worker's own are the same."""

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        return {}


@contextmanager
def settings_inherited() -> Iterator[None]:
    """Within this block tasks travel without Prefect's settings.

    Prefect sends all of them with every task, and reads them again with all sources (environment, profile, files) in
    the worker: a third of what a task costs there. Workers that this process starts on this machine read the very
    same sources once. Settings that stand in none of them, since code changed them for a while, are sent as ever.
    """
    current = context.SettingsContext.get()
    if current is None or current is not context.GLOBAL_SETTINGS_CONTEXT:
        yield
        return
    with InheritedSettings(profile=current.profile, settings=current.settings):
        yield
