"""Memory that was freed goes back to the system between pieces of work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stratascope.tasks.memory import returning_memory

SCRIPT = """
import sys
import numpy as np
from stratascope.tasks.memory import returning_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def work():
    # Blocks below the size that the allocator maps by itself, with something small that lives on between them.
    blocks, kept = [], []
    for _ in range(200):
        blocks.append(np.ones(2**17))
        kept.append(bytes(200))
    return kept

before = resident()
kept = (returning_memory(work) if sys.argv[1] == "trimmed" else work)()
print(resident() - before)
"""


def grown(how: str) -> int:
    keep = {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=os.environ | keep, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and trims the GNU C library's memory")
def test_what_work_frees_goes_back_to_the_system():
    assert grown("kept") > 100 * 2**20
    assert grown("trimmed") < 20 * 2**20


def test_results_and_errors_pass_through():
    assert returning_memory(lambda value: value + 1)(1) == 2
    with pytest.raises(ZeroDivisionError):
        returning_memory(lambda: 1 / 0)()
