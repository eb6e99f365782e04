"""The commands that audit: planning first, and workers only where there is something to do."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stratascope.command_line.printing import (
    error_console,
    human_bytes,
    human_seconds,
    print_json,
    print_table,
    progress_bar,
)
from stratascope.errors import ConfigurationError, StoreError, UnreachableError, did_you_mean

if TYPE_CHECKING:
    from stratascope.flows.config import AuditConfig
    from stratascope.flows.plan import Survey
    from stratascope.flows.result import AuditResult
    from stratascope.storage.checkpoint_files import CheckpointFile
    from stratascope.tasks.preview import Preview
    from stratascope.tasks.training.loop import TrainingSummary


def audit(
    config: Path,
    overrides: list[str],
    only: list[str],
    rehash: bool,
    max_seconds: float | None,
    own_server: bool = False,
    rebase: bool = False,
) -> AuditResult:
    """Audit as `config` says. Prefect, Dask and torch are started only where something is outstanding.

    With `own_server` a Prefect API of the user's is passed over.
    """
    from stratascope.flows.result import outcome_without_work

    config = config.absolute()
    overrides = overrides + _only(config, overrides, only)
    if (result := outcome_without_work(config, overrides, rehash, rebase)) is not None:
        return result
    from stratascope.flows.server import prefect_server

    error_console().print("[dim]starting workers …[/dim]")
    with prefect_server(own_server), progress_bar() as show:
        from stratascope.flows.audit import audit_from_file
        from stratascope.flows.progress import listen

        listen(show)
        return audit_from_file(str(config), overrides, rehash, max_seconds, rebase)


def _only(config: Path, overrides: list[str], only: list[str]) -> list[str]:
    """`--only` as an override that leaves the other analyses out and keeps their options."""
    if not only:
        return []
    from stratascope.flows.config import load_config
    from stratascope.tasks.analysis import discover

    settings = load_config(config, overrides)
    known = discover()
    for name in only:
        if name not in known:
            raise ConfigurationError(f"--only: there is no analysis {name!r}." + did_you_mean(name, known))
    configured = settings.analyses or {}
    import json

    return ["analyses=" + json.dumps({name: configured.get(name) or {} for name in only})]


def show_result(result: AuditResult, as_json: bool, seconds: float) -> None:
    """The outcome: one JSON object, or a few lines."""
    if as_json:
        print_json(result.as_json())
        return
    console = error_console()
    counts = Counter(item["status"] for item in result.checkpoints)
    listed = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    units = result.units
    console.print(
        f"checkpoints: {listed or 'none'}; units: {units['computed']} computed, {units['cached']} cached, "
        f"{units['failed']} failed; {human_seconds(seconds)}"
    )
    for item in result.checkpoints:
        if item["status"] in ("quarantined", "deferred", "duplicate"):
            console.print(f"  {item['status']}: {item['file']}: {item['reason'] or 'same weights'}", markup=False)
    for alert in result.alerts:
        if not alert["delivered"]:
            console.print(f"  alert {alert['alert']} was not delivered: {alert['reason']}; the next audit tries again", markup=False)  # fmt: skip
    for reason in result.failures:
        console.print(f"  failed: {reason}", markup=False)
    raised = [item for item in result.checks if item["outcome"] in ("warn", "fail", "error")]
    for item in raised[:12]:
        where = " ".join(str(part) for part in (item["run"], item["layer"]) if part)
        console.print(f"  {item['outcome']}: {item['name']}: {where} step {item['step']}: {item['reason']}", markup=False)  # fmt: skip
    if len(raised) > 12:
        console.print(f"  and {len(raised) - 12} more in the report")
    print(f"verdict: {result.verdict}")
    print(f"report: {result.report}")


def check_places(*files: Path | None) -> None:
    """Refuse, before any work, files that could not be written. Raises ConfigurationError."""
    for file in filter(None, files):
        if file.is_dir() or not file.absolute().parent.is_dir():
            raise ConfigurationError(
                f"{file} cannot be written: it needs a folder that is there, and a file's name."
            )


def write_for_jobs(result: AuditResult, junit: Path | None, markdown: Path | None) -> None:
    """The outcome for systems that run jobs. Raises StoreError where a file cannot be written."""
    from stratascope.tasks.checks import ci_output

    for file, form in ((junit, ci_output.junit), (markdown, ci_output.markdown)):
        if file is not None:
            try:
                file.write_text(form(result.summary()), encoding="utf-8")
            except OSError as error:
                raise StoreError(f"{file} cannot be written: {error.strerror}.") from None


def dry_run(config: Path, overrides: list[str], as_json: bool) -> None:
    """What an audit would do: checkpoints, layers, shapes, bytes and time; nothing is written."""
    from stratascope.flows.config import load_config
    from stratascope.flows.plan import store_folder, survey
    from stratascope.storage.store import Store

    settings: AuditConfig = load_config(config, overrides)
    place = store_folder(settings, config.absolute().parent)
    scratch = tempfile.mkdtemp(prefix="stratascope-dry-run-")
    try:
        try:
            store = Store.open(place)
        except UnreachableError as error:
            raise ConfigurationError(str(error)) from None
        except StoreError:
            store = Store.open(Path(scratch) / "store", create=True)
        found = survey(settings, config.absolute().parent, store)
        previews = previews_of(found)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    content: dict[str, Any] = {"schema": 1, "store": str(place), "runs": []}
    content["runs"] = [_dry_run_entry(found, run, shown) for run, shown in previews.items()]
    if as_json:
        print_json(content)
        return
    for entry in content["runs"]:
        new = sum(item["status"] == "new" for item in entry["checkpoints"])
        selected = sum(item["status"] != "not selected" for item in entry["checkpoints"])
        print(
            f"{entry['run']}: {new} new of {selected} checkpoints, {entry['parameters']:,} weights; "
            f"about {human_bytes(entry['bytes'])} before compression and {human_seconds(entry['seconds'])} of forward passes"
        )
        for item in entry["checkpoints"]:
            print(f"  {item['status']:<12} {item['file']}")
        _layer_table(entry["layers"])
        for warning in entry["warnings"]:
            print(f"  note: {warning}")


def _dry_run_entry(found: Survey, run: str, shown: Preview) -> dict[str, Any]:
    from stratascope.storage.checkpoint_files import selected_unread

    unread = {file.path for _, file in found.unread}
    source = next(source for source in found.sources if source.name == run)
    selected = selected_unread(source, found.files[run])
    kept = None if selected is None else {file.path for file in selected}

    def status(file: CheckpointFile) -> str:
        if kept is not None and file.path not in kept:
            return "not selected"
        return "new" if file.path in unread else str(found.facts[run][file.path]["status"]).replace("ok", "known")

    files = [(file, status(file)) for file in found.files[run]]
    new = sum(told == "new" for _, told in files)
    return {
        "run": run,
        "checkpoints": [{"file": str(file.path), "status": told} for file, told in files],
        "layers": shown.as_json()["layers"],
        "warnings": shown.warnings,
        "parameters": shown.parameters,
        "bytes_per_checkpoint": shown.bytes,
        "bytes": shown.bytes * new,
        "seconds": shown.seconds * new / found.config.cluster.workers,
    }


def previews_of(
    found: Survey, patterns: tuple[str, ...] | Literal["configured"] | None = "configured"
) -> dict[str, Preview]:
    """What one checkpoint of each run would keep. Raises ConfigurationError, CaptureError, ProbeError."""
    from stratascope.flows.plan import requests_of
    from stratascope.storage.probes import build_probe
    from stratascope.tasks.preview import foretold, network_of, preview

    probes = [build_probe(name, spec, found.folder) for name, spec in found.config.probes.items()]
    chosen = found.config.layers if patterns == "configured" else patterns
    shown = {}
    for source in found.sources:
        network = network_of(source, found.files[source.name], found.folder)
        shown[source.name] = preview(
            network, source.model, found.folder, probes, chosen, requests_of(found), found.config.capture
        )
        shown[source.name].warnings.extend(foretold(network, source.model, found.folder, probes, found.analyses))
    return shown


def layers(config: Path, overrides: list[str], as_json: bool) -> None:
    """The layers that can be captured, with their shapes, whatever `layers` the configuration names."""
    from stratascope.flows.config import load_config
    from stratascope.flows.plan import survey
    from stratascope.storage.store import Store

    settings: AuditConfig = load_config(config, overrides)
    scratch = tempfile.mkdtemp(prefix="stratascope-layers-")
    try:
        found = survey(settings, config.absolute().parent, Store.open(Path(scratch) / "store", create=True))
        previews = previews_of(found, None)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if as_json:
        print_json({"schema": 1, "runs": {run: item.as_json() for run, item in previews.items()}})
        return
    for run, item in previews.items():
        print(f"{run}: {len(item.layers)} layers, {item.parameters:,} weights")
        _layer_table(item.as_json()["layers"])


def _layer_table(entries: list[dict[str, Any]]) -> None:
    rows = [
        (
            item["name"],
            item["kind"],
            " × ".join(f"{size} {name}" for size, name in zip(item["shape"], item["dims"], strict=False)),
            ", ".join(item["kept"]),
            human_bytes(item["bytes"]),
        )
        for item in entries
    ]
    print_table("", ("layer", "type", "shape of a sample", "kept", "bytes"), rows)


def demo(directory: Path, as_json: bool) -> AuditResult:
    """Train a small network on bundled digits, audit all its checkpoints, and tell where the report is."""
    from importlib import resources

    started = time.monotonic()
    directory = directory.absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be made: {error.strerror}.") from None
    for name in ("train.yaml", "audit.yaml"):
        source = resources.files("stratascope") / "examples" / f"digits-{name}"
        (directory / name).write_bytes(source.read_bytes())
    if not (directory / "runs" / "lenet" / "trace.parquet").exists():
        train(directory / "train.yaml", [], quiet=as_json)
    result = audit(directory / "audit.yaml", [], [], rehash=False, max_seconds=None, own_server=True)
    show_result(result, as_json, time.monotonic() - started)
    return result


def train(config: Path, overrides: list[str], quiet: bool = False) -> TrainingSummary:
    """Train as `config` says; returns what the run left behind."""
    from stratascope.flows.config import load_config
    from stratascope.tasks.training.config import TrainConfig
    from stratascope.tasks.training.loop import train as train_series

    settings = load_config(config, overrides, TrainConfig)
    console = error_console()

    def tell(step: int, last: int, record: dict[str, float]) -> None:
        if not quiet:
            accuracy = told_accuracy(record["test_accuracy"], ", ")
            console.print(f"step {step:>7} of {last}: training loss {record['train_loss']:.4f}{accuracy}")

    return train_series(settings, config.absolute().parent, tell)


def told_accuracy(accuracy: float, before: str) -> str:
    """`before` and the accuracy on the test samples in words; nothing where targets are amounts."""
    return f"{before}test accuracy {accuracy:.4f}" if accuracy == accuracy else ""
