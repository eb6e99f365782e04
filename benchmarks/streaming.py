"""A probe of a million samples: built, digested, stored and read; peak memory against a tenth of the samples.

    python benchmarks/streaming.py

Samples are 1 × 16 × 16 float32, made by a map-style data set when they are asked for, and the same from a Zarr array.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measuring import WORK, in_own_process, measured, write_results

COUNTS = (100_000, 1_000_000)
CODE = """
import numpy as np

class Items:
    def __init__(self, count):
        self.targets = np.arange(count) % 10
    def __len__(self):
        return len(self.targets)
    def __getitem__(self, row):
        return np.full((1, 16, 16), row, np.float32), self.targets[row]

def items(count):
    return Items(count)
"""


def case(source: str, count: int) -> dict[str, Any]:
    """Keep the probe as the audit does, then read it in batches as the capture does."""
    from stratascope.storage.probes import ProbeSpec, read_probe
    from stratascope.storage.store import Store
    from stratascope.tasks.units import keep_probe

    folder = WORK / "streaming"
    store = Store.open(folder / f"store-{source}-{count}", create=True)
    spec = ProbeSpec(factory="million:items", args={"count": count})
    if source == "zarr":
        spec = ProbeSpec(dataset="zarr", args={"path": str(folder / f"data-{count}")})
    found: dict[str, Any] = {}

    def work() -> None:
        begun = time.perf_counter()
        keep_probe(str(store.path), "probe", spec, str(folder), "streaming")
        found["seconds to keep"] = time.perf_counter() - begun
        begun = time.perf_counter()
        samples = sum(len(inputs) for inputs, _, _ in read_probe(store, "probe").batches(256))
        assert samples == count
        found["seconds to read"] = time.perf_counter() - begun

    return {**measured(work), **found, "input bytes": 1024 * count}


def make_zarr(count: int) -> None:
    """The same samples as a Zarr array, written a slice at a time."""
    import numpy as np

    from stratascope.storage.archive import create_array, ensure_group

    place = WORK / "streaming" / f"data-{count}"
    ensure_group(place)
    writer = create_array(
        place / "inputs", dims=("sample", "channel", "y", "x"), shape=(count, 1, 16, 16), dtype="float32"
    )
    for start in range(0, count, 10_000):
        rows = np.arange(start, start + 10_000, dtype=np.float32)
        writer.append(np.broadcast_to(rows[:, None, None, None], (10_000, 1, 16, 16)))
    writer.close()


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(case(sys.argv[1], int(sys.argv[2]))))
        return
    shutil.rmtree(WORK / "streaming", ignore_errors=True)
    (WORK / "streaming").mkdir(parents=True)
    (WORK / "streaming" / "million.py").write_text(CODE)
    cases = {}
    for count in COUNTS:
        make_zarr(count)
        for source in ("items", "zarr"):
            cases[f"{source}, {count:,}"] = in_own_process(__file__, source, count)
            print(cases, file=sys.stderr, flush=True)
    write_results("streaming", {"what": __doc__, "cases": cases, "load": os.getloadavg()})
    shutil.rmtree(WORK / "streaming", ignore_errors=True)


if __name__ == "__main__":
    main()
