"""What a `module:name` in a configuration stands for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stratascope.errors import ConfigurationError, did_you_mean


@contextmanager
def import_folder(folder: Path | None) -> Iterator[None]:
    """Put `folder` first on the import path for the time being."""
    if folder is None:
        yield
        return
    entry = str(folder.absolute())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def load_object(name: str, folder: Path | None = None) -> Any:
    """The object `name` (``module:name``), looked up with `folder` first on the import path.

    Raises ConfigurationError that names the module or the attribute that is missing.
    """
    module_name, separator, attribute = name.partition(":")
    if not separator or not module_name or not attribute:
        raise ConfigurationError(f"{name!r} is not of the form 'module:name'.")
    with import_folder(folder):
        try:
            found: Any = importlib.import_module(module_name)
        except ImportError as error:
            raise ConfigurationError(
                f"{name!r}: module {module_name!r} cannot be imported ({error}); it is looked for in "
                f"{folder} and among the installed packages."
            ) from None
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise ConfigurationError(
                    f"{name!r}: {module_name!r} has no {part!r}." + did_you_mean(part, dir(found))
                )
            found = getattr(found, part)
    return found
