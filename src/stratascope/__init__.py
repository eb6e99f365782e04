"""Stratascope looks inside neural networks over whole series of checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "open_store"]

if TYPE_CHECKING:
    from stratascope.storage.reading import open_store


def __getattr__(name: str) -> Any:
    # Lazy, so that `import stratascope` and the command line's --help stay instant.
    if name == "open_store":
        from stratascope.storage.reading import open_store

        return open_store
    raise AttributeError(f"module 'stratascope' has no attribute {name!r}")
