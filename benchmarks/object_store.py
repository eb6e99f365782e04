"""A store on an S3 server on loopback: how fast it is written and read, and what a run with nothing new asks for.

python benchmarks/object_store.py DEMO    # DEMO: what `stratascope demo DEMO` left behind

The server is moto, one Python process on the same cores: the numbers are a lower bound for what our side can do, and say
nothing of any service. Number of requests times a service's latency is what its users wait for.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measuring import WORK, measured, summary, write_results

ROUNDS = 5
SMALL = 200


@contextmanager
def s3_server() -> Iterator[str]:
    """A moto server with the bucket `benchmark`; the environment says where it is."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/benchmark", method="PUT"), timeout=30).close()
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
        }  # fmt: skip
        yield endpoint
    finally:
        server.terminate()
        server.wait(30)


def main(demo: Path) -> None:
    import numpy as np

    from stratascope.storage.store import Store
    from stratascope.storage.units import Unit

    WORK.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=WORK))
    layer = np.random.default_rng(0).normal(size=(4096, 64 * 64)).astype("float32")
    shapes = {"layer": [layer], "small arrays": [np.ones((1, 64), "float32")] * SMALL}
    numbers = iter(range(10**6))

    def write(store: Store, values: list[Any]) -> Unit:
        unit = Unit("checkpoint", "run", next(numbers), "capture")
        with store.claim(unit), store.stage(unit, "x", {}) as staged:
            for number, array in enumerate(values):
                writer = staged.create_array(
                    f"activations/probe/{number}/full", dims=("sample", "axis_1"), shape=array.shape,
                    dtype="float32", codec="none",
                )  # fmt: skip
                writer.append(array)
            staged.commit()
        return unit

    def read(store: Store, unit: Unit) -> None:
        for path in store.list_arrays(unit.array_roots[0].as_posix()):
            store.array(path)

    def cold(name: str) -> Store:
        """The store as a machine sees it that has no copies yet."""
        os.environ["STRATASCOPE_CACHE"] = str(work / name)
        return Store.open("s3://benchmark/store", create=True)

    def rounds(once: Callable[[int], dict[str, float]]) -> dict[str, float]:
        return summary([once(number) for number in range(ROUNDS)])

    seconds: dict[str, Any] = {}
    requests: dict[str, Any] = {}
    with s3_server():
        folder, remote = Store.open(work / "folder", create=True), cold("writer")
        for name, values in shapes.items():
            seconds[f"{name}, write, folder"] = rounds(
                lambda _, values=values: measured(lambda: write(folder, values))
            )
            units = []
            remote.objects.requests.clear()
            seconds[f"{name}, write, S3"] = rounds(
                lambda _, values=values, units=units: measured(lambda: units.append(write(remote, values)))
            )
            requests[f"{name}, write"] = {kind: count / ROUNDS for kind, count in remote.objects.requests.items()}
            other = [cold(f"{name}-{number}") for number in range(ROUNDS)]
            other[0].objects.requests.clear()
            seconds[f"{name}, read, S3, no copies"] = rounds(
                lambda number, units=units, other=other: measured(lambda: read(other[number], units[number]))
            )
            requests[f"{name}, read"] = dict(other[0].objects.requests)  # each machine has a counter of its own
            seconds[f"{name}, read, S3, copies here"] = rounds(
                lambda number, units=units, other=other: measured(lambda: read(other[number], units[number]))
            )
        second = nothing_new(demo, work)
    size = layer.nbytes / 1e6
    speeds = {name: size / value["median"] for name, value in seconds.items() if name.startswith("layer")}
    write_results(
        "object_store",
        {
            "setting": f"one layer of {size:.0f} MB, uncompressed; {SMALL} arrays of 64 numbers; moto on loopback",
            "seconds": seconds,
            "megabytes_per_second": speeds,
            "requests_per_unit": requests,
            "audit with nothing new": second,
        },
    )
    shutil.rmtree(work)


def nothing_new(demo: Path, work: Path) -> dict[str, Any]:
    """An audit with nothing new of the demo's store, copied to S3: with no copies on this machine, then with them."""
    from stratascope.flows.result import outcome_without_work
    from stratascope.storage.objects import open_folder, together

    objects = open_folder("s3://benchmark/demo")
    files = [path for path in (demo / "store").rglob("*") if path.is_file() and ".locks" not in path.parts]
    together(lambda path: objects.write(path.relative_to(demo / "store").as_posix(), path.read_bytes()), files)
    found: dict[str, Any] = {"objects": len(files)}
    os.environ["STRATASCOPE_CACHE"] = str(work / "demo-cache")
    objects = open_folder("s3://benchmark/demo")
    for name in ("no copies", "copies here"):
        objects.requests.clear()

        def look() -> None:
            result = outcome_without_work(demo / "audit.yaml", ["store=s3://benchmark/demo"])
            assert result is not None, "there was work left"

        found[name] = {"seconds": measured(look)["seconds"], "requests": dict(objects.requests)}
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
