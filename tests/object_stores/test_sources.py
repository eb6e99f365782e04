"""Checkpoints and probes behind a URL: found, read as they were listed, and left alone when they change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import save_file

from stratascope.errors import ConfigurationError, DeferredCheckpointError, ProbeError, UnreachableError
from stratascope.storage.checkpoint_files import find_checkpoints, settle, split_runs
from stratascope.storage.datasets import load_dataset, source_files
from stratascope.storage.file_memory import FileMemory, file_state
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.remote_paths import listed_path, matching
from stratascope.storage.run_source import RunSource
from stratascope.storage.store import Store
from stratascope.tasks.intake.load import load_weights

MODEL = ModelSpec(factory="stratascope.tasks.models:mlp")


def source(checkpoints: str, **more) -> RunSource:
    return RunSource(name="run", checkpoints=checkpoints, model=MODEL, **more)


def weights(path: Path, value: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": torch.full((3, 2), value)}, path)
    return path


@pytest.fixture
def series(bucket, tmp_path):
    for step in (0, 5, 10, 15):
        bucket.upload(weights(tmp_path / f"step-{step}.safetensors", step), f"runs/a/step-{step}.safetensors")
    bucket.upload(weights(tmp_path / "x.safetensors.tmp", 1), "runs/a/step-20.safetensors.tmp")
    bucket.objects.write("runs/a/readme.txt", b"no checkpoint")
    return bucket


@pytest.mark.parametrize(
    "place", ["runs/a/step-*.safetensors", "runs/a", "runs/a/", "runs/**/step-[0-9]*.safetensors", "runs/*/step-*"]
)
def test_a_folder_or_a_glob_gives_the_series_in_order(series, tmp_path, place):
    run = source(f"{series.url}/{place}")
    files = find_checkpoints(run, tmp_path)
    listing = settle(run, files, {})
    assert [item.step for item in listing.checkpoints] == [0, 5, 10, 15]
    assert [str(item.path) for item in files][1] == f"{series.url}/runs/a/step-5.safetensors"
    for item in listing.checkpoints:
        assert torch.equal(load_weights(item, run).tensors["weight"], torch.full((3, 2), float(item.step or 0)))


def test_a_star_stops_at_a_slash_and_does_not_match_hidden_names(bucket):
    for name in ("a/x.pt", "a/.x.pt", "a/b/x.pt", "a/b/c/y.pt", "ab/x.pt"):
        bucket.objects.write(name, b"1")
    found = {pattern: [str(path)[len(bucket.url) + 1 :] for path in matching(f"{bucket.url}/{pattern}")[1]]
             for pattern in ("a/*.pt", "a/**/*.pt", "*/x.pt", "a/?/x.pt", "a/[!b]/x.pt", "none/*.pt")}  # fmt: skip
    assert found == {
        "a/*.pt": ["a/x.pt"], "a/**/*.pt": ["a/b/c/y.pt", "a/b/x.pt", "a/x.pt"], "*/x.pt": ["a/x.pt", "ab/x.pt"],
        "a/?/x.pt": ["a/b/x.pt"], "a/[!b]/x.pt": [], "none/*.pt": [],
    }  # fmt: skip


def test_one_glob_splits_into_runs_and_a_manifest_names_its_files(series, tmp_path):
    series.upload(weights(tmp_path / "other.safetensors", 7), "runs/b/step-3.safetensors")
    runs = split_runs(source(f"{series.url}/runs/*/step-*.safetensors", run=r"runs/(\w+)/"), tmp_path)
    assert [(run.name, len(files)) for run, files in runs] == [("run-a", 4), ("run-b", 1)]
    series.objects.write("runs/list.csv", b"path,step\na/step-10.safetensors,100\nb/step-3.safetensors,200\n")
    files = find_checkpoints(source(f"{series.url}/runs/list.csv"), tmp_path)
    assert [(item.step, item.path.name) for item in files] == [
        (100, "step-10.safetensors"),
        (200, "step-3.safetensors"),
    ]
    here = tmp_path / "list.json"
    here.write_text(json.dumps([{"path": f"{series.url}/runs/a/step-5.safetensors", "step": 5}]))
    (item,) = find_checkpoints(source("list.json"), tmp_path)
    assert load_weights(item, source("x")).tensors["weight"][0, 0] == 5


def test_a_sharded_checkpoint_is_one_folder_and_only_its_weights_are_fetched(bucket, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "1")
    save_file({"b": torch.zeros(2)}, tmp_path / "2")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    bucket.upload(tmp_path / "1", "run/step-4/model-1.safetensors")
    bucket.upload(tmp_path / "2", "run/step-4/model-2.safetensors")
    bucket.objects.write("run/step-4/model.safetensors.index.json", json.dumps(index).encode())
    bucket.objects.write("run/step-4/optimizer.pt", b"much")
    run = source(f"{bucket.url}/run/step-*")
    (item,) = find_checkpoints(run, tmp_path)
    assert set(load_weights(item, run).tensors) == {"a", "b"}
    assert settle(run, [item], {}).checkpoints[0].step == 4
    copies = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert "optimizer.pt" not in copies
    fetched = bucket.objects.requests["get"]
    load_weights(item, run)
    assert bucket.objects.requests["get"] == fetched, "the copy is used again"


def test_what_changed_after_it_was_listed_is_left_for_the_next_audit(series, tmp_path):
    run = source(f"{series.url}/runs/a")
    first, second, *_ = find_checkpoints(run, tmp_path)
    series.upload(weights(tmp_path / "new", 99), "runs/a/step-0.safetensors")
    series.objects.delete(["runs/a/step-5.safetensors"])
    for item in (first, second):
        with pytest.raises(DeferredCheckpointError, match="left for the next"):
            load_weights(item, run)
    again = find_checkpoints(run, tmp_path)
    assert load_weights(again[0], run).tensors["weight"][0, 0] == 99


def test_what_is_known_of_an_object_holds_until_its_content_changes(series, tmp_path):
    memory = FileMemory(Store.open(tmp_path / "store", create=True))
    path = listed_path(f"{series.url}/runs/a/step-0.safetensors")
    memory.remember(path, "x", {"digest": 1})
    assert memory.recall(listed_path(str(path)), "x") == {"digest": 1}
    assert file_state(path)[0][:2] == [str(path), len(path.read_bytes())]
    series.upload(weights(tmp_path / "new", 99), "runs/a/step-0.safetensors")
    assert memory.recall(listed_path(str(path)), "x") is None


def test_a_large_object_comes_in_ranges_and_whole(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("stratascope.storage.objects.RANGE_BYTES", 1000)
    content = np.random.default_rng(0).bytes(12_345)
    bucket.objects.write("large", content)
    facts = bucket.objects.head("large")
    bucket.objects.download("large", tmp_path / "copy", facts)
    assert (tmp_path / "copy").read_bytes() == content
    assert bucket.objects.requests["get"] == 13
    with pytest.raises(Exception, match="changed"):
        bucket.objects.download("large", tmp_path / "copy", replace(facts, etag='"other"'))


def test_nothing_there_and_no_bucket_are_told_apart(series, tmp_path):
    with pytest.raises(ConfigurationError, match="no checkpoint matches s3://"):
        find_checkpoints(source(f"{series.url}/runs/none-*.pt"), tmp_path)
    with pytest.raises(UnreachableError, match="there is no bucket 'missing-bucket'"):
        find_checkpoints(source("s3://missing-bucket/runs/*.pt"), tmp_path)


def test_probes_of_every_kind_come_from_a_url(bucket, tmp_path):
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(20, 4)).astype(np.float32), np.arange(20) % 3
    np.savez(tmp_path / "probe.npz", inputs=inputs, targets=targets)
    url = bucket.upload(tmp_path / "probe.npz", "data/test.npz")
    found = load_dataset("npz", split="test", path=f"{bucket.url}/data/{{split}}.npz")
    np.testing.assert_array_equal(found.inputs, inputs)
    (listed,) = source_files("npz", split="test", path=url)
    assert file_state(listed)[0][0] == url

    group = zarr.open_group(str(tmp_path / "probe.zarr"), mode="w")
    group.create_array("inputs", data=inputs, chunks=(5, 4))
    group.create_array("targets", data=targets)
    for path in sorted((tmp_path / "probe.zarr").rglob("*")):
        if path.is_file():
            bucket.upload(path, f"data/probe.zarr/{path.relative_to(tmp_path / 'probe.zarr').as_posix()}")
    rows = load_dataset("zarr", path=f"{bucket.url}/data/probe.zarr").inputs
    np.testing.assert_array_equal(rows.take_rows(np.array([1, 7, 19])), inputs[[1, 7, 19]])

    from PIL import Image

    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(tmp_path / "pictures" / name)
        bucket.upload(tmp_path / "pictures" / name, f"pictures/{name}")
    bucket.objects.write("pictures/dog", b"")  # how some programs make a folder
    found = load_dataset("image_folder", path=f"{bucket.url}/pictures")
    assert found.class_names == ("cat", "dog")
    assert found.inputs.take_rows(np.arange(3)).shape == (3, 3, 4, 4)

    bucket.objects.write("text.txt", b"to be or not to be " * 20)
    assert len(load_dataset("text", split="all", path=f"{bucket.url}/text.txt", length=8)) > 10
    with pytest.raises(ProbeError, match=r"s3://.*none\.npz cannot be read"):
        load_dataset("npz", path=f"{bucket.url}/none.npz")


def test_any_other_scheme_goes_through_fsspec(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("STRATASCOPE_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    for step in (1, 2):
        system.pipe_file(f"/runs/step-{step}.safetensors", weights(tmp_path / "w", step).read_bytes())
    run = source("memory://runs/step-*.safetensors")
    files = find_checkpoints(run, tmp_path)
    assert [load_weights(item, run).tensors["weight"][0, 0].item() for item in files] == [1, 2]
    system.pipe_file("/runs/step-1.safetensors", weights(tmp_path / "w", 9).read_bytes())
    (tmp_path / "cache").rename(tmp_path / "old-cache")
    with pytest.raises(DeferredCheckpointError):
        load_weights(files[0], run)
