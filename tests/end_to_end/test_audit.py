"""An audit as a user meets it: the command, the store read with other tools, and the second run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pytest
import xarray as xr
import yaml

from stratascope import open_store
from stratascope.storage.ledger import COLUMNS
from stratascope.storage.store import Store
from tests.conftest import ENVIRONMENT, ONE_WORKER, Workplace, stratascope


def units_of(store: Path) -> dict[str, str]:
    """Identity by unit, and with it everything that decides what is stored."""
    return {str(unit): manifest.identity for unit, manifest in Store.open(store).manifests().items()}


def test_the_outcome_is_one_json_object_that_says_what_became_of_everything(audited: Workplace):
    again = audited.audit()
    assert again.code == 0
    told = again.json
    assert set(told) == {
        "schema", "store", "report", "verdict", "checkpoints", "units", "checks", "failures", "alerts",
    }  # fmt: skip
    assert told["verdict"] in ("pass", "info", "warn")
    assert [(item["run"], item["step"], item["status"]) for item in told["checkpoints"]] == [
        ("small", step, "cached") for step in range(4)
    ]
    assert told["units"]["computed"] == told["units"]["failed"] == 0
    assert Path(told["report"]).exists()


def test_plain_tools_read_archive_and_ledger_with_names_and_units(audited: Workplace):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(audited.store / "archive.zarr", engine="zarr", consolidated=False)
        for node in tree.subtree:
            for array in node.data_vars.values():
                assert all(array.dims) or array.ndim == 0
                array.load()
    pca = tree["series/small/embedding/probe/fc2:input"]
    assert pca["pca_2d"].dims == ("step", "embedding_sample", "component")
    ledger = pd.read_parquet(audited.store / "ledger")
    assert list(ledger.columns) == list(COLUMNS)
    assert not ledger[ledger["status"] == "ok"]["unit"].eq("").any()
    assert ledger[~ledger["status"].isin(["ok", "vacuous"])]["value"].isna().all()
    accuracy = ledger[(ledger["metric"] == "accuracy") & (ledger["part"] == "")]
    assert sorted(accuracy["step"]) == [0, 1, 2, 3]
    assert ((accuracy["low"] <= accuracy["value"]) & (accuracy["value"] <= accuracy["high"])).all()
    files = str(audited.store / "ledger" / "small" / "**" / "*.parquet")
    assert len(polars.read_parquet(files)) == len(ledger)
    assert duckdb.sql(f"select count(*) from read_parquet('{files}')").fetchall() == [(len(ledger),)]


def test_python_reads_a_layer_over_all_steps(audited: Workplace):
    store = open_store(audited.store)
    layer = store.layer("small", "relu1", "pooled", "probe")
    assert layer.dims == ("step", "sample", "feature")
    assert layer.shape == (4, 60, 12)
    assert float(layer.min()) >= 0
    assert set(store.findings("outputs")["metric"]) >= {"accuracy", "loss", "confidence"}


def test_a_second_run_imports_neither_prefect_nor_torch_and_starts_nothing(audited: Workplace):
    script = (
        "import sys\nfrom stratascope.command_line import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as leaving:\n    assert not leaving.code, leaving.code\n"
        "loaded = {name.split('.')[0] for name in sys.modules} & {'prefect', 'torch', 'dask', 'distributed', 'zarr'}\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "audit", str(audited.config), "--json"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom stratascope.command_line import main\n"
        "try:\n    main(['audit', '--help'])\nexcept SystemExit:\n    pass\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'prefect', 'torch', 'dask', 'zarr', 'pandas', 'numpy', 'scipy'}, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, check=True, capture_output=True, timeout=60)


def test_weights_replaced_under_the_same_name_with_their_times_restored_are_the_only_ones_computed(tmp_path):
    place = Workplace(tmp_path)
    place.configure(cluster=ONE_WORKER)
    files = [place.checkpoint(step) for step in range(4)]
    assert place.audit().code == 0
    before = units_of(place.store)
    times = files[2].stat()
    place.checkpoint(2, seed=5)
    os.utime(files[2], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert files[2].stat().st_size == times.st_size
    told = place.audit().json
    assert [item["status"] for item in told["checkpoints"]] == ["cached", "cached", "computed", "cached"]
    after = units_of(place.store)
    changed = {unit for unit in before if before[unit] != after[unit]}
    assert {unit for unit in changed if "step" in unit} == {
        f"{analysis} (small step 2)" for analysis in ("capture", "intake", "outputs", "statistics")
    }
    # A new checkpoint joins and one vanishes, and of the others nothing is computed again.
    place.checkpoint(4)
    files[0].unlink()
    told = place.audit().json
    assert {item["step"]: item["status"] for item in told["checkpoints"]} == {
        0: "gone", 1: "cached", 2: "cached", 3: "cached", 4: "computed",
    }  # fmt: skip
    assert 0 in set(pd.read_parquet(place.store / "ledger")["step"])


def test_the_commands_that_read_a_store(audited: Workplace, tmp_path):
    shown = stratascope("metrics", audited.store, "--metric", "accuracy", "--part", "", "--format", "csv")
    table = pd.read_csv(__import__("io").StringIO(shown.out))
    assert sorted(table["step"]) == [0, 1, 2, 3]
    assert len(stratascope("metrics", audited.store, "--metric", "loss", "--format", "json").json) >= 4
    assert "accuracy" in stratascope("metrics", audited.store).out
    wrong = stratascope("metrics", audited.store, "--metric", "acuracy")
    assert wrong.code == 2
    assert "Did you mean 'accuracy'" in wrong.err
    history = stratascope("history", audited.store, "--json").json
    assert history["audits"][0]["new"][:1] == ["small step 0"]
    zipped = stratascope("report", audited.store, "--zip", tmp_path / "report.zip")
    assert zipped.code == 0
    assert "report/index.html" in zipfile.ZipFile(tmp_path / "report.zip").namelist()
    assert stratascope("verify", audited.store).code == 0


def test_the_report_is_rebuilt_without_the_model_or_the_checkpoints(audited: Workplace, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(audited.store, copy)
    pages = {path.relative_to(copy): path.read_text() for path in (copy / "report").rglob("*.html")}
    shutil.rmtree(copy / "report")
    assert stratascope("report", copy).code == 0
    rebuilt = {path.relative_to(copy): path.read_text() for path in (copy / "report").rglob("*.html")}
    assert set(rebuilt) == set(pages)


def test_a_dry_run_tells_and_writes_nothing(workplace: Workplace):
    told = stratascope("audit", workplace.config, "--dry-run", "--json").json
    (run,) = told["runs"]
    assert [item["status"] for item in run["checkpoints"]] == ["new"] * 4
    layers = {item["name"]: item for item in run["layers"]}
    assert layers["fc1"]["shape"] == [12]
    assert layers["fc1"]["bytes"] == 60 * 12 * 4
    assert run["bytes"] == 4 * run["bytes_per_checkpoint"]
    assert not workplace.store.exists()
    listed = stratascope("layers", workplace.config, "--json").json
    assert [item["name"] for item in listed["runs"]["small"]["layers"]][:3] == ["flatten", "fc1", "relu1"]


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(workplace: Workplace, audited: Workplace):
    assert yaml.safe_load(audited.config.read_text())["cluster"] == {"workers": 2}
    workplace.configure(cluster=ONE_WORKER)
    assert workplace.audit().code == 0
    assert tree_of(workplace.store) == tree_of(audited.store)


def tree_of(store: Path) -> dict[str, bytes]:
    """Every byte of archive and ledger."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for part in ("archive.zarr", "ledger")
        for path in sorted((store / part).rglob("*"))
        if path.is_file() and "_compacted" not in path.parts
    }


