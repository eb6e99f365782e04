"""Files that are programs with their weights: TorchScript archives and exported programs."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratascope.errors import CheckpointError
from stratascope.tasks.intake.load import NetworkTraits, first_line

if TYPE_CHECKING:
    from torch import nn


def archive_kind(path: Path) -> str:
    """`torchscript`, `exported`, or `weights` for everything else, by the names inside the archive."""
    if not zipfile.is_zipfile(path):
        return "weights"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inner = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if "serialized_exported_program.json" in inner | set(names) or any(
        name.startswith("models/") and name.endswith(".json") for name in inner
    ):
        return "exported"
    return "weights"


def load_program(path: Path, kind: str) -> tuple[nn.Module, NetworkTraits]:
    """The network in `path` and what a capture must know of it. Runs the program's loader: trusted files only.

    Raises CheckpointError where it cannot be loaded.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "torchscript":
                scripted = torch.jit.load(str(path), map_location="cpu")
                note = (
                    "A TorchScript archive: no hooks can be set inside it, so its outputs and weights are audited "
                    "and its layers are not; the model factory is not used."
                )
                return scripted.eval(), NetworkTraits("torchscript", hookable=False, note=note)
            program = torch.export.load(path)
            module = torch.export.unflatten(program)
    except Exception as error:
        raise CheckpointError(
            f"{path.name} is no whole {kind} program: {type(error).__name__}: {first_line(error)}."
        ) from None
    size = _fixed_batch_size(program)
    batches = f"takes batches of exactly {size}" if size is not None else "takes batches of any size"
    note = f"An exported program, unflattened: it {batches}; the model factory is not used."
    return module, NetworkTraits("exported", fixed_batch_size=size, note=note)


def _fixed_batch_size(program: Any) -> int | None:
    """The length of the first input's first axis, where the export fixed it."""
    names = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta.get("val")
            if getattr(value, "ndim", 0):
                length = value.shape[0]
                return length if isinstance(length, int) else None
    return None
