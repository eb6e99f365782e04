"""Stratascope looks inside neural networks over whole series of checkpoints."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "analyse", "audit", "export_lstmvis", "open_store", "train", "verify"]

if TYPE_CHECKING:
    from stratascope.storage.reading import open_store
    from stratascope.tasks.in_memory import analyse
    from stratascope.tasks.sequence.lstmvis_export import export_lstmvis
    from stratascope.workbench import audit, train, verify

_PLACES = {
    "analyse": "stratascope.tasks.in_memory",
    "audit": "stratascope.workbench",
    "export_lstmvis": "stratascope.tasks.sequence.lstmvis_export",
    "open_store": "stratascope.storage.reading",
    "train": "stratascope.workbench",
    "verify": "stratascope.workbench",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import stratascope` and the command line's --help stay instant.
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'stratascope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
