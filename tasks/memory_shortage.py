"""Telling that memory ran out: it is not the fault of what ran, and less at once may fit."""

from __future__ import annotations


def is_memory_shortage(error: BaseException) -> bool:
    """Whether `error` says that an array or tensor did not fit into the memory of the device or the processor."""
    import torch

    # On a processor torch raises a plain RuntimeError that begins with a place in its own code.
    refused = isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    return refused or isinstance(error, torch.OutOfMemoryError | MemoryError)
