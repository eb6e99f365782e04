"""Workers as processes of this machine."""

from __future__ import annotations

import logging
from typing import Any

from distributed import LocalCluster

from stratascope.errors import ClusterError
from stratascope.flows.cluster_spec import GPU, LOOPBACK, LocalWorkers
from stratascope.tasks.device import visible_devices


class OneCardEach(LocalCluster):
    """Each worker sees a graphics card of its own, also one that comes in another's place."""

    def __init__(self, cards: tuple[str, ...], **options: Any) -> None:
        self._cards = cards
        self._holders: dict[Any, str] = {}
        super().__init__(n_workers=0, **options)

    def new_worker_spec(self) -> dict[Any, Any]:
        """The next worker, with a card that no present worker has."""
        made: dict[Any, Any] = super().new_worker_spec()
        self._holders = {name: card for name, card in self._holders.items() if name in self.worker_spec}
        for name, worker in made.items():
            free = next(card for card in self._cards if card not in self._holders.values())
            self._holders[name] = free
            environment = {**worker["options"].get("env", {}), "CUDA_VISIBLE_DEVICES": free}
            made[name] = {**worker, "options": {**worker["options"], "env": environment}}
        return made


def start(spec: LocalWorkers, security: Any = None) -> LocalCluster:
    """A cluster of local processes as `spec` says. Raises ClusterError where there are fewer cards than workers."""
    options: dict[str, Any] = {
        "threads_per_worker": spec.threads,
        "processes": True,
        "host": LOOPBACK,
        "dashboard_address": f"{LOOPBACK}:0",
        "silence_logs": logging.CRITICAL,
        "memory_limit": spec.memory or _share_of_memory(spec.most_workers),
    }
    if spec.environment:
        options["env"] = spec.environment
    cluster: LocalCluster
    if spec.gpus_per_worker:
        cards = visible_devices(spec.most_workers)
        if len(cards) < spec.most_workers:
            raise ClusterError(
                f"{spec.most_workers} workers with a graphics card each, and torch finds {len(cards)} on this "
                "machine: lower `cluster.workers`, or set `cluster.gpus_per_worker` to 0."
            )
        cluster = OneCardEach(cards, resources={GPU: 1}, **options)
        cluster.scale(spec.least_workers)
    else:
        cluster = LocalCluster(n_workers=spec.least_workers, **options)
    if spec.adaptive:
        cluster.adapt(minimum=spec.adaptive.minimum, maximum=spec.adaptive.maximum)
    return cluster


def _share_of_memory(workers: int) -> int:
    """Bytes for each of `workers`: what the machine, or the container that this runs in, may use."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT / workers)
