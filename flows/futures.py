"""Waiting for what was handed out to workers: every result or what went wrong in its place, lost workers made good."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from prefect.cache_policies import NO_CACHE

from stratascope.errors import StratascopeError
from stratascope.flows.progress import tell

SETTINGS: dict[str, Any] = {"cache_policy": NO_CACHE, "retries": 0, "log_prints": False}
"""Of every task: the manifests are the cache, and Prefect's own retries do not see a lost worker."""
ATTEMPTS = 3
"""Work whose worker is lost is handed out so many times; a failure of its own is final."""


def insist(future: Any, submit_again: Callable[[], Any]) -> Any:
    """The result of `future`; where its worker died, perhaps of this very work, it is handed out again.

    What is raised by the work itself comes back at once, as a result.
    """
    result = result_of(future)
    attempt = 1
    while isinstance(result, BaseException) and not isinstance(result, StratascopeError) and attempt < ATTEMPTS:
        time.sleep(2**attempt / 2)
        attempt += 1
        result = result_of(submit_again())
    return result


def result_of(future: Any) -> Any:
    """The result of `future`, or the exception in its place."""
    try:
        return future.result(raise_on_failure=False)
    except Exception as error:  # a lost worker shows here, whatever Prefect's state says
        return error


def finished(futures: Sequence[Any], label: str) -> list[str]:
    """Wait for all of `futures` and tell how far it is; returns what went wrong."""
    failures = []
    for number, future in enumerate(futures):
        result = result_of(future)
        if isinstance(result, BaseException):
            failures.append(f"{type(result).__name__}: {result}")
        tell(label, number + 1, len(futures))
    return failures
