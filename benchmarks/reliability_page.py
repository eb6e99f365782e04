"""Writes docs/reliability.md from the results that `faults.py` and `fuzz.py` left.

python benchmarks/reliability_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from page import FOLDER, result

PAGE = FOLDER.parent / "docs" / "reliability.md"
START = """# Reliability

<!-- Written by benchmarks/reliability_page.py; the tables come from benchmarks/results/. -->

What can break while nobody looks, what then happens, and what shows it. Manifests are the record: a unit without one does
not exist, and a unit with one is whole. So whatever is killed, the next audit does the rest.

| what breaks | what happens | shown by |
|---|---|---|
| a worker is killed, or all of them | they are replaced, what was in flight is done again, the audit ends well | `tests/faults/test_rounds.py`, rounds below |
| the command is killed | server and workers end within seconds; the next audit goes on from what is committed | the same |
| the Prefect server of the command is killed | another takes its place on the same socket and database; the audit ends well | the same |
| Ctrl-C, SIGTERM | exit code 130 or 143; what is stored is whole | `tests/faults/test_interruptions.py` |
| the disk is full | one sentence; what was stored stays; the next audit goes on | `tests/end_to_end/test_bad_input.py`, `tests/storage/test_store.py` |
| a byte flips in a chunk, metadata, a Parquet file, a manifest, a page | `verify` lists it, a reader refuses it, the next audit computes that unit again | `tests/faults/test_damage.py` |
| two audits of one store at once | each unit is claimed by one of them; both end well | `tests/faults/test_interruptions.py` |
| a checkpoint changes while it is read, or is still being written | left for the next audit (`deferred`) | `tests/tasks/intake/`, `tests/end_to_end/` |
| an analysis raises | that unit is reported, the rest completes, exit code 3 | `tests/faults/test_limits.py` |
| a unit hangs, even inside a library | after `limits.seconds` its process ends itself and says where it stood; the rest completes | the same |
| a unit eats memory | above `limits.memory_gib` its process ends itself; the rest completes | the same |
| a unit kills its worker without a word | tried once more, then reported; the next audit tries again | the same |
| hostile names of runs, layers, classes | refused in a configuration; encoded in paths and escaped in pages otherwise | `tests/faults/test_hostile_names.py` |
| hostile pickles, zip bombs, tensors that claim more than the file holds | quarantined, nothing is run | `tests/tasks/intake/test_bad_files.py` |
| any other bytes in a file | refused in our own words | `tests/faults/test_parsers.py`, fuzzing below |

## Limits

```yaml
limits:
  seconds: 3600      # a unit that takes longer is given up; null waits for ever
  memory_gib: null   # of a worker's process; null: 95 % of what Dask grants it
```

The next audit tries again what went beyond a limit. Limits need workers that do one unit at a time (`cluster.threads: 1`).
"""


def rounds() -> list[str]:
    found = result("faults")
    lines = [
        "## Rounds of kills",
        "",
        "Each round audits six checkpoints, strikes at a moment drawn by its seed, audits again, and compares archive and ledger",
        "byte for byte with those of an undisturbed audit; no unit may be computed twice. `benchmarks/faults.py`; CI plays one of",
        "each kind.",
        "",
        "| killed (SIGKILL) | rounds | with a problem |",
        "|---|---|---|",
    ]
    for kind, count in found["rounds by kind"].items():
        lines.append(f"| {kind} | {count} | {found['rounds with a problem'][kind]} |")
    return lines


def fuzzing() -> list[str]:
    found = result("fuzz")
    lines = [
        "## Fuzzing",
        "",
        f"Coverage-guided inputs by atheris, {found['seconds for each']} s for each parser, starting from honest files. Accepted is what is whole; everything",
        "else must be refused with an error of our own. `benchmarks/fuzz.py`. What it found in earlier runs is kept in",
        "`tests/faults/found/` and tested; hypothesis feeds some 90 mangled inputs to each parser in every CI run.",
        "",
        "| parser | inputs | edges covered | problem |",
        "|---|---|---|---|",
    ]
    for name, item in found["parsers"].items():
        problem = "yes" if item["problem"] else "none"
        lines.append(f"| {name} | {item['inputs']:,} | {item['edges covered']:,} | {problem} |")
    return lines


def main() -> None:
    lines = [START.rstrip()]
    for name, part in (("faults", rounds), ("fuzz", fuzzing)):
        if (FOLDER / "results" / f"{name}.json").exists():
            lines += ["", *part()]
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
