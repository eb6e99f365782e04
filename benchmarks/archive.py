"""Small arrays and whole layers: the archive's own writer against zarr-python, and one sync against many.

python benchmarks/archive.py
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measuring import WORK, measured, summary, write_results

ROUNDS = 5
SMALL = 200


def best_of(work: Any) -> dict[str, float]:
    found = []
    for _ in range(ROUNDS):
        WORK.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=WORK))
        found.append(measured(lambda folder=folder: work(folder)))
        shutil.rmtree(folder)
    return summary(found)


def main() -> None:
    import numpy as np
    import zarr
    from zarr.codecs import ZstdCodec

    from stratascope.storage.archive import create_array
    from stratascope.storage.staging import bring_to_disk

    small = np.ones((1, 64))
    layer = np.maximum(np.random.default_rng(0).normal(size=(4096, 64 * 64)), 0).astype("float32")

    def ours(folder: Path, values: Any, times: int, codec: str = "zstd", block: int = 256) -> None:
        for number in range(times):
            writer = create_array(
                folder / str(number), dims=["a", "b"], shape=values.shape, dtype=values.dtype, codec=codec
            )
            for start in range(0, len(values), block):
                writer.append(values[start : start + block])
            writer.close()

    def theirs(folder: Path, values: Any, times: int, block: int = 256) -> None:
        for number in range(times):
            array = zarr.create_array(
                store=str(folder / str(number)), shape=values.shape, dtype=values.dtype,
                chunks=(min(len(values), 128), values.shape[1]), compressors=[ZstdCodec(level=1, checksum=True)],
                dimension_names=["a", "b"], config={"write_empty_chunks": True},
            )  # fmt: skip
            for start in range(0, len(values), block):
                array[start : start + block] = values[start : start + block]

    def one_sync(folder: Path) -> None:
        ours(folder, small, SMALL)
        bring_to_disk(folder)

    def many_syncs(folder: Path) -> None:
        ours(folder, small, SMALL)
        for path in folder.rglob("*"):
            if path.is_file():
                with open(path, "rb") as stream:
                    os.fsync(stream.fileno())

    write_results(
        "archive",
        {
            "setting": f"{SMALL} arrays of 64 numbers; one layer of {layer.nbytes / 1e6:.0f} MB, half of it zero",
            "seconds": {
                "small arrays, ours": best_of(lambda folder: ours(folder, small, SMALL)),
                "small arrays, zarr-python": best_of(lambda folder: theirs(folder, small, SMALL)),
                "layer, ours, zstd": best_of(lambda folder: ours(folder, layer, 1)),
                "layer, ours, none": best_of(lambda folder: ours(folder, layer, 1, "none")),
                "layer, zarr-python, zstd": best_of(lambda folder: theirs(folder, layer, 1)),
                "small arrays, one sync": best_of(one_sync),
                "small arrays, a sync for each file": best_of(many_syncs),
            },
        },
    )


if __name__ == "__main__":
    main()
