"""What it costs to read the attention of every head: processor time beside the bare forward, and memory over many sequences.

    python benchmarks/attention.py [--rounds 5]

A transformer of 4 layers, width 128, 8 heads, causal, 128 tokens, 32 sequences a batch, on one thread. Each case runs in a
process of its own, once to warm up (with the self-test) and then three times; rounds are interleaved, and ratios are of
processor seconds within a round. Beside the capture stand:

- eager: the forward as the network has it, asking torch for the weights of each head and dropping them;
- without_weights: the same with the weights not asked for, which torch computes by its fused function;
- encoder and encoder_captured: torch's own encoder layers, with their fast path, and with their attention captured;
- function and function_captured: attention by `scaled_dot_product_attention` alone, whose weights are computed beside it.

For the memory the statistics of a small network (2 layers, 2 heads, 16 tokens) run over 1,000 and over 100,000 sequences,
once more with the sequences read and nothing computed.
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
from measuring import WORK, in_own_process, interleaved, measured, ratio, summary, write_results

SEQUENCES, TOKENS, WIDTH, HEADS, LAYERS = 32, 128, 128, 8, 4
TIMES = 3
FEW, MANY = 1_000, 100_000
CASES = ("eager", "captured", "without_weights", "encoder", "encoder_captured", "function", "function_captured")
PAIRS = {"captured": "eager", "encoder_captured": "encoder", "function_captured": "function"}
BESIDE = (
    ("encoder_captured", "eager"), ("function_captured", "eager"), ("eager", "without_weights"), ("captured", "without_weights"),
)  # fmt: skip
"""All networks do the same sums: the eager forward of one is that of the others."""


def network_of(case: str) -> Any:
    import torch
    from torch import nn
    from torch.nn import functional

    from stratascope.tasks.models import text_transformer

    torch.manual_seed(0)

    class Block(nn.Module):
        """Attention by the function, and the same perceptron as in the transformer."""

        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

        def forward(self, hidden: Any) -> Any:
            parts = self.project(self.norm1(hidden)).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2).chunk(3, 1)
            mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
            hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
            return hidden + self.mlp(self.norm2(hidden))

    if case.startswith("encoder"):
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        return nn.Sequential(nn.Embedding(65, WIDTH), nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)).eval()  # fmt: skip
    if case.startswith("function"):
        return nn.Sequential(
            nn.Embedding(65, WIDTH), *(Block() for _ in range(LAYERS)), nn.Linear(WIDTH, 65)
        ).eval()
    network = text_transformer(65, TOKENS, WIDTH, HEADS, LAYERS).eval()
    if case == "without_weights":
        for block in network.blocks:
            block.attention.register_forward_pre_hook(lambda m, a, k: (a, k | {"need_weights": False}), with_kwargs=True)  # fmt: skip
    return network


def passes(case: str) -> Callable[[], Any]:
    import torch

    from stratascope.tasks.sequence.attention_calls import captured_attention

    network = network_of(case)
    codes = torch.randint(0, 65, (SEQUENCES, TOKENS))

    def plain() -> None:
        with torch.no_grad():
            for _ in range(TIMES):
                network(codes)

    def captured() -> None:
        with torch.no_grad(), captured_attention(network) as recorder:
            recorder.take()  # the self-test is made once for each checkpoint, not for each batch
            for _ in range(TIMES):
                network(codes)
                assert len(recorder.take()) == LAYERS

    return captured if case.endswith("captured") else plain


def kept_probe(count: int) -> None:
    """Keep `count` random sequences as a probe of a store in `WORK`, as an audit does."""
    from stratascope.storage.probes import ProbeSpec
    from stratascope.storage.store import Store
    from stratascope.tasks.units import keep_probe

    folder = WORK / "attention" / str(count)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "codes.npz", inputs=np.random.default_rng(0).integers(0, 16, (count, 16)))
    (folder / "codes.py").write_text(f"import numpy as np\ndef probe(): return dict(np.load({str(folder / 'codes.npz')!r}))\n")  # fmt: skip
    store = Store.open(folder / "store", create=True)
    keep_probe(str(store.path), "test", ProbeSpec(factory="codes:probe"), str(folder), "test")


def streamed(count: int, computed: bool) -> Callable[[], Any]:
    import torch

    from stratascope.storage.model_spec import ModelSpec
    from stratascope.storage.probes import read_probe
    from stratascope.storage.store import Store
    from stratascope.tasks.models import text_transformer
    from stratascope.tasks.sequence.attention import AttentionOptions, gathered
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork
    from stratascope.tasks.sequence.sequence_samples import sequence_blocks

    torch.manual_seed(0)
    network = SequenceNetwork(text_transformer(16, 16, 16, 2, 2).eval(), ModelSpec(factory="none:none"))
    probe = read_probe(Store.open(WORK / "attention" / str(count) / "store"), "test")
    options = AttentionOptions(max_samples=count)

    def work() -> None:
        blocks = sequence_blocks(probe, options)
        if computed:
            with torch.no_grad():
                gathered(network, blocks, options)
        else:
            list(map(len, blocks))

    return work


def run(case: str) -> dict[str, Any]:
    """One case in this process."""
    import torch

    torch.set_num_threads(1)
    kind, _, count = case.partition("_of_")
    if kind == "keep":
        return measured(lambda: kept_probe(int(count)))
    if count:
        return measured(streamed(int(count), kind == "statistics"))
    work = passes(case)
    work()
    return measured(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", default="")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run(options.case)))
        return
    runs = interleaved(options.rounds, CASES, lambda case: in_own_process(__file__, "--case", case))
    ratios = {
        f"{case} by {other}": ratio(runs[case], runs[other])
        for case, other in (*PAIRS.items(), *BESIDE)
    }  # fmt: skip
    for count in (FEW, MANY):
        in_own_process(__file__, "--case", f"keep_of_{count}")
    memory = {
        f"{kind} of {count}": in_own_process(__file__, "--case", f"{kind}_of_{count}")["peak_bytes"] / 1e6
        for count in (FEW, MANY)
        for kind in ("samples", "statistics")
    }
    seconds = {case: summary(found, "processor_seconds") for case, found in runs.items()}
    setting = {"sequences": SEQUENCES, "tokens": TOKENS, "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    write_results("attention", {"what": __doc__, "threads": 1, "rounds": options.rounds, "setting": setting, "ratios": ratios, "processor seconds of three passes": seconds, "peak megabytes": memory})  # fmt: skip
    print(json.dumps({"ratios": ratios, "memory": memory}, indent=1))


if __name__ == "__main__":
    main()
