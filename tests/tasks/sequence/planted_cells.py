"""Texts with brackets, and an LSTM of which one unit counts them, set by hand among units of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stratascope.storage.probes import ProbeSpec
from stratascope.tasks.units import keep_probe
from tests.tasks.conftest import LittleAudit

ALPHABET = ("\n", " ", "(", ")", ".", ":", "A", "a", "b", "c")
LENGTH, WINDOWS = 30, 60
PLANTED, OPEN, CLOSE = 5, 2, 3
ARGUMENTS = {"cell": "lstm", "alphabet": len(ALPHABET), "embedding": len(ALPHABET), "width": 12, "layers": 1}


def bracket_text(seed: int = 0) -> str:
    """Letters, blanks and marks in windows of `LENGTH`, ten times as many as the test part holds; brackets close in their window."""
    generator = np.random.default_rng(seed)
    windows = generator.choice([0, 1, 4, 5, 6, 7, 8, 9], size=(10 * WINDOWS, LENGTH), p=[0.05, 0.2, 0.05, 0.05, 0.05, 0.25, 0.2, 0.15])  # fmt: skip
    for row in windows:
        place = int(generator.integers(1, 8))
        while place + 9 < LENGTH:
            stop = place + int(generator.integers(3, 9))
            row[[place, stop]] = OPEN, CLOSE
            place = stop + int(generator.integers(2, 12))
    return "".join(ALPHABET[code] for code in windows.ravel()) + "."


def counting_network(planted: bool = True, seed: int = 0) -> torch.nn.Module:
    """A character LSTM whose unit `PLANTED` adds one to its cell at an opening bracket and takes it off at a closing one."""
    from stratascope.tasks.models import character_model

    torch.manual_seed(seed)
    network = character_model(**ARGUMENTS)
    width = ARGUMENTS["width"]
    with torch.no_grad():
        network.embedding.weight.copy_(torch.eye(len(ALPHABET)))
        if planted:
            lstm = network.recurrent
            for gate, bias in enumerate((20.0, 20.0, 0.0, 0.0)):
                row = gate * width + PLANTED
                lstm.weight_ih_l0[row], lstm.weight_hh_l0[row] = 0, 0
                lstm.bias_ih_l0[row], lstm.bias_hh_l0[row] = bias, 0
            row = 2 * width + PLANTED
            lstm.weight_ih_l0[row, OPEN], lstm.weight_ih_l0[row, CLOSE] = 20.0, -20.0
    return network


def bracket_audit(audit: LittleAudit, steps: tuple[int, ...] = (0, 10)) -> LittleAudit:
    """Probes `test` and `train` of a bracket text; the network counts brackets at every step above 0."""
    path = Path(audit.folder) / "brackets.txt"
    path.write_text(bracket_text(), encoding="utf-8")
    for name in ("test", "train"):
        args = {"path": str(path), "length": LENGTH}
        spec = ProbeSpec(dataset="text", split=name, limit=WINDOWS, args=args)
        keep_probe(str(audit.store.path), name, spec, str(audit.folder), name)
        audit.probes.append(name)
    for step in steps:
        audit.checkpoint(step, counting_network(planted=step > 0))
    return audit
