"""Registers an audit with a Prefect server that lasts, so that the clock starts it and a worker does it."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stratascope.errors import ConfigurationError, StoreError
from stratascope.flows.config import AuditConfig, load_config
from stratascope.flows.plan import store_folder
from stratascope.storage.checkpoint_files import split_runs
from stratascope.storage.store import Store

NIGHTLY = "0 3 * * *"
WATCHING = "*/5 * * * *"
"""How often a folder is looked at that a training is still filling, unless told otherwise."""
FLOW = "audit"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_START = (
    "start a server that lasts (`prefect server start`), then `export PREFECT_API_URL=http://127.0.0.1:4200/api` here "
    "and in the worker's terminal; docs/scheduling.md goes through it"
)


@dataclass(frozen=True)
class Wish:
    """What is to be registered: `config` is absolute; `cron` None means nightly, or every five minutes with `watch`."""

    config: Path
    name: str
    pool: str
    cron: str | None = None
    timezone: str = "UTC"
    watch: bool = False
    overrides: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        return f"{FLOW}/{self.name}"

    @property
    def schedule(self) -> str:
        return self.cron or (WATCHING if self.watch else NIGHTLY)


def deployment_name(config: Path, given: str | None) -> str:
    """The name of the deployment: what was given, or the configuration file's. Raises ConfigurationError."""
    name = given if given is not None else re.sub(r"[^A-Za-z0-9._-]+", "-", config.stem).lstrip("._-")
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"--name {name!r}: a deployment's name has 1 to 64 letters, digits, '.', '_' or '-', and begins with a "
            "letter or a digit."
        )
    return name


def parameters_of(wish: Wish) -> dict[str, Any]:
    """What the deployed flow is called with; the configuration is checked as an audit would.

    Raises ConfigurationError, NewerStoreError.
    """
    overrides = [*wish.overrides, *(["watch=true"] if wish.watch else [])]
    settings: AuditConfig = load_config(wish.config, overrides)
    for run in settings.runs:
        split_runs(run, wish.config.parent)
    try:
        Store.open(store_folder(settings, wish.config.parent))
    except StoreError as error:
        if "there is no store" not in str(error):
            raise
    return {"config": str(wish.config), "overrides": overrides}


def next_run(cron: str, timezone: str) -> str:
    """When the schedule is due next, as ISO time in `timezone`. Raises ConfigurationError for what is no schedule."""
    from prefect.server.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        schedule = CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        if "timezone" in str(error.errors()[0]["msg"]).lower():
            raise ConfigurationError(
                f"--timezone {timezone!r} is no time zone: write, say, Europe/Berlin."
            ) from None
        raise ConfigurationError(
            f"--cron {cron!r} is no schedule: write five fields (minute, hour, day, month, weekday), such as "
            "'0 3 * * *' for 3:00 every night."
        ) from None
    (due,) = asyncio.run(schedule.get_dates(1))
    return due.isoformat()


@contextmanager
def lasting_client() -> Iterator[tuple[Any, str]]:
    """A client of the configured Prefect API, and its address.

    Raises ConfigurationError where none is configured or it does not answer: what is registered with a server that
    ends with this command is never started.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    address = get_current_settings().api.url
    if not address:
        raise ConfigurationError(f"no lasting Prefect API is configured (PREFECT_API_URL is not set): {_START}.")
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
        if problem is not None:
            raise ConfigurationError(
                f"the Prefect API that PREFECT_API_URL names, {address}, does not answer ({problem}): {_START}."
            )
        yield client, address


def register(wish: Wish) -> dict[str, Any]:
    """Register the audit, or bring its registration up to date; returns what was done, as JSON-like data.

    Raises ConfigurationError where the configuration, the schedule or the Prefect API is at fault, or where the name
    stands for the audit of another file.
    """
    parameters = parameters_of(wish)
    due = next_run(wish.schedule, wish.timezone)
    with lasting_client() as (client, address):
        known = _known(client, wish)
        pool_is_new = _ensure_pool(client, wish.pool)
        identifier = _upsert(client, wish, parameters)
        return {
            "deployment": wish.full_name,
            "id": str(identifier),
            "action": "updated" if known is not None else "created",
            "parameters": parameters,
            "schedule": {"cron": wish.schedule, "timezone": wish.timezone},
            "next_run": due,
            "work_pool": {"name": wish.pool, "created": pool_is_new},
            "worker_command": worker_command(address, wish.pool),
        }


def remove(wish: Wish) -> dict[str, Any]:
    """Take the audit's registration back. Raises ConfigurationError where there is none."""
    with lasting_client() as (client, address):
        known = _known(client, wish)
        if known is None:
            raise ConfigurationError(
                f"there is no deployment {wish.full_name!r} at {address}: `prefect deployment ls` lists them."
            )
        client.delete_deployment(known.id)
        return {"deployment": wish.full_name, "id": str(known.id), "action": "removed"}


def worker_command(address: str, pool: str) -> str:
    """What starts a worker that does what is registered."""
    return f"PREFECT_API_URL={shlex.quote(address)} prefect worker start --pool {shlex.quote(pool)}"


def _known(client: Any, wish: Wish) -> Any:
    """The deployment of that name, if there is one; one for another file is not touched."""
    from prefect.exceptions import ObjectNotFound

    try:
        known = client.read_deployment_by_name(wish.full_name)
    except ObjectNotFound:
        return None
    other = known.parameters.get("config")
    if other != str(wish.config):
        raise ConfigurationError(
            f"the deployment {wish.full_name!r} is for {other}, not for {wish.config}: give another --name."
        )
    return known


def _ensure_pool(client: Any, name: str) -> bool:
    """Make the work pool, of processes on the worker's machine, where it is missing; returns whether it was."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        client.read_work_pool(name)
        return False
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    except ObjectAlreadyExists:  # somebody else was faster
        return False
    return True


def _upsert(client: Any, wish: Wish, parameters: dict[str, Any]) -> Any:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.utilities.callables import parameter_schema

    from stratascope.flows.audit import audit

    schedule = DeploymentScheduleCreate(
        schedule=CronSchedule(cron=wish.schedule, timezone=wish.timezone), active=True, slug="stratascope"
    )
    return client.create_deployment(
        flow_id=client.create_flow_from_name(audit.name),
        name=wish.name,
        description=f"Audits the checkpoints that are new, as {wish.config} says.",
        tags=["stratascope"],
        entrypoint="stratascope.flows.audit:audit",
        # The flow is imported from the installed package: there is no code to fetch.
        pull_steps=[],
        parameters=parameters,
        parameter_openapi_schema=parameter_schema(audit).model_dump_for_openapi(),
        enforce_parameter_schema=True,
        schedules=[schedule],
        # A run that falls due while another is still at work is cancelled: the next one finds what is left to do.
        concurrency_limit=1,
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        work_pool_name=wish.pool,
        job_variables={"env": {"OMP_NUM_THREADS": "1"}},
    )


def wish_of(
    config: Path,
    name: str | None,
    pool: str,
    cron: str | None = None,
    timezone: str = "UTC",
    watch: bool = False,
    overrides: Sequence[str] = (),
) -> Wish:
    """The wish that the words of the command line stand for. Raises ConfigurationError."""
    path = config.absolute()
    return Wish(path, deployment_name(path, name), pool, cron, timezone, watch, tuple(overrides))
