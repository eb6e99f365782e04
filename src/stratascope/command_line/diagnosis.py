"""The commands about this machine: doctor, data, schema."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from stratascope.command_line.printing import print_json, print_table
from stratascope.errors import ConfigurationError, StratascopeError

_PACKAGES = (
    "prefect", "prefect-dask", "dask", "distributed", "fastapi", "sqlalchemy", "torch", "zarr", "xarray", "pandas",
    "pyarrow", "openTSNE", "matplotlib", "plotly",
)  # fmt: skip
_BOUNDS = {"fastapi": ("0.139", "0.151"), "sqlalchemy": ("2.0", "2.1")}
_CLUSTERS = {"slurm": "dask_jobqueue", "ssh": "asyncssh", "kubernetes": "dask_kubernetes"}
"""By kind, the package that it needs beside those of a local audit."""
_GIB = 2**30


def findings() -> list[dict[str, Any]]:
    """What was looked at: name, whether it is well, what was found, what to do."""
    import psutil

    found = [_package(name) for name in _PACKAGES]
    memory = psutil.virtual_memory().available
    found.append(
        _entry("memory", memory > _GIB, f"{memory / _GIB:.1f} GiB free", "Free memory, or use fewer workers.")
    )
    disk = shutil.disk_usage(".").free
    found.append(
        _entry("disk", disk > _GIB, f"{disk / _GIB:.1f} GiB free here", "Make room, or put the store elsewhere.")
    )
    address = os.environ.get("PREFECT_API_URL")
    found.append(_entry("Prefect API", True, address or "none configured: each audit starts its own server", ""))
    from stratascope.storage.datasets import data_folder

    folder = data_folder()
    advice = "Set STRATASCOPE_DATA, or `stratascope data get mnist`; `stratascope demo` needs neither."
    found.append(_entry("data folder", folder.is_dir(), str(folder), advice))
    return [*found, *_clusters()]


def _clusters() -> list[dict[str, Any]]:
    """Which kinds of `cluster` can be used from here; none of them is needed for a local audit."""
    found = [_entry("cluster: local", True, f"{os.cpu_count()} cores", "")]
    for kind, package in _CLUSTERS.items():
        advice = []
        if importlib.util.find_spec(package) is None:
            advice.append(f"pip install 'stratascope[{kind}]'")
        if kind == "slurm" and shutil.which("sbatch") is None:
            advice.append("run it where sbatch is, on a login node of Slurm")
        if kind == "kubernetes" and not _knows_kubernetes():
            advice.append("set KUBECONFIG, or run it inside the cluster")
        found.append(
            _entry(f"cluster: {kind}", not advice, "not from here" if advice else "ready", "; ".join(advice))
        )
    return found


def _knows_kubernetes() -> bool:
    if os.environ.get("KUBECONFIG") or os.environ.get("KUBERNETES_SERVICE_HOST"):
        return True
    return Path("~/.kube/config").expanduser().is_file()


def _entry(name: str, well: bool, what: str, advice: str) -> dict[str, Any]:
    return {"name": name, "well": well, "found": what, "advice": "" if well else advice}


def _package(name: str) -> dict[str, Any]:
    from packaging.version import Version

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _entry(name, False, "not installed", f"pip install {name}")
    low, high = _BOUNDS.get(name, ("0", "99999"))
    well = Version(low) <= Version(version) < Version(high)
    return _entry(
        name, well, version, f"pip install '{name}>={low},<{high}': with this version Prefect fails silently."
    )


def doctor(as_json: bool) -> int:
    """Print the findings; 3 where something is missing that audits need."""
    found = findings()
    if as_json:
        print_json({"schema": 1, "findings": found})
    else:
        signs = {True: "ok", False: "!!"}
        rows = [
            ("--" if item["name"].startswith("cluster: ") and not item["well"] else signs[item["well"]],
             item["name"], item["found"], item["advice"])
            for item in found
        ]  # fmt: skip
        print_table("", ("", "what", "found", "to do"), rows)
    optional = ("data folder", "cluster: ")
    return 0 if all(item["well"] for item in found if not item["name"].startswith(optional)) else 3


def list_data(as_json: bool) -> None:
    """All data sets by name: which splits are here, and whether `data get` fetches them."""
    from stratascope.storage.datasets import SOURCES, data_folder, needs_path
    from stratascope.storage.datasets.download import PUBLIC

    entries: list[dict[str, Any]] = []
    for name, source in SOURCES.items():
        here = [] if needs_path(name) else [split for split in source.splits if _is_here(name, split)]
        state = "yours to point at" if needs_path(name) else "here" if here else "not here"
        entries.append({"name": name, "state": state, "splits": here, "public": name in PUBLIC})
    if as_json:
        print_json({"schema": 1, "folder": str(data_folder()), "data": entries})
        return
    rows = [(i["name"], i["state"], ", ".join(i["splits"]), "yes" if i["public"] else "") for i in entries]
    print_table(f"data folder: {data_folder()}", ("data set", "files", "splits here", "`data get`"), rows)


def _is_here(name: str, split: str) -> bool:
    from stratascope.storage.datasets import source_files

    try:
        return all(path.exists() for path in source_files(name, split=split))
    except (StratascopeError, OSError):
        return False


def get_data(name: str) -> None:
    """Fetch the public data set `name`; what is here already is only checked."""
    from stratascope.storage.datasets.download import fetch

    for path in fetch(name):
        print(path)


def schema(kind: str) -> None:
    """The JSON Schema of a configuration file."""
    if kind == "audit":
        from stratascope.flows.config import AuditConfig
        from stratascope.tasks.analysis import discover

        content = AuditConfig.model_json_schema()
        options = {}
        for name, analysis in discover().items():
            inner = analysis.options.model_json_schema()
            content.setdefault("$defs", {}).update(inner.pop("$defs", {}))
            options[name] = inner
        content["properties"]["analyses"] = {
            "type": "object", "properties": options, "additionalProperties": False,
        }  # fmt: skip
    elif kind == "train":
        from stratascope.tasks.training.config import TrainConfig

        content = TrainConfig.model_json_schema()
    elif kind == "compare":
        from stratascope.flows.compare_config import CompareConfig

        content = CompareConfig.model_json_schema()
    else:
        raise ConfigurationError(f"there is no schema {kind!r}: audit, train and compare.")
    print_json(content)
