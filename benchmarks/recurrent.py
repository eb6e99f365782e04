"""What it costs to see every gate and state of a recurrent layer, on one thread: two layers of 512, batch 64, 100 steps.

    python benchmarks/recurrent.py [--rounds 5]

Each case runs in a process of its own, once to warm up and then three times; rounds are interleaved, and ratios are of processor
seconds within a round. Beside `nn.LSTM` (`nn.GRU`, `nn.RNN`) itself, without gradients, stand:

- the unrolled layer: every gate, cell and hidden state of both layers kept;
- a network's forward pass under `captured_states`, as the analysis runs it after its first batch;
- the first batch, on which the layer itself runs too and is held against the unrolled one;
- a loop over `nn.LSTMCell` by hand, which is how states are got elsewhere (hidden and cell states only, no gates).

Then `recurrent_state`'s passes over 1,000 and over 100,000 sequences of 20 codes (one LSTM of 64 units), for the memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import in_own_process, interleaved, measured, ratio, summary, write_results

WIDTH, LAYERS, BATCH, TIME, TIMES = 512, 2, 64, 100, 3
CELLS = ("LSTM", "GRU", "RNN")


def layer_and_inputs(cell: str) -> tuple[Any, Any]:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return getattr(nn, cell)(WIDTH, WIDTH, LAYERS, batch_first=True).eval(), torch.randn(BATCH, TIME, WIDTH)


def module(cell: str) -> Callable[[], Any]:
    layer, inputs = layer_and_inputs(cell)
    return lambda: layer(inputs)


def unrolled(cell: str) -> Callable[[], Any]:
    from stratascope.tasks.sequence.unrolling import unroll

    layer, inputs = layer_and_inputs(cell)
    return lambda: unroll(layer, inputs)


def captured(cell: str, first: bool = False) -> Callable[[], Any]:
    from stratascope.storage.model_spec import ModelSpec
    from stratascope.tasks.sequence.recurrent_capture import captured_states
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    layer, inputs = layer_and_inputs(cell)
    network = SequenceNetwork(layer, ModelSpec(factory="none:none", output="[0]"))
    opened = captured_states(network)
    recorder = opened.__enter__()

    def later() -> None:
        network.outputs(inputs)
        recorder.take()

    def with_its_test() -> None:
        with captured_states(network) as own:
            network.outputs(inputs)
            own.take()

    if first:
        opened.__exit__(None, None, None)
        return with_its_test
    later.opened = opened  # type: ignore[attr-defined]
    return later


def cells(cell: str) -> Callable[[], Any]:
    """The usual loop by hand, over cells with the same weights."""
    import torch
    from torch import nn

    layer, inputs = layer_and_inputs(cell)
    stack = []
    for place in range(LAYERS):
        own = getattr(nn, f"{cell}Cell")(WIDTH, WIDTH).eval()
        own.load_state_dict({name: getattr(layer, f"{name}_l{place}") for name in own.state_dict()})
        stack.append(own)

    def loop() -> Any:
        kept, below = [], inputs.unbind(1)
        for own in stack:
            last, made = None, []
            for step in below:
                last = own(step, last)
                made.append(last[0] if isinstance(last, tuple) else last)
                kept.append(last)
            below = tuple(made)
        return torch.stack(below, 1)

    return loop


class MadeUp:
    """Codes int64 (sample, token) that are made when they are read, so that no memory is theirs."""

    dtype = np.dtype(np.int64)

    def __init__(self, count: int, length: int) -> None:
        self.shape = (count, length)
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        places = np.arange(start, stop)[:, None] * 131 + np.arange(self.shape[1])[None] * 7
        return (places * places // 97) % 60


def states(count: str) -> Callable[[], Any]:
    import torch

    from stratascope.storage.model_spec import ModelSpec
    from stratascope.storage.probes import Probe
    from stratascope.tasks.models import character_model
    from stratascope.tasks.sequence.recurrent_passes import StateLimits, states_of
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork
    from stratascope.tasks.sequence.sequence_samples import SequenceOptions

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = SequenceNetwork(character_model(alphabet=60, width=64).eval(), ModelSpec(factory="none:none"))
    samples = int(count)
    probe = Probe("made", "test", MadeUp(samples, 20), None, np.arange(samples), (), "digest")
    return lambda: states_of(network, probe, SequenceOptions(max_samples=samples, batch_size=256), StateLimits())


KINDS: dict[str, Callable[[str], Callable[[], Any]]] = {
    "module": module, "unrolled": unrolled, "captured": captured, "first": lambda cell: captured(cell, True), "cells": cells,
    "states": states,
}  # fmt: skip
CASES = (
    *(f"{kind} {cell}" for cell in CELLS for kind in ("module", "unrolled", "captured", "first", "cells")),
    "states 1000", "states 100000",
)  # fmt: skip


def run(case: str) -> dict[str, Any]:
    """One case in this process: once to warm up, then measured; passes over many sequences once and cold."""
    import torch

    kind, name = case.split()
    work = KINDS[kind](name)
    with torch.no_grad():
        if kind == "states":
            return measured(work)
        work()
        found = measured(lambda: [work() for _ in range(TIMES)])
    return found | {key: found[key] / TIMES for key in ("seconds", "processor_seconds")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", default="")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run(options.case)))
        return
    runs = interleaved(options.rounds, CASES, lambda case: in_own_process(__file__, "--case", case))
    named = {
        "unrolled": "unrolled, all gates and states", "captured": "a pass under capture", "first": "the first pass, with its test",
        "cells": "a loop over cells by hand, no gates",
    }  # fmt: skip
    compared = {
        f"nn.{cell}: {text}": ratio(runs[f"{kind} {cell}"], runs[f"module {cell}"]) for cell in CELLS for kind, text in named.items()
    }  # fmt: skip
    cases = {
        case: {"processor seconds": summary(found, "processor_seconds"), "peak megabytes": summary(found, "peak_bytes")["median"] / 1e6}
        for case, found in runs.items()
    }  # fmt: skip
    about = {
        "width": WIDTH,
        "layers": LAYERS,
        "batch": BATCH,
        "time": TIME,
        "threads": 1,
        "rounds": options.rounds,
    }
    write_results("recurrent", {"what": __doc__, **about, "ratios": compared, "cases": cases})
    print(json.dumps(compared, indent=1))


if __name__ == "__main__":
    main()
