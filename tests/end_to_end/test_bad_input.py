"""Bad input: one clear sentence, the documented exit code, and what was stored stays good."""

from __future__ import annotations

import json
import pickle
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from tests.conftest import ONE_WORKER, Ran, Workplace, stratascope


def said(done: Ran, code: int, *words: str) -> None:
    """The exit code, the words, and no traceback."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err + done.out, done.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prob": {"dataset": "digits"}}, ["there is no key 'prob'", "Did you mean 'probe"]),
        ({"capture": {"kep": ["full"]}}, ["audit.yaml: capture.kep", "Did you mean 'keep'"]),
        ({"capture": {"keep": ["fulll"]}}, ["capture.keep"]),
        ({"loss": "cross_entropi"}, ["there is no loss 'cross_entropi'", "cross_entropy"]),
        ({"analyses": {"outputz": {}}}, ["there is no analysis 'outputz'", "Did you mean 'outputs'"]),
        (
            {"analyses": {"embedding": {"method": ["pca"]}}},
            ["audit.yaml: analyses.embedding", "Did you mean 'methods'"],
        ),
        ({"checks": [{"suite": "soundnes"}]}, ["there is no suite 'soundnes'"]),
        ({"probe": {"dataset": "digitz"}}, ["there is no data set 'digitz'", "Did you mean 'digits'"]),
        ({"runs": []}, ["runs"]),
    ],
)
def test_a_wrong_configuration_is_refused_before_any_work(workplace: Workplace, changes, words):
    workplace.configure(**changes)
    said(workplace.audit(), 2, *words)


@pytest.mark.parametrize("words", [["audit"], ["audit", "--nonsense"], ["nonsense"], ["train"], []])
def test_wrong_words_are_exit_code_2(words):
    done = stratascope(*words)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "should not happen" not in done.err


def test_a_configuration_that_is_missing_or_no_yaml(tmp_path):
    said(stratascope("audit", tmp_path / "absent.yaml"), 2, "absent.yaml cannot be read")
    (tmp_path / "bad.yaml").write_text("runs: [")
    said(stratascope("audit", tmp_path / "bad.yaml"), 2, "is no YAML")


def test_a_glob_that_matches_nothing_and_two_files_of_one_step(workplace: Workplace):
    workplace.configure(runs=[{"name": "a", "checkpoints": "nowhere/*.pt", "model": {"factory": "x:y"}}])
    said(workplace.audit(), 2, "no checkpoint matches", "allow_empty")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": ["fc1", "convv*"]}, ["'convv*' matches no layer", "It has flatten, fc1"]),
        ({"probe": {"dataset": "digits", "limit": 0}}, ["probe 'probe' is empty"]),
        (
            {
                "runs": [
                    {
                        "name": "small",
                        "checkpoints": "runs/*",
                        "model": {"factory": "stratascope.tasks.models:lenet"},
                    }
                ]
            },
            ["does not fit"],
        ),
    ],
    ids=["layers", "probe", "architecture"],
)
def test_what_only_the_network_can_tell(workplace: Workplace, changes, words):
    workplace.configure(cluster=ONE_WORKER, **changes)
    done = workplace.audit()
    if "does not fit" in words:
        # A network that no file fits: every file is quarantined, and the exit code says so.
        said(done, 3, *words)
        assert {item["status"] for item in done.json["checkpoints"]} == {"quarantined"}
    else:
        said(done, 2, *words)


def test_inputs_that_do_not_fit_the_network(workplace: Workplace):
    (workplace.folder / "mine.py").write_text(
        "import numpy as np\n\ndef probe():\n    return np.zeros((5, 1, 9, 9), 'float32'), np.zeros(5, int)\n"
    )
    workplace.configure(probe={"factory": "mine:probe"}, cluster=ONE_WORKER)
    said(workplace.audit(), 2, "cannot be run on inputs of shape (2, 1, 9, 9)")


class Hostile:
    """A pickle that would leave a mark if it ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (subprocess.run, (["touch", str(self.mark)],))


