"""A piece of work that raises, hangs or eats memory: it is given up by name, and the rest completes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from stratascope.errors import LimitError
from stratascope.storage.attempts import Attempt, forget_deaths
from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from stratascope.tasks.limits import Limits, limited
from tests.conftest import Workplace

LOSSES = """
import ctypes

import torch


def treacherous(outputs, targets):
    kind = round(outputs.mean().item() / 1000)
    if kind == 1:
        raise ArithmeticError("the loss fell over")
    if kind == 2:
        ctypes.PyDLL(None).sleep(1000)  # inside a library, with the interpreter's lock held
    if kind == 3:
        held = []
        while True:
            held.append(torch.ones(4_000_000))
    return torch.nn.functional.cross_entropy(outputs, targets)
"""
MENDED = "import torch\n\n\ndef treacherous(outputs, targets):\n    return torch.nn.functional.cross_entropy(outputs, targets)\n"


@pytest.mark.slow
def test_work_that_raises_hangs_or_eats_memory_is_given_up_and_the_rest_completes(tmp_path):
    place = Workplace(tmp_path)
    (tmp_path / "losses.py").write_text(LOSSES)
    place.configure(loss="losses:treacherous", limits={"seconds": 12, "memory_gib": 2.5}, analyses={"outputs": {}})
    for step in range(5):
        path = place.checkpoint(step)
        tensors = load_file(path)
        last = [name for name in tensors if name.endswith("bias")][-1]
        save_file(tensors | {last: tensors[last] + 1000.0 * (step if step < 4 else 0)}, path)
    done = place.audit()
    assert done.code == 3, done.err
    failures = {text.split(":")[0]: text for text in done.json["failures"]}
    assert len(failures) == 3, failures
    told = "\n".join(failures.values())
    assert "the loss fell over" in told
    assert "did not end within 12 s (`limits.seconds`); it stood in treacherous, line 12 of losses.py" in told
    assert "more than the 2.5 GiB that it may (`limits.memory_gib`)" in told
    store = Store.open(place.store)
    stored = {unit.step for unit in store.manifests() if unit.analysis == "outputs"}
    assert stored == {0, 4}
    assert {unit.step for unit in store.manifests() if unit.analysis == "capture"} == set(range(5))
    assert verify(store) == []
    (tmp_path / "losses.py").write_text(MENDED)
    again = place.audit()
    assert {unit.step for unit in store.manifests() if unit.analysis == "outputs"} == set(range(5)), again.err
    assert not list((place.store / ".staging" / "attempts").iterdir())


def run(store: Store, script: str) -> int:
    code = (
        "from stratascope.storage.store import Store\nfrom stratascope.tasks.limits import Limits, limited\n"
        f"store = Store.open({str(store.path)!r})\n{script}"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def test_without_limits_nothing_is_noted(store):
    with limited(store, "work", None):
        assert not (store.path / ".staging" / "attempts").exists()


def test_work_that_comes_back_leaves_no_note_even_when_it_raises(store):
    with pytest.raises(ZeroDivisionError), limited(store, "work", Limits(seconds=100, memory_gib=100)):
        assert Attempt(store, "work").death() is None
        raise ZeroDivisionError
    assert not list((store.path / ".staging" / "attempts").iterdir())
    with limited(store, "work", Limits()):
        pass


def test_one_unexplained_death_is_forgiven_two_are_not_and_the_next_audit_starts_afresh(store):
    dies = "import os\nwith limited(store, 'work', Limits()):\n    os.kill(os.getpid(), 9)\n"
    assert run(store, dies) == -9
    assert run(store, dies) == -9
    with pytest.raises(LimitError, match="died 2 times"), limited(store, "work", Limits()):
        raise AssertionError("begun all the same")
    with limited(store, "other work", Limits()):
        pass
    forget_deaths(store)
    with limited(store, "work", Limits()):
        pass


def test_a_note_of_a_process_that_still_works_is_no_death(store):
    sleeper = subprocess.Popen(
        [sys.executable, "-c",
         "import time\nfrom stratascope.storage.store import Store\nfrom stratascope.tasks.limits import Limits, limited\n"
         f"store = Store.open({str(store.path)!r})\nwith limited(store, 'work', Limits()):\n    print('at work', flush=True)\n    time.sleep(100)\n"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert sleeper.stdout is not None
        assert sleeper.stdout.readline() == "at work\n"
        assert Attempt(store, "work").death() is None
        forget_deaths(store)
        assert list((store.path / ".staging" / "attempts").glob("*.json"))
    finally:
        sleeper.kill()
        sleeper.wait()
    assert Attempt(store, "work").death() is not None


def test_sweeping_a_store_leaves_the_notes_of_others_alone(store):
    Attempt(store, "work").begin()
    store.sweep()
    assert list((store.path / ".staging" / "attempts").glob("*.json"))
