"""A real store in little: probes and checkpoints are kept, captured and analysed as a worker does it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stratascope.storage.checkpoint_files import CheckpointFile, RunSource
from stratascope.storage.probes import ProbeSpec
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import named
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.contexts import Subject, View
from stratascope.tasks.units import Assignment, compute_unit, facts_identity, keep_probe, read_file

FACTORY = """
import numpy as np
def probe(path, names=()):
    found = dict(np.load(path))
    masks = {"mask": found.pop("mask")} if "mask" in found else {}
    scaling = found.pop("denormalize", None)
    shown = {} if scaling is None else {"denormalize": {"mean": scaling[0], "std": scaling[1], "scale": 255.0}}
    return {**found, **masks, **shown, "class_names": list(names)}
"""


class LittleAudit:
    """One run over given checkpoints and probes; `analyse` returns the rows of one analysis."""

    def __init__(self, folder: Path, factory: str, args: Mapping, *, task="classification", loss="cross_entropy"):
        self.folder = folder
        self.store = Store.open(folder / "store", create=True)
        model = {"factory": factory, "args": dict(args)}
        self.source = RunSource(name="run", checkpoints="*.safetensors", model=model)
        self.task, self.loss = task, loss
        self.probes: list[str] = []
        self.files: list[CheckpointFile] = []
        self.digests: dict[int, str] = {}
        self.module = f"probe_factory_{folder.name.replace('-', '_')}"
        (folder / f"{self.module}.py").write_text(FACTORY)

    def probe(self, name: str, role="test", class_names=(), **arrays) -> None:
        """Keep a probe; `denormalize` (mean, std) says how pixels were normalised."""
        path = self.folder / f"{name}.npz"
        np.savez(path, **arrays)
        args = {"path": str(path), "names": list(class_names)}
        spec = ProbeSpec(factory=f"{self.module}:probe", args=args, role=role)
        keep_probe(str(self.store.path), name, spec, str(self.folder), name)
        self.probes.append(name)

    def checkpoint(self, step: int, network: torch.nn.Module) -> None:
        path = self.folder / f"step-{step}.safetensors"
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
        file = CheckpointFile("run", step, path, "safetensors", (path,))
        read = read_file(str(self.store.path), file, self.source, str(self.folder), facts_identity(self.source))
        assert read["status"] == "ok", read
        self.files.append(file)
        self.digests[step] = read["weights_digest"]

    @property
    def subject(self) -> Subject:
        return Subject(
            str(self.store.path), "run", tuple(self.probes), self.source, str(self.folder), self.task, self.loss
        )

    def capture(self, *analyses: str, layers=None, **options) -> None:
        wanted = analyses or ("outputs", "embedding")
        requests = tuple(named(name).request(named(name).options()) for name in wanted)
        for file in self.files:
            unit = Unit("checkpoint", "run", file.step, "capture")
            parts = {"weights": self.digests[file.step]}
            spec = CaptureSpec(**options)
            self._do(
                Assignment(
                    unit,
                    "capture",
                    parts,
                    (self.subject,),
                    (file,),
                    capture=spec,
                    layers=layers,
                    requests=requests,
                )
            )

    def analyse(self, name: str, **options):
        """The ledger's rows of analysis `name`, computed anew, after those that it builds on."""
        for below in named(name).builds_on:
            self.analyse(below)
        series = named(name).scope == "series"
        units = [Unit("series", "run", -1, name)] if series else [Unit("checkpoint", "run", file.step, name) for file in self.files]  # fmt: skip
        for number, unit in enumerate(units):
            files = tuple(self.files) if series else (self.files[number],)
            identity = f"{self.task}{self.loss}{options}{len(self.files) if series else 0}"
            if not self.store.is_current(unit, identity):
                self._do(Assignment(unit, identity, {}, (self.subject,), files, options=options))
        return self.store.rows(units)

    def view(self, name: str) -> View:
        steps = tuple(sorted(file.step for file in self.files))
        units = [unit for unit in self.store.manifests() if unit.analysis == name]
        return View(self.store, "run", name, named(name).scope, steps, self.store.rows(units))

    def draw(self, name: str):
        return list(named(name).draw(self.view(name), named(name).options()))

    def _do(self, assignment: Assignment) -> None:
        outcome = compute_unit(assignment)
        if outcome.status != "computed":
            raise AssertionError(f"{outcome.status}: {outcome.reason}")


@pytest.fixture
def little_audit(tmp_path):
    """Makes a `LittleAudit` in a folder of its own."""
    made = []

    def make(factory="stratascope.tasks.models:mlp", args=None, **options) -> LittleAudit:
        made.append(LittleAudit(tmp_path, factory, args or {}, **options))
        return made[-1]

    yield make
    for audit in made:
        sys.modules.pop(audit.module, None)


@pytest.fixture(scope="session")
def lasting_audit(tmp_path_factory):
    """Makes a `LittleAudit` that many tests read."""

    def make(factory: str, args: Mapping, **options) -> LittleAudit:
        return LittleAudit(tmp_path_factory.mktemp("lasting"), factory, args, **options)

    return make


@pytest.fixture(scope="session")
def trained_audit(tmp_path_factory) -> LittleAudit:
    """A perceptron at four steps of its training on three blobs, audited on two probes by every analysis."""
    from stratascope.tasks.models import mlp

    audit = LittleAudit(tmp_path_factory.mktemp("trained"), "stratascope.tasks.models:mlp", {"inputs": 12, "widths": [16, 8], "outputs": 3})  # fmt: skip
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 12)) * 1.2
    for name, role in (("train", "train"), ("test", "test")):
        targets = np.arange(120) % 3
        inputs = (centres[targets] + generator.normal(size=(120, 12))).astype(np.float32)
        audit.probe(name, role, ("ant", "bee", "a;b=c%"), inputs=inputs, targets=targets)
        if role == "train":
            examples, labels = torch.from_numpy(inputs), torch.from_numpy(targets)
    torch.manual_seed(0)
    network = mlp(inputs=12, widths=[16, 8], outputs=3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step in range(31):
        if step in (0, 3, 10, 30):
            audit.checkpoint(step, network)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(examples), labels).backward()
        optimizer.step()
    audit.capture()
    for name in ("outputs", "statistics", "gradients", "embedding"):
        audit.analyse(name)
    return audit