def test_the_archive_and_the_ledger_name_no_time_place_or_process(audited: Workplace):
    for name, data in tree_of(audited.store).items():
        assert str(audited.folder).encode() not in data, name
        if name.endswith("zarr.json"):
            assert not {os.uname().nodename, str(os.getpid())} & set(data.decode().replace('"', " ").split()), name
    texts = pd.read_parquet(audited.store / "ledger").select_dtypes(exclude="number")
    assert not texts.apply(lambda column: column.str.contains(str(audited.folder), regex=False).fillna(False)).any(
        axis=None
    )


def test_a_users_own_packages_may_have_any_name(tmp_path):
    place = Workplace(tmp_path)
    package = tmp_path / "tasks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(
        "from torch import nn\n\ndef build(width):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    (package / "data.py").write_text(
        "import numpy as np\n\ndef probe(count):\n    g = np.random.default_rng(0)\n"
        "    return g.normal(size=(count, 1, 8, 8)).astype('float32'), g.integers(0, 10, count)\n"
    )
    import torch
    from safetensors.torch import save_file
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10))
    (tmp_path / "runs").mkdir()
    save_file(network.state_dict(), tmp_path / "runs" / "step-1.safetensors")
    run = {
        "name": "mine",
        "checkpoints": "runs/*",
        "model": {"factory": "tasks.models:build", "args": {"width": 5}},
    }
    probe = {"factory": "tasks.data:probe", "args": {"count": 30}}
    place.configure(runs=[run], probe=probe, analyses={"outputs": {}}, cluster=ONE_WORKER)
    done = place.audit()
    assert done.code == 0, done.err
    outputs = open_store(place.store)._store.array("runs/mine/000000000001/activations/probe/@output/full")
    with torch.no_grad():
        inputs = np.random.default_rng(0).normal(size=(30, 1, 8, 8)).astype("float32")
        np.testing.assert_allclose(outputs, network(torch.from_numpy(inputs)).numpy(), rtol=1e-5, atol=1e-6)
    assert place.audit().json["units"]["computed"] == 0


def test_set_overrides_the_file(workplace: Workplace):
    told = stratascope("audit", workplace.config, "--dry-run", "--json", "--set", "runs.0.select={last: 2}")
    assert told.code == 0, told.err
    content = yaml.safe_load(workplace.config.read_text())
    assert "select" not in content["runs"][0]
    (run,) = told.json["runs"]
    assert [item["status"] for item in run["checkpoints"]] == ["not selected"] * 2 + ["new"] * 2
    assert run["bytes"] == 2 * run["bytes_per_checkpoint"]
    words = stratascope("audit", workplace.config, "--dry-run", "--set", "runs.0.select={last: 2}").out
    assert "2 new of 2 checkpoints" in words
    assert words.count("not selected") == 2
