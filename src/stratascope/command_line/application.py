"""The commands and their flags. What they need is imported inside, so that `--help` answers at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

application = typer.Typer(
    name="stratascope",
    help="Looks inside neural networks over whole series of checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_application = typer.Typer(help="Data sets: list them, fetch public ones.", no_args_is_help=True)
config_application = typer.Typer(help="About configuration files.", no_args_is_help=True)
application.add_typer(data_application, name="data")
application.add_typer(config_application, name="config")

Config = Annotated[Path, typer.Argument(help="A YAML file; see `stratascope config schema`.")]
StorePath = Annotated[str, typer.Argument(help="The folder of a store, or its URL.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key.inner=value; overrides the file.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@application.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        import stratascope

        print(stratascope.__version__)
        raise typer.Exit


@application.command()
def demo(
    directory: Annotated[Path, typer.Argument(help="Where to put everything.")] = Path("stratascope-demo"),
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Train a small network on bundled digits, audit all its checkpoints, print where the report is."""
    from stratascope.command_line import auditing

    return auditing.demo(directory, as_json).exit_code


@application.command()
def audit(
    config: Config,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help="Run this analysis alone.")] = None,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read all files again, whatever is remembered.")
    ] = False,
    rebase: Annotated[
        bool, typer.Option("--rebase", help="Make maps anew that were kept in place for comparison.")
    ] = False,
    max_time: Annotated[str, typer.Option("--max-time", help="Begin nothing new after 90s, 30m, 2h.")] = "",
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Also write the outcome as JUnit XML, for CI systems.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also write the outcome as Markdown, for a job's summary.")
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Audit checkpoints: do what is not stored yet, judge, and draw the report."""
    from stratascope.command_line import auditing
    from stratascope.command_line.printing import seconds_of

    auditing.check_places(junit, markdown)
    if dry_run:
        auditing.dry_run(config, overrides or [], as_json)
        return 0
    started = time.monotonic()
    limit = seconds_of(max_time) if max_time else None
    result = auditing.audit(config, overrides or [], only or [], rehash, limit, rebase=rebase)
    auditing.show_result(result, as_json, time.monotonic() - started)
    auditing.write_for_jobs(result, junit, markdown)
    return result.exit_code


@application.command()
def train(config: Config, overrides: Set = None, as_json: Json = False, debug: Debug = False) -> int:
    """Train a network of the zoo, or one's own, and write a checkpoint series with its trace."""
    from dataclasses import asdict

    from stratascope.command_line import auditing
    from stratascope.command_line.printing import print_json

    summary = auditing.train(config, overrides or [], quiet=as_json)
    if as_json:
        print_json({"schema": 1, **asdict(summary)})
    else:
        accuracy = auditing.told_accuracy(summary.test_accuracy, "; ")
        print(f"{summary.checkpoints} checkpoints in {summary.directory}{accuracy}")
    return 0


@application.command()
def compare(config: Config, overrides: Set = None, as_json: Json = False, debug: Debug = False) -> int:
    """Compare two groups of runs: metrics, sample by sample, and against traditional methods."""
    from stratascope.command_line import comparing

    return comparing.compare(config, overrides or [], as_json)


@application.command()
def layers(config: Config, overrides: Set = None, as_json: Json = False, debug: Debug = False) -> None:
    """List the layers that can be captured, with shapes."""
    from stratascope.command_line import auditing

    auditing.layers(config, overrides or [], as_json)


@application.command()
def metrics(
    store: StorePath,
    metric: Annotated[str, typer.Option(help="A glob.")] = "*",
    layer: Annotated[str, typer.Option(help="A glob.")] = "*",
    run: Annotated[str, typer.Option(help="A glob.")] = "*",
    step: Annotated[int | None, typer.Option(help="One step.")] = None,
    probe: Annotated[str, typer.Option(help="A glob.")] = "*",
    part: Annotated[str, typer.Option(help="A glob; '' is the whole.")] = "*",
    form: Annotated[str, typer.Option("--format", help="table, csv, json or parquet.")] = "table",
    debug: Debug = False,
) -> None:
    """Print the ledger."""
    from stratascope.command_line import stores

    wanted: dict[str, Any] = {"metric": metric, "layer": layer, "run": run, "probe": probe, "part": part}
    stores.metrics(store, wanted, step, form)


@application.command()
def history(
    store: StorePath,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only so many, the latest ones.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Past audits: when, what was new, what changed, verdict."""
    from stratascope.command_line import stores

    stores.history(store, last, as_json)


@application.command()
def report(
    store: StorePath,
    zip_file: Annotated[Path | None, typer.Option("--zip", help="Also write the pages into one file.")] = None,
    debug: Debug = False,
) -> int:
    """Draw the pages again, from archive and ledger alone."""
    from stratascope.command_line import stores

    return stores.report(store, zip_file)


@application.command()
def verify(store: StorePath, as_json: Json = False, debug: Debug = False) -> int:
    """Read everything again against its digests; exit 1 where anything is damaged."""
    from stratascope.command_line import stores

    return stores.verify(store, as_json)


@application.command()
def prune(
    store: StorePath,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="last:3, every:10, steps:0,500, newer:30d, runs:best-*, reduction:pooled …"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be freed, and free nothing.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Free the arrays of checkpoints that no --keep names; the ledger stays."""
    from stratascope.command_line import stores

    stores.prune(store, keep or [], dry_run, as_json)


@application.command()
def deploy(
    config: Config,
    cron: Annotated[
        str | None, typer.Option("--cron", help="When; default every night at 3:00, with --watch every 5 minutes.")
    ] = None,
    timezone: Annotated[str, typer.Option("--timezone", help="Of the schedule, such as Europe/Berlin.")] = "UTC",
    watch: Annotated[
        bool, typer.Option("--watch", help="A training is still writing: new files must rest for a minute first.")
    ] = False,
    name: Annotated[str | None, typer.Option("--name", help="Default: the name of the file.")] = None,
    work_pool: Annotated[str, typer.Option("--work-pool", help="Made where it is missing.")] = "local-pool",
    remove: Annotated[bool, typer.Option("--remove", help="Take the registration back.")] = False,
    overrides: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Register a scheduled audit with a Prefect server that lasts."""
    from stratascope.command_line import scheduling
    from stratascope.flows.deploy import wish_of

    wish = wish_of(config, name, work_pool, cron, timezone, watch, overrides or [])
    scheduling.deploy(wish, remove, as_json)


@application.command()
def doctor(as_json: Json = False, debug: Debug = False) -> int:
    """Tell what is missing on this machine and how to get it."""
    from stratascope.command_line import diagnosis

    return diagnosis.doctor(as_json)


@data_application.command("list")
def data_list(as_json: Json = False, debug: Debug = False) -> None:
    """All data sets, and whether their files are here."""
    from stratascope.command_line import diagnosis

    diagnosis.list_data(as_json)


@data_application.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="A public data set; see `stratascope data list`.")],
    debug: Debug = False,
) -> None:
    """Fetch a public data set, check its digests, and keep it in the data folder."""
    from stratascope.command_line import diagnosis

    diagnosis.get_data(name)


@config_application.command("schema")
def config_schema(
    kind: Annotated[str, typer.Argument(help="audit, train or compare.")] = "audit", debug: Debug = False
) -> None:
    """The JSON Schema of a configuration file, options of all analyses included."""
    from stratascope.command_line import diagnosis

    diagnosis.schema(kind)
