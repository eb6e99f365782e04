"""Finding checkpoints: which files count, in which order, at which step."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from stratascope.errors import ConfigurationError
from stratascope.storage.checkpoint_files import (
    RunSource,
    find_checkpoints,
    missing_steps,
    natural_key,
    settle,
    split_runs,
)


def source(checkpoints: str, **keys) -> RunSource:
    return RunSource(name="run", checkpoints=checkpoints, model={"factory": "package:build"}, **keys)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")


def names(files) -> list[str]:
    return [item.path.name for item in files]


def settled(run: RunSource, folder: Path, facts=None) -> list[tuple[int | None, str]]:
    listing = settle(run, find_checkpoints(run, folder), facts or {})
    return [(item.step, item.path.name) for item in listing.checkpoints]


def test_a_glob_reaches_into_folders_and_orders_numbers_as_numbers(tmp_path: Path):
    touch(tmp_path, "a/b/step-10.pt", "a/step-9.pt", "a/b/step-2.safetensors", "a/notes.txt")
    found = find_checkpoints(source("a/**/step-*"), tmp_path)
    assert sorted(names(found), key=natural_key) == ["step-2.safetensors", "step-9.pt", "step-10.pt"]
    assert settled(source("a/**/*"), tmp_path) == [(2, "step-2.safetensors"), (9, "step-9.pt"), (10, "step-10.pt")]


def test_a_folder_gives_its_checkpoints_and_nothing_hidden_or_unfinished(tmp_path: Path):
    touch(
        tmp_path, "runs/step-1.pt", "runs/.step-2.pt", "runs/step-3.pt.tmp", "runs/step-4.pt.partial",
        "runs/step-5.safetensors.incomplete", "runs/step-6.pt~", "runs/tmp-step-7.pt", "runs/config.json",
    )  # fmt: skip
    assert names(find_checkpoints(source("runs"), tmp_path)) == ["step-1.pt"]
    assert names(find_checkpoints(source("runs/*"), tmp_path)) == ["step-1.pt"]


def test_a_link_that_leads_back_up_lists_no_file_twice(tmp_path: Path):
    touch(tmp_path, "runs/step-1.pt")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs", target_is_directory=True)
    assert names(find_checkpoints(source("runs/**/*.pt"), tmp_path)) == ["step-1.pt"]


def test_a_name_with_brackets_is_taken_as_it_stands_where_it_exists(tmp_path: Path):
    touch(tmp_path, "model[1].pt")
    assert settled(source("model[1].pt"), tmp_path) == [(0, "model[1].pt")]


def test_nothing_that_matches_is_an_error_unless_allowed(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"no checkpoint matches .*nowhere"):
        find_checkpoints(source("nowhere/*.pt"), tmp_path)
    assert find_checkpoints(source("nowhere/*.pt", allow_empty=True), tmp_path) == []


@pytest.mark.parametrize("suffix", ["csv", "json", "yaml"])
def test_a_manifest_tells_files_relative_to_itself_and_their_steps(tmp_path: Path, suffix: str):
    touch(tmp_path, "data/first.pt", "data/second.safetensors")
    entries = [{"path": "first.pt", "step": 70}, {"path": "second.safetensors", "step": 5}]
    text = json.dumps(entries)
    if suffix == "csv":
        text = "\ufeffpath,step\n" + "\n".join(f"{item['path']},{item['step']}" for item in entries)
    (tmp_path / "data" / f"all.{suffix}").write_text(text)
    run = source(f"data/all.{suffix}")
    assert settled(run, tmp_path) == [(5, "second.safetensors"), (70, "first.pt")]


@pytest.mark.parametrize(
    "text",
    [
        '[{"path": "a.pt"}]', '[{"path": "a.pt", "step": 1.5}]', '[{"path": "a.pt", "step": true}]', "{",
        '[{"path": "a.pt", "step": -1}]', "[" * 100_000, '[{"path": "gone", "step": 1}]',
    ],
)  # fmt: skip
def test_a_manifest_that_is_wrong_is_named(tmp_path: Path, text: str):
    touch(tmp_path, "a.pt")
    (tmp_path / "all.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"all\.json"):
        find_checkpoints(source("all.json"), tmp_path)


def test_the_step_comes_from_regex_then_a_key_inside_then_the_name(tmp_path: Path):
    touch(tmp_path, "v7-step-30.pt")
    path = tmp_path / "v7-step-30.pt"
    inside = {path: {"inner_step": 12}}
    assert settled(source("*.pt", step=r"v(\d+)"), tmp_path, inside) == [(7, path.name)]
    assert settled(source("*.pt", step=r"w(\d+)"), tmp_path, inside) == [(12, path.name)]
    assert settled(source("*.pt"), tmp_path, inside) == [(12, path.name)]
    assert settled(source("*.pt"), tmp_path) == [(30, path.name)]
    (tmp_path / "all.json").write_text(json.dumps([{"path": path.name, "step": 99}]))
    assert settled(source("all.json", step=r"v(\d+)"), tmp_path, inside) == [(99, path.name)]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-0100.pt", 100), ("epoch=3-step=1200.ckpt", 1200), ("step=7-epoch=2.ckpt", 7), ("iter_000500.pth", 500),
        ("iteration-8.pt", 8), ("ckpt.12.pt", 12), ("epoch4.pt", 4), ("Step9.pt", 9), ("step1000000000000000.pt", None),
    ],
)  # fmt: skip
def test_digits_after_a_known_word_tell_the_step(tmp_path: Path, name: str, step: int | None):
    touch(tmp_path, name, "other.pt")
    listing = settle(source("*.pt*"), found := find_checkpoints(source("*"), tmp_path), {})
    assert len(found) == 2
    assert [item.step for item in listing.checkpoints] == ([step] if step is not None else [])
    assert "other.pt" in names(listing.stepless)


def test_a_file_without_a_step_is_step_0_alone_and_stepless_beside_others(tmp_path: Path):
    touch(tmp_path, "final.pt")
    assert settled(source("*.pt"), tmp_path) == [(0, "final.pt")]
    touch(tmp_path, "step-1.pt")
    listing = settle(source("*.pt"), find_checkpoints(source("*.pt"), tmp_path), {})
    assert names(listing.stepless) == ["final.pt"]
    assert names(listing.checkpoints) == ["step-1.pt"]


def test_two_files_of_one_step_are_duplicates_or_an_error(tmp_path: Path):
    touch(tmp_path, "a/step-1.pt", "b/step-1.pt")
    run = source("*/step-1.pt")
    files = find_checkpoints(run, tmp_path)
    same = {item.path: {"weights_digest": "equal"} for item in files}
    listing = settle(run, files, same)
    assert len(listing.checkpoints) == 1
    assert [item.path.parent.name for item in listing.duplicates] == ["b"]
    other = {item.path: {"weights_digest": str(item.path)} for item in files}
    with pytest.raises(ConfigurationError, match=r"a/step-1\.pt and .*b/step-1\.pt both claim step 1"):
        settle(run, files, other)
    with pytest.raises(ConfigurationError, match="both claim step 1"):
        settle(run, files, {})


def test_one_glob_is_split_into_runs(tmp_path: Path):
    touch(tmp_path, *(f"runs/seed{seed}/step-{step}.pt" for seed in (2, 10) for step in (0, 5)))
    run = source("runs/*/step-*.pt", run=r"seed(\d+)")
    parts = split_runs(run, tmp_path)
    assert [part.name for part, _ in parts] == ["run-2", "run-10"]
    for part, files in parts:
        assert part.run is None
        assert [item.step for item in settle(part, files, {}).checkpoints] == [0, 5]
        assert {item.run for item in files} == {part.name}
        assert {item.path.parent.name for item in files} == {f"seed{part.name[4:]}"}
    assert split_runs(source("runs/seed2/*"), tmp_path)[0][0].name == "run"


def test_a_file_that_belongs_to_no_run_and_a_run_with_a_bad_name_are_errors(tmp_path: Path):
    touch(tmp_path, "runs/seed1/step-0.pt", "runs/best/step-0.pt", "odd/seed é/step-0.pt")
    with pytest.raises(ConfigurationError, match=r"finds nothing in runs/best/step-0\.pt"):
        split_runs(source("runs/*/*.pt", run=r"seed(\d+)"), tmp_path)
    with pytest.raises(ConfigurationError, match="is not allowed"):
        split_runs(source("odd/*/*.pt", run="odd/([^/]+)/"), tmp_path)


@pytest.mark.parametrize("key", ["step", "run"])
@pytest.mark.parametrize("pattern", ["(", r"\d+", r"(\d)(\d)"])
def test_a_regex_without_exactly_one_group_is_refused(key: str, pattern: str):
    with pytest.raises(ValidationError, match=r"regular expression|groups"):
        source("x", **{key: pattern})


def test_a_regex_whose_group_holds_no_digits_is_refused(tmp_path: Path):
    touch(tmp_path, "step-one.pt")
    with pytest.raises(ConfigurationError, match="expected digits"):
        find_checkpoints(source("*.pt", step="step-([a-z]+)"), tmp_path)


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        ([0, 10, 20, 30, 40], []),
        ([0, 10, 20, 40, 50], [30]),
        ([0, 1, 2, 4, 8, 16, 32, 64, 128], []),
        ([0, 1, 2, 4, 8, 100, 200, 300, 500, 600, 700], [400]),
        ([0, 10, 20, 25, 30, 50, 60], [40]),
        ([0, 100], []),
        ([], []),
        ([0, 10, 20, 30, 1000, 1010], []),
    ],
)  # fmt: skip
def test_gaps_are_told_in_regular_series_only(steps: list[int], missing: list[int]):
    assert missing_steps(steps) == missing


def test_gaps_are_counted_before_the_selection(tmp_path: Path):
    touch(tmp_path, *(f"step-{step}.pt" for step in (0, 10, 20, 30, 50, 60)))
    run = source("*.pt", select={"last": 2})
    listing = settle(run, find_checkpoints(run, tmp_path), {})
    assert listing.missing_steps == [40]
    assert [item.step for item in listing.checkpoints] == [50, 60]
    assert [item.step for item in listing.unselected] == [0, 10, 20, 30]


def test_a_sharded_checkpoint_is_one_checkpoint_known_by_its_folder(tmp_path: Path):
    folder = tmp_path / "runs" / "checkpoint-50"
    touch(folder, "model-1.safetensors", "model-2.safetensors", "optimizer.pt")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for pattern in ("runs", "runs/*", "runs/**/*", "runs/checkpoint-50", "runs/*/*.index.json"):
        (item,) = find_checkpoints(source(pattern), tmp_path)
        assert (item.kind, item.path) == ("safetensors_sharded", folder)
        assert [part.name for part in item.files[1:]] == ["model-1.safetensors", "model-2.safetensors"]
    assert settled(source("runs"), tmp_path) == [(50, "checkpoint-50")]
    touch(folder, "step-1.pt")
    with pytest.raises(ConfigurationError, match="a folder of its own"):
        find_checkpoints(source("runs/*/*"), tmp_path)


def test_a_folder_with_one_file_of_weights_beside_training_states_is_one_checkpoint(tmp_path: Path):
    touch(tmp_path, *(f"out/checkpoint-{n}/{name}" for n in (5, 10) for name in ("model.safetensors", "optimizer.pt", "rng_state.pth")))  # fmt: skip
    for pattern in ("out", "out/*", "out/**/*"):
        assert settled(source(pattern), tmp_path) == [(5, "checkpoint-5"), (10, "checkpoint-10")]
    touch(tmp_path, "flat/model.safetensors", "flat/step-1.safetensors", "flat/step-2.safetensors")
    assert len(find_checkpoints(source("flat"), tmp_path)) == 3


def test_files_without_an_ending_are_known_by_their_first_bytes(tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "step-1")
    torch.save({"w": torch.ones(1)}, tmp_path / "step-2")
    torch.save({"w": torch.ones(1)}, tmp_path / "step-3", _use_new_zipfile_serialization=False)
    (tmp_path / "step-4").write_text("a log")
    os.mkfifo(tmp_path / "step-5")
    found = find_checkpoints(source("step-*"), tmp_path)
    assert [(item.path.name, item.kind) for item in found] == [
        ("step-1", "safetensors"), ("step-2", "torch"), ("step-3", "torch"),
    ]  # fmt: skip
