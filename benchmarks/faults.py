"""Fifty seeded kills: of one worker, all workers, the driver and the Prefect server, at moments drawn by the seed.

    python benchmarks/faults.py [ROUNDS]

Each round audits six checkpoints, strikes, audits again, and compares archive and ledger, byte for byte, with those of an
audit that nothing disturbed. The rounds are those of tests/faults/rounds.py.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from measuring import WORK, write_results

from tests.faults.rounds import KINDS, play, series


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    folder = WORK / "faults"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole = series(folder / "whole")
    done = whole.audit()
    if done.code:
        raise RuntimeError(done.err)
    played = []
    for number in range(rounds):
        kind = KINDS[number % len(KINDS)]
        result = play(kind, number, series(folder / f"round-{number}"), whole)
        played.append(asdict(result))
        print(f"round {number + 1} of {rounds}: {result}", file=sys.stderr, flush=True)
        shutil.rmtree(folder / f"round-{number}")
        counts = Counter(item["kind"] for item in played)
        failed = Counter(item["kind"] for item in played if item["problems"])
        write_results("faults", {
            "rounds by kind": dict(counts), "rounds with a problem": {kind: failed[kind] for kind in counts},
            "rounds": played,
        })  # fmt: skip


if __name__ == "__main__":
    main()
