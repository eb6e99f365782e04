"""Coverage-guided noise for every parser of bytes from outside, by atheris (libFuzzer).

    python benchmarks/fuzz.py [SECONDS FOR EACH]

Each parser of tests/faults/parsers.py gets a process of its own that starts from the honest examples. A crash, or an error
that is none of ours, ends it; the input is kept in `benchmarks/work/fuzz/`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from measuring import WORK, write_results

FOLDER = WORK / "fuzz"


def fuzz(name: str, words: list[str]) -> None:
    """Feed one parser in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["stratascope", "yaml", "safetensors", "zipfile", "pickle"]):
        from tests.faults.parsers import PARSERS, feed
    warnings.simplefilter("ignore")
    parser = PARSERS[name]
    corpus = FOLDER / name.replace(" ", "-")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, example in enumerate(parser.examples):
        (corpus / f"example-{number}").write_bytes(example)

    def one(data: bytes) -> None:
        feed(parser, data)

    atheris.Setup([sys.argv[0], *words, f"-artifact_prefix={corpus}-", str(corpus)], one)
    atheris.Fuzz()


def campaign(seconds: int) -> dict[str, Any]:
    """All parsers, one after the other; what libFuzzer counted."""
    from tests.faults.parsers import PARSERS

    found = {}
    for name in PARSERS:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name, f"-max_total_time={seconds}", "-print_final_stats=1",
             "-max_len=20000", "-rss_limit_mb=4096", "-timeout=60", "-seed=1"],
            capture_output=True, text=True,
        )  # fmt: skip
        counted = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
        covered = re.findall(r"cov: (\d+)", done.stderr)
        found[name] = {
            "inputs": int(counted.group(1)) if counted else 0,
            "edges covered": int(covered[-1]) if covered else 0,
            "problem": "" if done.returncode == 0 else done.stderr[-1500:],
        }
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    if "--one" in sys.argv:
        fuzz(sys.argv[2], sys.argv[3:])
        return
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_results("fuzz", {"seconds for each": seconds, "parsers": campaign(seconds)})


if __name__ == "__main__":
    main()
