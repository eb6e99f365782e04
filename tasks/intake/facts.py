"""What is known of a checkpoint once it has been read: digests, norms, what does not fit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stratascope.errors import CheckpointError, DeferredCheckpointError, nearest_names
from stratascope.storage.checkpoint_files import CheckpointFile, RunSource
from stratascope.storage.digests import identity_of
from stratascope.storage.file_memory import file_state
from stratascope.tasks.intake.load import fit_names, load_weights
from stratascope.tasks.models.network import build_network

SKETCH = 1024
"""Length of the count sketch; distances between checkpoints keep about 1/sqrt(SKETCH) relative error."""


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 (hex) over dtype, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sketch(tensors: dict[str, Tensor]) -> list[float]:
    """A count sketch of all floating-point weights: a linear map to SKETCH numbers that keeps distances.

    Charikar, Chen and Farach-Colton 2002. Weights that are not finite count as 0.
    """
    total = np.zeros(SKETCH)
    for name in sorted(tensors):
        tensor = tensors[name]
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        generator = np.random.default_rng(seed)
        values = np.nan_to_num(tensor.double().reshape(-1).numpy(), nan=0.0, posinf=0.0, neginf=0.0)
        places = generator.integers(0, SKETCH, len(values), dtype=np.int16)
        signs = generator.integers(0, 2, len(values), dtype=np.int8) * 2.0 - 1.0
        total += np.bincount(places, weights=signs * values, minlength=SKETCH)
    return [float(value) for value in total]


def checkpoint_facts(file: CheckpointFile, source: RunSource, folder: Path) -> dict[str, Any]:
    """Read `file` once and tell what planning and triage need, as JSON-like data.

    A file that cannot be read or does not fit its network gives ``status`` quarantined with its reason.
    Raises DeferredCheckpointError where the file changes while it is read.
    """
    try:
        before = file_state(file.path)
        loaded = load_weights(file, source)
        if file_state(file.path) != before:
            raise DeferredCheckpointError(f"{file.path.name} changed while it was read: left for the next audit.")
        network = build_network(source.model, folder)
        return _facts(file, source, loaded.tensors, network) | {"inner_step": loaded.inner_step}
    except DeferredCheckpointError:
        raise
    except CheckpointError as error:
        return {"status": "quarantined", "reason": str(error)}
    except OSError as error:
        return {"status": "quarantined", "reason": f"{file.path.name} cannot be read: {error.strerror}."}


def _facts(
    file: CheckpointFile, source: RunSource, found: dict[str, Tensor], network: nn.Module
) -> dict[str, Any]:
    expected = network.state_dict()
    tensors = fit_names(found, set(expected), source.state_dict.strip_prefix)
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    if missing:
        near = nearest_names(missing[0], unexpected, 1)
        raise CheckpointError(
            f"{file.path.name} does not fit {source.model.factory!r}: {len(missing)} of {len(expected)} tensors are "
            f"missing, first {missing[0]!r}{f'; it has {near[0]!r}' if near else ''}. Check the factory and its args."
        )
    for name in expected:
        if expected[name].shape != tensors[name].shape:
            raise CheckpointError(
                f"{file.path.name} does not fit {source.model.factory!r}: {name!r} has shape "
                f"{tuple(tensors[name].shape)}, the network expects {tuple(expected[name].shape)}."
            )
    described = {name: _describe(tensor) for name, tensor in sorted(tensors.items())}
    return {
        "status": "ok",
        "reason": "",
        "weights_digest": identity_of({name: facts["digest"] for name, facts in described.items()}),
        "parameter_count": sum(item.numel() for item in network.parameters()),
        "non_finite_count": sum(facts["non_finite"] for facts in described.values()),
        "missing_keys": missing,
        "unexpected_keys": unexpected,
        "tensors": described,
        "sketch": sketch({name: tensors[name] for name in expected}),
    }


def _describe(tensor: Tensor) -> dict[str, Any]:
    floating = tensor.is_floating_point()
    finite = torch.isfinite(tensor) if floating else torch.ones(1, dtype=torch.bool)
    kept = tensor.double()[finite] if floating else tensor.double()
    return {
        "digest": tensor_digest(tensor),
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "norm": float(kept.norm()),
        "non_finite": int((~finite).sum()) if floating else 0,
    }


def load_network(file: CheckpointFile, source: RunSource, folder: Path) -> nn.Module:
    """The network of `file` with its weights, in evaluation mode. Raises CheckpointError."""
    network = build_network(source.model, folder)
    tensors = fit_names(
        load_weights(file, source).tensors, set(network.state_dict()), source.state_dict.strip_prefix
    )
    try:
        network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file.path.name} does not fit {source.model.factory!r}: {error}.") from None
    return network.eval()
