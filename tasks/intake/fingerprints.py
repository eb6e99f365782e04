"""What tells two sets of weights apart: digests for equal or not, sketches for how far."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SKETCH = 1024
"""Length of the count sketch; distances between checkpoints keep about 1/sqrt(SKETCH) relative error."""
_BLOCK = 1 << 20


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 (hex) over dtype, shape and the bytes in C order."""
    import torch

    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    digest = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe(tensor: Tensor) -> dict[str, Any]:
    """Digest, shape, dtype, Frobenius norm of the finite entries, and how many are not finite."""
    import torch

    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if values.element_size() == 1 or not values.is_floating_point():
        values = values.double()
    finite = torch.isfinite(values)
    lost = int((~finite).sum())
    values = torch.where(finite, values, torch.zeros((), dtype=values.dtype)) if lost else values
    return {
        "digest": tensor_digest(tensor),
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "norm": float(torch.linalg.vector_norm(values, dtype=torch.float64)),
        "non_finite": lost,
    }


def sketch(tensors: Iterable[tuple[str, Tensor]]) -> np.ndarray:
    """A count sketch of all floating-point `tensors` by name: a linear map to SKETCH numbers that keeps distances.

    Charikar, Chen and Farach-Colton 2002. The places and signs of a tensor's entries follow from its name, so that
    sketches of two checkpoints can be subtracted. Entries that are not finite count as 0.
    """
    import torch

    total = np.zeros(SKETCH)
    for name, tensor in sorted(tensors):
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        generator = np.random.default_rng(seed)
        flat = tensor.detach().reshape(-1)
        for start in range(0, len(flat), _BLOCK):
            block = flat[start : start + _BLOCK].to(torch.float64).numpy()
            values = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
            places = generator.integers(0, SKETCH, len(values), dtype=np.int16)
            signs = generator.integers(0, 2, len(values), dtype=np.int8) * 2.0 - 1.0
            total += np.bincount(places, weights=signs * values, minlength=SKETCH)
    return total
