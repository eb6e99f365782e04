"""Audits an old folder of checkpoints in slices, so that a curve over the whole training is there early."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.states import Completed, Failed

from stratascope.errors import ConfigurationError, StratascopeError
from stratascope.flows.audit import audit_from_file
from stratascope.flows.config import AuditConfig, deployed, load_config
from stratascope.flows.plan import make_plan, store_folder, survey
from stratascope.flows.result import OUT_OF_TIME, AuditResult, outcome_without_work
from stratascope.storage.checkpoint_files import (
    CheckpointFile,
    RunSource,
    selected_unread,
    split_runs,
)
from stratascope.storage.run_source import SelectSpec
from stratascope.storage.store import Store

Order = Literal["log_spaced", "newest"]
_FIRST = 8
"""So many checkpoints of each run make the first slice; every later slice doubles what is there."""


@flow(name="backfill", flow_run_name="backfill-{config}", validate_parameters=False)
def backfill(
    config: str,
    overrides: list[str] | None = None,
    max_seconds: float | None = None,
    order: Order = "log_spaced",
    first: int = _FIRST,
) -> Any:
    """Audit all that `config` names, in slices that double; after `max_seconds` the next run goes on.

    `order` is ``log_spaced`` (a coarse curve first, which then fills) or ``newest``.
    """
    try:
        result, left = backfill_from_file(deployed(config), overrides or [], max_seconds, order, first)
    except StratascopeError as error:
        return Failed(message=str(error))
    rest = f"; {left} checkpoints are left for the next run" if left else ""
    message = f"verdict {result.verdict}: {result.units}; report {result.report}{rest}"
    return Completed(message=message) if result.exit_code == 0 else Failed(message=message)


def backfill_from_file(
    config: Path, overrides: Sequence[str], max_seconds: float | None, order: Order, first: int
) -> tuple[AuditResult, int]:
    """The outcome of the last slice that was done, and how many checkpoints are left.

    Slices that are stored already are passed over, so an interrupted backfill goes on where it was. Raises
    ConfigurationError.
    """
    if order not in ("log_spaced", "newest") or first < 1:
        raise ConfigurationError("a backfill's `order` is log_spaced or newest, and `first` is at least 1.")
    until = time.monotonic() + max_seconds if max_seconds is not None else None
    settings: AuditConfig = load_config(config, overrides)
    series = [
        [_in_order(run, files) for run, files in split_runs(entry, config.parent)] for entry in settings.runs
    ]
    longest = max((len(files) for entry in series for files in entry), default=0)
    total = sum(len(files) for entry in series for files in entry)
    result: AuditResult | None = None
    with tempfile.TemporaryDirectory(prefix="stratascope-backfill-") as scratch:
        for size in _sizes(longest, first):
            chosen = [
                [files[place] for files in entry for place in places(len(files), size, order)] for entry in series
            ]
            left = total - sum(len(files) for files in chosen)
            words = [*overrides, *(_only(chosen, Path(scratch)) if left else ())]
            if left and _is_stored(config, words):
                continue
            seconds = max(0.0, until - time.monotonic()) if until is not None else None
            result = outcome_without_work(config, words) or audit_from_file(str(config), words, False, seconds)
            postponed = sum(item["reason"] == OUT_OF_TIME for item in result.checkpoints)
            if postponed or (left and until is not None and time.monotonic() >= until):
                return result, left + postponed
    assert result is not None  # the last slice holds everything and is never passed over
    return result, 0


def places(count: int, size: int, order: Order) -> list[int]:
    """Which of `count` checkpoints in order make the first `size` of a backfill, ascending.

    ``log_spaced`` holds the first and the last, and every one that a smaller size of the same doubling series held.
    """
    if size >= count:
        return list(range(count))
    if order == "newest":
        return list(range(count - size, count))
    chosen: set[int] = set()
    while size >= 2:
        chosen |= {0} | {round((count - 1) ** (k / (size - 1))) for k in range(1, size)}
        size //= 2
    return sorted(chosen | {count - 1})


def _sizes(count: int, first: int) -> Iterator[int]:
    """`first` and its doublings up to what is less than `count`, then `count` itself."""
    size = first
    while size < count:
        yield size
        size *= 2
    yield count


def _in_order(run: RunSource, found: list[CheckpointFile]) -> list[CheckpointFile]:
    """The checkpoints that `run` selects, by the step that its regular expression or the name tells, unread.

    Where the names tell no steps, all of them in the order of their names; none where some were to be selected: then
    the last slice, which reads everything, does them all.
    """
    chosen = selected_unread(run, found)
    if chosen is not None:
        return chosen
    return found if run.select == SelectSpec() else []


def _only(chosen: Sequence[Sequence[CheckpointFile]], folder: Path) -> Iterator[str]:
    """Overrides by which an audit looks at the `chosen` files of each run alone."""
    for number, items in enumerate(chosen):
        place = folder / f"{number}-{len(items)}.json"
        place.write_text(json.dumps([str(item.path) for item in items]), encoding="utf-8")
        yield f"runs.{number}.only={json.dumps(str(place))}"
        yield f"runs.{number}.select={{}}"


def _is_stored(config: Path, overrides: Sequence[str]) -> bool:
    """Whether every checkpoint of a slice has been audited, whatever the report and the series were drawn from."""
    settings: AuditConfig = load_config(config, overrides)
    store = Store.open(store_folder(settings, config.parent), create=True)
    found = survey(settings, config.parent, store)
    if found.unread or found.unknown_probes:
        return False
    chains = make_plan(found).chains
    with store.snapshot():
        return all(store.is_current(item.unit, item.identity) for chain in chains for item in chain)
