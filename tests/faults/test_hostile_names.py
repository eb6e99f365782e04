"""Names that come from outside never leave the store, never become markup, and never stop an audit."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from stratascope.errors import ConfigurationError
from stratascope.flows.config import load_config
from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from tests.conftest import ONE_WORKER, Workplace, stratascope

MARK = "<img src=x onerror=alert(1)>"
LAYERS = [
    "../../../escaped",
    "/etc/passwd",
    "nul\0name",
    MARK,
    "x" * 300,
    "%2e%2e",
    "a b\tc",
    "\u202edesrever",
    ".hidden",
]
CLASSES = ["../up", MARK, "nul\0", "y" * 300]
MODULE = """
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

NAMES = json.loads(Path(__file__).with_name("names.json").read_text())


class Hostile(nn.Module):
    def __init__(self):
        super().__init__()
        for name in NAMES["layers"]:
            # Past `add_module`, which refuses dots.
            self._modules[name] = nn.Linear(4, 4)

    def forward(self, x):
        for name in NAMES["layers"]:
            x = torch.relu(self._modules[name](x)) + x
        return x


def probe():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(24, 4)).astype("float32")
    return {"inputs": inputs, "targets": np.arange(24) % 4, "class_names": NAMES["classes"]}
"""


class Tags(HTMLParser):
    """The elements and their handlers of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.slow
def test_hostile_layers_and_classes_are_encoded_in_paths_and_escaped_in_pages(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "hostile.py").write_text(MODULE)
    (inside / "names.json").write_text(json.dumps({"layers": LAYERS, "classes": CLASSES}))
    place = Workplace(inside)
    place.configure(
        probe={"factory": "hostile:probe"},
        runs=[{"name": "run", "checkpoints": "runs/*", "model": {"factory": "hostile:Hostile"}}],
        analyses={"outputs": {}, "statistics": {}},
        report={"title": MARK},
        cluster=ONE_WORKER,
    )
    monkeypatch.syspath_prepend(inside)
    from hostile import Hostile

    torch.manual_seed(0)
    (inside / "runs").mkdir()
    for step in range(2):
        weights = {name: value.clone().contiguous() for name, value in Hostile().state_dict().items()}
        save_file(weights, inside / "runs" / f"step-{step}.safetensors")
    done = place.audit()
    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside"]
    assert {path.name for path in inside.iterdir()} <= {
        "hostile.py",
        "names.json",
        "__pycache__",
        "audit.yaml",
        "runs",
        "store",
    }
    store = Store.open(place.store)
    assert verify(store) == []
    for path in place.store.rglob("*"):
        assert len(path.name.encode()) <= 255
        assert not any(ord(character) < 32 for character in path.name)
    assert set(store.rows()["layer"]) >= set(LAYERS)
    for page in (place.store / "report").rglob("*.html"):
        tags = Tags()
        tags.feed(page.read_text())
        for tag, attributes in tags.found:
            assert (tag, attributes.get("src")) != ("img", "x"), page
            assert "onerror" not in attributes, page
    for script in (place.store / "report" / "data").glob("*.js"):
        assert "<img" not in script.read_text()


@pytest.mark.parametrize("name", ["../up", "/absolute", "nul\0", "n" * 300, MARK, "", ".", "a/b", "con\ntrol"])
@pytest.mark.parametrize("key", ["run", "probe", "check"])
def test_hostile_names_in_the_configuration_are_refused_before_any_work(tmp_path: Path, name: str, key: str):
    place = Workplace(tmp_path / "inside")
    place.folder.mkdir()
    place.checkpoint(0)
    run = {
        "name": name if key == "run" else "small",
        "checkpoints": "runs/*",
        "model": {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "widths": [12]}},
    }
    changes = {"runs": [run]}
    if key == "probe":
        changes |= {"probe": None, "probes": {name: {"dataset": "digits", "limit": 20}}}
    if key == "check":
        changes["checks"] = [{"name": name, "metric": "loss", "max": 1.0}]
    place.configure(**changes)
    assert yaml.safe_load(place.config.read_text())
    with pytest.raises(ConfigurationError, match=re.escape("not allowed")):
        load_config(place.config)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_a_store_below_a_hostile_checkpoint_name_stays_where_it_is(tmp_path: Path):
    place = Workplace(tmp_path / "inside")
    place.folder.mkdir()
    place.configure(analyses={"outputs": {}})
    place.checkpoint(0, name="step-0.safetensors")
    (place.folder / "runs" / f"step-1-{MARK.replace('/', '')}.safetensors").write_bytes(b"")
    told = stratascope("audit", place.config, "--dry-run", "--json")
    assert told.code in (0, 2), told.err
    assert "Traceback" not in told.err
    assert not place.store.exists()