def test_bad_files_are_quarantined_with_their_reasons_and_the_others_go_on(workplace: Workplace):
    runs, mark = workplace.folder / "runs", workplace.folder / "mark"
    good = load_file(runs / "step-0.safetensors")
    whole = (runs / "step-1.safetensors").read_bytes()
    (runs / "step-10.safetensors").write_bytes(whole[: len(whole) // 2])
    (runs / "step-11.safetensors").write_bytes(b"")
    save_file({key: value for key, value in good.items() if key != "fc2.weight"}, runs / "step-12.safetensors")
    save_file(good | {"fc1.weight": torch.zeros(3, 64)}, runs / "step-13.safetensors")
    torch.save({"state_dict": good, "more": Hostile(mark)}, runs / "step-14.pt")
    (runs / "step-15.pt").write_bytes(pickle.dumps(Hostile(mark)))
    (runs / "step-16.safetensors").mkdir()
    model = {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "widths": [12]}}
    workplace.configure(runs=[{"name": "small", "checkpoints": "runs/step-*", "model": model}])
    done = workplace.audit()
    said(done, 3)
    by_name = {Path(item["file"]).name: item for item in done.json["checkpoints"]}
    assert {name for name, item in by_name.items() if item["status"] == "computed"} == {
        f"step-{step}.safetensors" for step in range(4)
    }
    for name, word in {
        "step-10.safetensors": "step-10", "step-11.safetensors": "empty", "step-12.safetensors": "'fc2.weight'",
        "step-13.safetensors": "(3, 64)", "step-14.pt": "run code", "step-15.pt": "step-15",
    }.items():  # fmt: skip
        assert by_name[name]["status"] == "quarantined", name
        assert word in by_name[name]["reason"], by_name[name]["reason"]
    assert not mark.exists()
    store = Store.open(workplace.store)
    assert verify(store) == []
    rows = store.rows()
    assert rows[rows["metric"] == "quarantined_count"]["value"].max() >= 6
    overview = (workplace.store / "report" / "index.html").read_text()
    assert "step-14.pt" in overview
    # Known quarantines are listed, and are no failure of the next run.
    again = workplace.audit()
    said(again, 0)
    assert {Path(item["file"]).name for item in again.json["checkpoints"] if item["status"] == "quarantined"} >= {
        "step-10.safetensors", "step-14.pt",
    }  # fmt: skip
    # A quarantined file is tried again when its bytes change.
    (runs / "step-10.safetensors").write_bytes(whole)
    mended = workplace.audit()
    assert {item["step"]: item["status"] for item in mended.json["checkpoints"]}[10] in ("computed", "duplicate")


def test_weights_that_are_not_finite_are_a_finding_that_fails(workplace: Workplace):
    path = workplace.folder / "runs" / "step-2.safetensors"
    tensors = load_file(path)
    tensors["fc1.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    workplace.configure(analyses={"outputs": {}}, cluster=ONE_WORKER)
    done = workplace.audit()
    told = done.json
    assert done.code in (1, 3), done.err
    assert {item["step"]: item["status"] for item in told["checkpoints"]}[2] == "computed"
    raised = {(item["name"], item["step"]) for item in told["checks"] if item["outcome"] == "fail"}
    assert ("finite", 2) in raised
    assert not any(step != 2 for _, step in raised)


def test_a_store_of_a_newer_schema_is_left_alone(workplace: Workplace):
    Store.open(workplace.store, create=True)
    path = workplace.store / "archive.zarr" / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["schema_version"] = 99
    path.write_text(json.dumps(content))
    for done in (
        workplace.audit(),
        stratascope("metrics", workplace.store),
        stratascope("verify", workplace.store),
    ):
        said(done, 2, "schema 99", "update Stratascope")


def test_a_store_that_is_not_there(tmp_path):
    for command in ("metrics", "history", "report", "verify"):
        said(stratascope(command, tmp_path / "absent"), 2, "there is no store at")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_no_room_on_the_disk_costs_nothing_that_is_stored(workplace: Workplace, small_disk: Path):
    workplace.configure(store=str(small_disk / "store"), analyses={"outputs": {}})
    first = stratascope("audit", workplace.config, "--json", "--set", "runs.0.select={last: 1}")
    stored = Store.open(small_disk / "store").manifests()
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 4096)
        except OSError:
            pass
    assert first.code in (0, 3)
    done = workplace.audit()
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    assert "No space left" in done.err + done.out or "room" in done.err + done.out
    filler.unlink()
    assert {unit: item.identity for unit, item in stored.items()}.items() <= {
        unit: item.identity for unit, item in Store.open(small_disk / "store").manifests().items()
    }.items()
    assert verify(Store.open(small_disk / "store")) == []
