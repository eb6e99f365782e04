"""What the commands do, for notebooks and scripts: the same work, with results as objects instead of print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stratascope.flows.result import AuditResult
    from stratascope.storage.verification import Damage
    from stratascope.tasks.training.loop import TrainingSummary


def audit(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    rehash: bool = False,
    max_seconds: float | None = None,
) -> AuditResult:
    """Audit as the file `config` says, as the command `audit` does; `overrides` are ``key=value`` texts.

    Starts workers only where something is left to do. In a script it must stand below ``if __name__ == "__main__":``,
    since each worker imports the script anew. Raises what the command would explain: ConfigurationError, StoreError …
    """
    from stratascope.command_line import auditing

    return auditing.audit(Path(config), list(overrides), list(only), rehash, max_seconds)


def train(config: str | Path, overrides: Sequence[str] = ()) -> TrainingSummary:
    """Train as the file `config` says and write the series of checkpoints, as the command `train` does."""
    from stratascope.command_line import auditing

    return auditing.train(Path(config), list(overrides), quiet=True)


def verify(store: str | Path) -> list[Damage]:
    """All damage in the store at `store`; an empty list means that every byte is as it was written."""
    from stratascope.storage.store import Store
    from stratascope.storage.verification import verify as find_damage

    return find_damage(Store.open(store))
