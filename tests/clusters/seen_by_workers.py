"""What a worker tells of itself; these functions travel to it."""

from __future__ import annotations

import os
import time
from typing import Any


def about_this_worker() -> dict[str, Any]:
    """Its environment, the threads of its libraries, and the addresses on which it and its parent listen."""
    import numpy as np
    import psutil
    from threadpoolctl import threadpool_info

    np.ones(1)
    processes = [psutil.Process(), psutil.Process().parent()]
    listening = [
        connection.laddr.ip
        for process in processes
        if process is not None and "python" in " ".join(process.cmdline()[:1])
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    return {
        "pid": os.getpid(),
        "environment": dict(os.environ),
        "threads": max((item["num_threads"] for item in threadpool_info()), default=1),
        "listening": sorted(set(listening)),
    }


def card_after(seconds: float) -> tuple[str, str]:
    """The worker that did it, and the card that it sees; it takes a while, so that others get work as well."""
    from distributed import get_worker

    time.sleep(seconds)
    return str(get_worker().name), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def addresses(client: Any) -> set[str]:
    """Of all workers that the scheduler knows."""
    return set(client.scheduler_info(n_workers=-1)["workers"])
