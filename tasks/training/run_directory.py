"""What a run leaves on the disk, and how an interrupted one goes on.

    step-<9 digits>.safetensors   weights, with step, factory, arguments and config digest in the metadata
    trace.parquet                 stratascope.storage.traces.TRACE_COLUMNS
    samples.parquet               one row for each training sample, in the order that `batch_order` counts
    run.json                      configuration, digests, status, summary; the only file with times in it
    .resume.safetensors           only while the run is unfinished: weights, optimizer, trace so far

Every file is written whole or not at all. All but `run.json` have the same bytes however often a run was
interrupted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stratascope.errors import ConfigurationError
from stratascope.storage.manifests import write_atomically
from stratascope.storage.traces import INTEGER_COLUMNS, TRACE_COLUMNS

_SCHEMA = 1


@dataclass
class Progress:
    """Where an unfinished run stands: updates done, tensors of network and optimizer, trace so far."""

    step: int
    network: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    trace: list[dict[str, Any]]


class RunDirectory:
    """The directory of one run, which belongs to one configuration."""

    def __init__(self, path: Path, digest: str, facts: Mapping[str, Any]) -> None:
        self.path, self._digest, self._facts = path, digest, dict(facts)

    def open(self) -> dict[str, Any] | None:
        """Take the directory; returns the summary of the run if it is finished and whole.

        Raises ConfigurationError where the directory holds a run of another configuration.
        """
        known = self._known()
        if known is None and any(self.path.glob("step-*.safetensors")):
            raise ConfigurationError(
                f"{self.path} holds checkpoints but no run.json, so nobody can tell what they belong to: give the "
                "run another `directory`, or remove these."
            )
        if known is not None and known.get("config_digest") != self._digest:
            raise ConfigurationError(
                f"{self.path} holds a run of another configuration or other data: give this one another "
                "`directory`, or remove the old one."
            )
        if known is not None and known.get("status") == "complete":
            files = ["trace.parquet", "samples.parquet", *(step_file(step) for step in known.get("steps", ()))]
            if all((self.path / name).exists() for name in files):
                return dict(known["summary"])
        self._sweep()
        self._tell("running")
        return None

    def write_checkpoint(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write the weights after `step` updates."""
        write_atomically(self.path / step_file(step), checkpoint_bytes(tensors, metadata))

    def save_progress(self, progress: Progress) -> None:
        """Remember where the run stands, so that it can go on from there."""
        tensors = {f"network/{name}": value for name, value in progress.network.items()}
        tensors |= {f"optimizer/{name}": value for name, value in progress.optimizer.items()}
        for name in TRACE_COLUMNS:
            tensors[f"trace/{name}"] = _column(name, [row.get(name) for row in progress.trace])
        facts = {"step": str(progress.step), "config_digest": self._digest}
        write_atomically(self._resume, checkpoint_bytes(tensors, facts))

    def load_progress(self) -> Progress | None:
        """Where the run stood when it was interrupted; None where it has to start from the beginning."""
        try:
            data = self._resume.read_bytes()
            header, _ = _header(data)
            tensors = load(data)
        except (OSError, SafetensorError, ValueError):
            return None
        if header["__metadata__"].get("config_digest") != self._digest:
            return None
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}, "trace": {}}
        for name, value in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = value
        columns = {name: _values(name, groups["trace"][name]) for name in TRACE_COLUMNS}
        trace = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return Progress(int(header["__metadata__"]["step"]), groups["network"], groups["optimizer"], trace)

    def finish(
        self, status: str, summary: Mapping[str, Any], steps: list[int], seconds: float, processor_seconds: float
    ) -> None:
        """Mark the run as ended: `complete`, or `failed`, with what it left behind and how long it took."""
        self._tell(
            status, summary=dict(summary), steps=steps, seconds=seconds, processor_seconds=processor_seconds
        )
        self._resume.unlink(missing_ok=True)

    @property
    def _resume(self) -> Path:
        return self.path / ".resume.safetensors"

    def _known(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.path / "run.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self.path / 'run.json'} cannot be read ({error}): remove the run."
            ) from None

    def _tell(self, status: str, **more: Any) -> None:
        content = {"schema": _SCHEMA, "status": status, "config_digest": self._digest, **self._facts, **more}
        write_atomically(self.path / "run.json", json.dumps(content, indent=1, sort_keys=True).encode())

    def _sweep(self) -> None:
        """Remove what a killed process left half-written under a temporary name."""
        names = ("step-*.safetensors", ".resume.safetensors", "trace.parquet", "samples.parquet", "run.json")
        for name in names:
            for path in self.path.glob(f".{name}.*.*"):
                if not _is_alive(path.suffixes[-2][1:]):
                    path.unlink(missing_ok=True)


def _is_alive(process: str) -> bool:
    """Whether a process of this number runs here: it may be training the same run, to the same bytes."""
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def step_file(step: int) -> str:
    """The name of the checkpoint after `step` updates."""
    return f"step-{step:09d}.safetensors"


def checkpoint_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose bytes depend on its content alone.

    The library writes the metadata in the order of a hash map, which differs from file to file; here they are sorted.
    """
    plain = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    data = save(plain, metadata=dict(metadata))
    header, start = _header(data)
    header = {"__metadata__": dict(sorted(header.get("__metadata__", {}).items())), **_without_metadata(header)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    start = 8 + int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8:start])), start


def _without_metadata(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in header.items() if name != "__metadata__"}


def _column(name: str, values: list[Any]) -> Tensor:
    whole = name in INTEGER_COLUMNS
    blank = -1 if whole else math.nan
    return torch.tensor(
        [blank if value is None else value for value in values], dtype=torch.int64 if whole else torch.float64
    )


def _values(name: str, column: Tensor) -> list[Any]:
    missing = column == -1 if name in INTEGER_COLUMNS else column.isnan()
    return [None if blank else value for value, blank in zip(column.tolist(), missing.tolist(), strict=True)]
