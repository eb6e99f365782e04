"""What zarr-python and xarray read from where a URL leads."""

from __future__ import annotations

from typing import Any

from stratascope.storage.objects import ObstoreFolder, open_folder


def zarr_store(url: str) -> Any:
    """A read-only Zarr store of everything below `url`, with our time limits, retries and credentials."""
    import zarr.storage

    folder = open_folder(url)
    if isinstance(folder, ObstoreFolder):
        return zarr.storage.ObjectStore(folder.store, read_only=True)
    return zarr.storage.FsspecStore.from_url(url, read_only=True)
