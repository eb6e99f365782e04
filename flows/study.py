"""A study: trains its own runs, then audits them; both on the workers that the audit's configuration chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import Task, flow
from prefect.states import Completed, Failed

from stratascope.errors import ConfigurationError, StratascopeError
from stratascope.flows.audit import audit_from_file
from stratascope.flows.cluster import await_workers, on_workers
from stratascope.flows.config import deployed, load_config
from stratascope.flows.futures import SETTINGS
from stratascope.flows.result import outcome_without_work


def train_series(config: str, overrides: list[str]) -> int:
    """Train as the file `config` says and return how many checkpoints there are. A finished run stays as it is."""
    from stratascope.tasks.training.config import TrainConfig
    from stratascope.tasks.training.loop import train

    return train(load_config(Path(config), overrides, TrainConfig), Path(config).parent).checkpoints


train_task = Task(train_series, name="train", **SETTINGS)


@flow(name="study", flow_run_name="study-{config}", validate_parameters=False)
def study(
    config: str,
    train: list[str],
    overrides: list[str] | None = None,
    train_overrides: list[str] | None = None,
    max_seconds: float | None = None,
) -> Any:
    """Train as each of the files `train` says, then audit as `config` says. All paths are absolute.

    What is trained and audited already stays as it is, so an interrupted study goes on, and a finished one is only
    looked at. `max_seconds` bounds the audit.
    """
    try:
        trained = train_all(config, train, overrides or [], train_overrides or [])
        result = outcome_without_work(Path(config), overrides or [])
        if result is None:
            result = audit_from_file(config, overrides, False, max_seconds)
    except StratascopeError as error:
        return Failed(message=str(error))
    message = f"{trained} checkpoints; verdict {result.verdict}: {result.units}; report {result.report}"
    return Completed(message=message) if result.exit_code == 0 else Failed(message=message)


def train_all(config: str, train: list[str], overrides: list[str], train_overrides: list[str]) -> int:
    """Train every series on the workers of the audit `config`; returns how many checkpoints there are.

    Raises ConfigurationError before any work, and whatever ends a training.
    """
    from stratascope.tasks.training.config import TrainConfig

    for what, path in (("config", config), *(("train", path) for path in train)):
        deployed(path, what)
    if not train:
        raise ConfigurationError("a study trains: name at least one file in `train`.")
    for path in train:
        load_config(Path(path), train_overrides, TrainConfig)
    cluster = load_config(Path(config), overrides).cluster
    return int(on_workers(train_on_workers, cluster)(train, train_overrides, config, overrides))


@flow(name="train-on-workers", validate_parameters=False)
def train_on_workers(train: list[str], train_overrides: list[str], config: str, overrides: list[str]) -> int:
    """All trainings at once, as many as there are workers of the audit `config`."""
    await_workers(load_config(Path(config), overrides).cluster)
    futures = [
        train_task.with_options(task_run_name=f"train-{Path(path).stem}").submit(path, train_overrides)
        for path in train
    ]
    return sum(future.result() for future in futures)
