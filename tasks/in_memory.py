"""One analysis on arrays or networks that are in memory: the same code that audits run, in a store that is thrown away."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from stratascope.errors import AnalysisError, ConfigurationError
from stratascope.storage.archive import join_path
from stratascope.storage.checkpoint_files import CheckpointFile, RunSource
from stratascope.storage.names import decode_path_part, step_directory
from stratascope.storage.probes import ProbeSpec
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import Analysis, CaptureRequest, Figure, named
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.contexts import Subject, View
from stratascope.tasks.units import Assignment, compute_unit, facts_identity, keep_probe, read_file

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from torch import nn

_RUN, _PROBE = "run", "probe"
_HELD: dict[str, Any] = {}
"""What the factories of this module give out, by key, as long as `analyse` runs."""


@dataclass(frozen=True)
class InMemoryResult:
    """What an analysis found: rows as in the ledger, arrays by name, and figures with their words."""

    rows: pd.DataFrame
    arrays: dict[str, xr.DataArray]
    """By path below the analysis; those of several checkpoints begin with ``step-<n>/``."""
    figures: list[Figure]


def analyse(
    name: str,
    *,
    inputs: Any = None,
    targets: np.ndarray | None = None,
    outputs: np.ndarray | None = None,
    activations: Mapping[str, np.ndarray] | None = None,
    networks: nn.Module | Mapping[int, nn.Module] | None = None,
    steps: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
    role: str = "test",
    task: str = "classification",
    loss: str = "cross_entropy",
    layers: Sequence[str] | None = None,
    **options: Any,
) -> InMemoryResult:
    """Run the analysis `name` on what is in memory, and return its findings and figures.

    Either `networks` — a module, or modules by training step — with `inputs` (sample, …); or arrays that such a
    network gave: `activations` by layer and `outputs`, each (sample, …), or (step, sample, …) where `steps` names the
    steps. `targets` (sample,) go with both. `options` are the analysis's own; `layers` are patterns of what is captured
    (networks) or mapped (arrays). Nothing is left on the disk, and the networks are not changed.

    Raises ConfigurationError for arguments that do not fit together, AnalysisError where the analysis fails.
    """
    analysis = named(name)
    if analysis.scope == "cohort":
        raise ConfigurationError(f"analysis {name!r} compares runs: audit them, and read the store.")
    if (networks is None) == (activations is None and outputs is None):
        raise ConfigurationError("give either `networks` with `inputs`, or `activations` and `outputs`.")
    if networks is not None:
        if inputs is None:
            raise ConfigurationError("`networks` need `inputs`: what they are run on.")
        made = dict(networks) if isinstance(networks, Mapping) else {0: networks}
    else:
        if analysis.needs & {"network", "gradients", "initial_weights", "trace"}:
            raise ConfigurationError(f"analysis {name!r} runs the network: give `networks` and `inputs`.")
        made, samples = _replayed(activations or {}, outputs, steps)
        inputs = np.arange(samples)[:, None]
        if "layers" in analysis.options.model_fields and "layers" not in options:
            options["layers"] = tuple(layers) if layers is not None else tuple(activations or {})
    probe = {"inputs": inputs, "targets": targets, "class_names": list(class_names)}
    with tempfile.TemporaryDirectory(prefix="stratascope-in-memory-") as folder, _held(probe, made) as key:
        chosen = analysis.options.model_validate(options).model_dump(mode="json")
        audit = _LittleAudit(Path(folder), key, task, loss, role)
        audit.read(made)
        audit.capture(analysis, chosen, layers if networks is not None else None)
        return audit.result(analysis, chosen, has_weights=networks is not None)


def probe(key: str) -> dict[str, Any]:
    """The factory of the probe that is held under `key`."""
    return {name: value for name, value in _HELD[key]["probe"].items() if value is not None}


def network(key: str) -> nn.Module:
    """The factory of a network as it is held under `key`; each has its own weights loaded afterwards."""
    made: nn.Module = copy.deepcopy(_HELD[key]["network"])
    return made


@contextmanager
def _held(probe: dict[str, Any], networks: Mapping[int, nn.Module]) -> Iterator[str]:
    key = uuid4().hex
    _HELD[key] = {"probe": probe, "network": next(iter(networks.values()))}
    try:
        yield key
    finally:
        del _HELD[key]


class _LittleAudit:
    """Read, capture, analyse and draw as workers do, one after the other in this process."""

    def __init__(self, folder: Path, key: str, task: str, loss: str, role: str) -> None:
        self.folder = folder
        self.store = Store.open(folder / "store", create=True)
        source = {
            "name": _RUN,
            "checkpoints": "*",
            "model": {"factory": f"{__name__}:network", "args": {"key": key}},
        }
        self.source = RunSource.model_validate(source)
        self.subject = Subject(self.store.location, _RUN, (_PROBE,), self.source, str(folder), task, loss)
        spec = ProbeSpec.model_validate({"factory": f"{__name__}:probe", "args": {"key": key}, "role": role})
        keep_probe(self.store.location, _PROBE, spec, str(folder), key)
        self.files: list[CheckpointFile] = []
        self.digests: list[str] = []

    def read(self, networks: Mapping[int, nn.Module]) -> None:
        from safetensors.torch import save_file

        for step, module in sorted(networks.items()):
            path = self.folder / f"step-{step}.safetensors"
            save_file(
                {name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}, path
            )
            file = CheckpointFile(_RUN, step, path, "safetensors", (path,))
            facts = read_file(
                self.store.location, file, self.source, str(self.folder), facts_identity(self.source)
            )
            if facts["status"] != "ok":
                raise AnalysisError(f"the network of step {step} cannot be used: {facts['reason']}")
            self.files.append(file)
            self.digests.append(facts["weights_digest"])

    def capture(self, analysis: Analysis, options: dict[str, Any], layers: Sequence[str] | None) -> None:
        wanted = analysis.request(analysis.options.model_validate(options))
        # An analysis of stored layers needs their outputs too, or the forward pass would end before them.
        requests = (wanted, CaptureRequest(("@output",), ("full",)))
        for file, digest in zip(self.files, self.digests, strict=True):
            assert file.step is not None
            self._do(
                Assignment(
                    Unit("checkpoint", _RUN, file.step, "capture"), "capture", {"weights": digest}, (self.subject,),
                    (file,), capture=CaptureSpec(), layers=None if layers is None else tuple(layers), requests=requests,
                )
            )  # fmt: skip

    def result(self, analysis: Analysis, options: dict[str, Any], has_weights: bool) -> InMemoryResult:
        for below in analysis.builds_on:
            for file in self.files:
                unit = Unit("checkpoint", _RUN, file.step or 0, below)
                self._do(Assignment(unit, below, {}, (self.subject,), (file,)))
        places = (
            [(Unit("series", _RUN, -1, analysis.name), tuple(self.files))]
            if analysis.scope == "series"
            else [(Unit("checkpoint", _RUN, file.step or 0, analysis.name), (file,)) for file in self.files]
        )
        for unit, files in places:
            self._do(Assignment(unit, analysis.name, {}, (self.subject,), files, options=options))
        units = [unit for unit, _ in places]
        rows = self.store.rows(units)
        if not has_weights:  # what stands in for a network has none of its own
            rows = rows[~rows["metric"].str.startswith("weight_")].reset_index(drop=True)
        steps = tuple(file.step or 0 for file in self.files)
        view = View(self.store, _RUN, analysis.name, analysis.scope, steps, rows)
        figures = list(analysis.draw(view, analysis.options.model_validate(options))) if len(rows) else []
        return InMemoryResult(rows, self._arrays(units), figures)

    def _do(self, assignment: Assignment) -> None:
        outcome = compute_unit(assignment)
        if outcome.status != "computed":
            raise AnalysisError(outcome.reason or f"{assignment.unit} ended as {outcome.status}.")

    def _arrays(self, units: Sequence[Unit]) -> dict[str, xr.DataArray]:
        import xarray as xr

        found = {}
        for unit in units:
            if unit.scope == "series":
                root, start = join_path("series", _RUN, unit.analysis), ""
            else:
                root = join_path("runs", _RUN, step_directory(unit.step), unit.analysis)
                start = f"step-{unit.step}/" if len(units) > 1 else ""
            for path in self.store.list_arrays(root):
                name = "/".join(decode_path_part(part) for part in path[len(root) + 1 :].split("/"))
                dims, _, _, attributes = self.store.array_info(path)
                found[start + name] = xr.DataArray(self.store.array(path), dims=dims, attrs=attributes)
        return found


# -- arrays in place of a network ----------------------------------------------------------------------------


def _replayed(
    activations: Mapping[str, np.ndarray], outputs: np.ndarray | None, steps: Sequence[int] | None
) -> tuple[dict[int, nn.Module], int]:
    """Networks by step that give back what they are told, asked by the sample's number; and how many samples there are."""
    from stratascope.tasks.models.replay import OUTPUT, Replay

    arrays = {name: np.asarray(values) for name, values in activations.items()}
    if outputs is not None:
        arrays[OUTPUT] = np.asarray(outputs)
    first = 0 if steps is None else 1
    sizes = {name: values.shape[: first + 1] for name, values in arrays.items()}
    wanted = next(iter(sizes.values()))
    for name, size in sizes.items():
        if size != wanted or len(size) < first + 1 or (steps is not None and size[0] != len(steps)):
            told = "(sample, …)" if steps is None else f"({len(steps)} steps, sample, …)"
            raise ConfigurationError(
                f"array {name!r} has the shape {arrays[name].shape}; expected {told}, alike for all."
            )
    if steps is None:
        return {0: Replay(arrays)}, wanted[0]
    return {
        int(step): Replay({name: values[place] for name, values in arrays.items()})
        for place, step in enumerate(steps)
    }, wanted[1]
