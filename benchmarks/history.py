"""How long a store's history takes to read after a year of audits every five minutes.

python benchmarks/history.py
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from measuring import WORK, folder_bytes, in_own_process, measured, summary, write_results

AUDITS, EVERY, CHECKPOINTS = 100_000, 100, 1000
ROUNDS = 5


def fill(store: Path) -> None:
    """`AUDITS` records; every hundredth found a new checkpoint and lists all of them, the others found nothing."""
    from stratascope.storage.store import Store

    folder = Store.open(store, create=True).path / "audits"
    blank: dict[str, Any] = {
        "conditions": [], "failures": [], "analyses": {}, "title": "Audit", "checks": [], "seconds": 21.0, "units": {},
    }  # fmt: skip
    base = ""
    for number in range(AUDITS):
        moment = time.gmtime(1.76e9 + 300 * number)
        name = f"{time.strftime('%Y%m%dT%H%M%S', moment)}-{number:09d}-1"
        verdict = "warn" if number // EVERY % 7 == 3 else "pass"
        record: dict[str, Any] = {"id": name, "verdict": verdict}
        record["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)
        if number % EVERY == 0:
            base = name
            last = min(number // EVERY, CHECKPOINTS - 1)
            record |= blank | {
                "checkpoints": [
                    {"run": "a", "step": step, "file": f"/data/runs/step-{step}.safetensors", "reason": "",
                     "status": "computed" if step == last else "cached"}
                    for step in range(last + 1)
                ],
            }  # fmt: skip
        else:
            record |= {"same_as": base, "seconds": 0.3, "units": {"cached": 6000}}
        (folder / f"{name}.json").write_text(json.dumps(record))


def read(store: str) -> None:
    """Print what one reading of the whole history takes."""
    from stratascope.storage.history import read_history
    from stratascope.storage.store import Store

    opened = Store.open(store)
    print(json.dumps(measured(lambda: read_history(opened))))


def main() -> None:
    store = WORK / "history"
    shutil.rmtree(store, ignore_errors=True)
    fill(store)
    first = in_own_process(__file__, store)
    later = [in_own_process(__file__, store) for _ in range(ROUNDS)]
    short = sorted(path.stat().st_size for path in (store / "audits").glob("*.json"))[AUDITS // 2]
    write_results(
        "history",
        {
            "setting": f"{AUDITS:,} audits, every {EVERY}th with a new checkpoint, up to {CHECKPOINTS:,} checkpoints",
            "rounds": ROUNDS,
            "first reading, which sums up every record, seconds": first["seconds"],
            "every later reading, seconds": summary(later),
            "peak megabytes": max(item["peak_bytes"] for item in later) / 1e6,
            "bytes of a record with nothing new": short,
            "megabytes of all records": folder_bytes(store / "audits") / 1e6,
        },
    )
    shutil.rmtree(store)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        read(sys.argv[1])
    else:
        main()
