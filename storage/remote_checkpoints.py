"""Checkpoints behind a URL, on their way to whoever reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from stratascope.errors import DeferredCheckpointError
from stratascope.storage.checkpoint_files import CheckpointFile
from stratascope.storage.object_errors import ObjectChangedError
from stratascope.storage.remote_paths import local_copies


@contextmanager
def local_checkpoint(file: CheckpointFile) -> Iterator[CheckpointFile]:
    """`file` itself, or a local copy where it lies behind a URL; the copy stays while the context is open.

    Every byte of the copy belongs to the object that was listed, by its etag. Raises DeferredCheckpointError where
    that is another one by now, or gone, and UnreachableError.
    """
    with ExitStack() as stack:
        try:
            path, files = stack.enter_context(local_copies(file.path, file.files))
        except ObjectChangedError:
            raise DeferredCheckpointError(
                f"{file.path.name} changed while it was read: it is left for the next audit."
            ) from None
        except FileNotFoundError:
            raise DeferredCheckpointError(
                f"{file.path.name} has gone since this audit began: it is left for the next one."
            ) from None
        yield replace(file, path=path, files=files)
