"""Writes docs/performance.md from the results that the benchmarks left.

python benchmarks/page.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "performance.md"


def result(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / "results" / f"{name}.json").read_text()))


def spread(found: dict[str, float], digits: int = 2) -> str:
    return f"{found['median']:.{digits}f} ({found['least']:.{digits}f}–{found['most']:.{digits}f})"


def extraction() -> list[str]:
    found = result("extraction")
    lines = [
        "## One checkpoint to the disk",
        "",
        f"{found['setting']}; median of {found['rounds']} interleaved rounds, least and most in brackets. The ratio compares with",
        "the bare forward passes of the same process; storage, checksums and manifest are in it. `benchmarks/extraction.py`",
        "",
        "| case | times the forward | seconds | MB on disk | peak MB |",
        "|---|---|---|---|---|",
    ]
    for case, numbers in found["cases"].items():
        lines.append(
            f"| {case} | {spread(numbers['ratio to the forward passes'])} | {spread(numbers['seconds'], 1)} "
            f"| {numbers['megabytes on disk']:,.0f} | {numbers['peak megabytes']:,.0f} |"
        )
    lines += ["", "Time beyond the forward, against `numpy.save` with fsync of the same arrays:", ""]
    for case, ratio in found["time beyond the forward, against numpy.save with fsync of the same arrays"].items():
        lines.append(f"- {case}: {ratio:.2f} ×")
    lines += [
        "",
        "Plain hooks with `numpy.save` are the lower bound: no statistics, no checksums, no names, no resume. captum keeps whole",
        "layers, uncompressed, and has no pooled form; with the default codec the archive is a fifth smaller than captum's files",
        "and takes longer to write, with `codec: none` it is written sooner.",
    ]
    return lines


def audit() -> list[str]:
    overhead, second, workers, memory = (
        result(f"audit_{name}") for name in ("overhead", "second", "workers", "memory")
    )
    again = second["seconds of a second audit"]
    lines = [
        "## The audit as a whole",
        "",
        "`benchmarks/audit.py`; wall seconds of the command, two workers unless said.",
        "",
        "| what | measured |",
        "|---|---|",
        f"| orchestration, for each checkpoint (4 against 24 checkpoints, 4 units each) | {overhead['seconds for each checkpoint']:.2f} s |",
        f"| orchestration, start and end (server and workers included, the work inside tasks not) | {overhead['seconds for start and end']:.1f} s |",
        f"| the demo: training, audit and report | {second['seconds of the demo']:.0f} s |",
        f"| the demo's store again, nothing new | {again['median']:.2f} s (most {again['most']:.2f}) |",
    ]
    if (FOLDER / "results" / "audit_thousand.json").exists():
        many = result("audit_thousand")
        again = many["seconds of a second audit"]
        lines.append(
            f"| 1,000 checkpoints of a tiny network: all units, one process | {many['seconds of all units in one process']:.0f} s |"
        )
        lines.append(f"| the same 1,000, nothing new | {again['median']:.2f} s (most {again['most']:.2f}) |")
    spans = workers["seconds of the sweep, by workers"]
    lines.append(
        f"| sweep of 16 checkpoints of ResNet-20 over 1,024 images: one worker, two workers | {spans['1']:.0f} s, {spans['2']:.0f} s: "
        f"{workers['times faster with two']:.2f} × |"
    )
    peaks = memory["peak megabytes of the largest process"]
    for name in ("10 × samples", "10 × checkpoints"):
        lines.append(
            f"| peak memory of the largest process, {name} | {peaks[name] / peaks['base']:.2f} × ({peaks['base']:.0f} → {peaks[name]:.0f} MB) |"
        )
    return lines


def archive() -> list[str]:
    found = result("archive")
    lines = [
        "## The archive's own writer",
        "",
        f"{found['setting']}. `benchmarks/archive.py`",
        "",
        "| case | seconds |",
        "|---|---|",
    ]
    return lines + [f"| {case} | {spread(numbers, 3)} |" for case, numbers in found["seconds"].items()]


def triage() -> list[str]:
    found = result("triage")
    lines = [
        "## The misplaced score",
        "",
        f"{found['sound series']} sound series of small networks on the digits, {found['optimiser settings']} optimiser settings, evenly and log-spaced steps:",
        f"{found['sound series with an alarm']} with an alarm (the highest score is {found['highest score of a sound series']:.2f}, an alarm stands above 1). Faults put into",
        "runs that converge, one at a time. `benchmarks/triage.py`",
        "",
        "| fault | found |",
        "|---|---|",
    ]
    for kind, counts in found["faults in converging runs"].items():
        lines.append(f"| {kind} | {counts['found']} of {counts['tried']} |")
    return lines


def representations() -> list[str]:
    """Maps of samples, similarity from the archive, and what one layer of one checkpoint costs."""
    tsne, consensus, components = (
        result(f"embedding_{name}")["compared"] for name in ("tsne", "consensus", "components")
    )
    seconds = {name: spread_of(tsne["ratio_in_each_round"]) for name in ("tsne",)}
    seconds["consensus"] = spread_of([1 / ratio for ratio in consensus["ratio_in_each_round"]])
    seconds["components"] = spread_of([1 / ratio for ratio in components["ratio_in_each_round"]])
    peak = components["peak_bytes"]
    lines = [
        "## Representations",
        "",
        "Ratios are of processor seconds on one thread, round by round, median with least and most. `benchmarks/embedding.py`,",
        "`benchmarks/similarity.py`, `benchmarks/representations.py`",
        "",
        "| what | measured |",
        "|---|---|",
        f"| t-SNE of MNIST's 10,000 test features, times openTSNE by hand | {seconds['tsne']}; divergence {tsne['divergence_over_by_hand']:.3f} × |",
        f"| ten maps from a consensus start, times faster than ten independent ones | {seconds['consensus']}; divergence {consensus['mean_divergence_cost']:+.1%} in the mean; movement {consensus['movement']['consensus']:.2f} instead of {consensus['movement']['independent']:.2f} |",
        f"| 50 components of 1,000,000 × 512 out of core, times faster than scikit-learn's IncrementalPCA | {seconds['components']}; peak {peak['gram'] / 1e6:.0f} MB against {peak['scikit_learn'] / 1e6:.0f} MB |",
    ]
    similarity = result("similarity")["cases"]
    naive = similarity["naive flat"]
    for case, words in (
        (
            "pairs falling",
            "debiased CKA of 16 checkpoints × 12 layers, all 192 × 192 pairs, n = 2,000; spectra that fall",
        ),
        ("pairs flat", "the same, flat spectra"),
        ("steps falling", "CKA of 200 checkpoints × 12 layers, all steps of each layer; spectra that fall"),
        ("steps flat", "the same, flat spectra"),
    ):
        if case in similarity:
            found = similarity[case]
            lines.append(
                f"| {words} | {found['processor seconds']['median']:.0f} s, {found['peak bytes']['median'] / 1e6:.0f} MB; {found['last']['layers read']:,} layers read, once each |"
            )
    lines.append(
        f"| one pair at a time from the features, extrapolated from {naive['seconds']['median'] * 1000:.0f} ms a pair | {naive['last']['extrapolated seconds for all pairs']:,.0f} s |"
    )
    if peer := similarity.get("torch_cka flat"):
        last = peer["last"]
        lines.append(
            f"| torch_cka {last['version']}, one pair of models of 12 layers ({peer['processor seconds']['median']:.0f} s), extrapolated to all pairs of {last['models']} models | {last['extrapolated seconds for all pairs']:,.0f} s |"
        )
    found = result("representations")
    lines += ["", f"One layer of one checkpoint ({found['setting']}), processor seconds:", "", "| analysis | seconds | peak MB |", "|---|---|---|"]  # fmt: skip
    lines += [
        f"| {case} | {spread(numbers['processor seconds'])} | {numbers['peak megabytes']:.0f} |"
        for case, numbers in found["cases"].items()
    ]
    return lines


def spread_of(values: list[float]) -> str:
    ordered = sorted(values)
    middle = statistics.median(ordered)
    return f"{middle:.2f} ({ordered[0]:.2f}–{ordered[-1]:.2f})"


def vision() -> list[str]:
    found = result("vision")
    lines = [
        "## Maps of pictures",
        "",
        f"{found['images']} images of 32 × 32 on ResNet-20, one checkpoint, one thread unless said; ratios of processor seconds (with more threads: of seconds) within a round, median of",
        "the rounds with least and most. The loops over one image are those of pytorch-cnn-visualizations, written anew: a hook on the",
        "layer, a forward pass, `backward` from a one-hot vector, the map as an array, image after image. Its Score-CAM goes through",
        "the network's modules one after the other with gradients recorded; for each channel it enlarges the map, leaves out constant",
        "ones, scales it from 0 to 1, runs the picture times the map, takes the softmax's entry as an array and adds the map times",
        "it. The lean loop also takes one image and one channel at a time, but records no gradients and does nothing beside the",
        "passes. A bare forward is one pass of all images, for each of the layer's 64 channels. Score-CAM runs a copy of the",
        "network (batch norms folded, channels last, on one thread with Winograd's convolutions) and is held against bare forwards",
        "of the network and of that copy;",
        "Ablation-CAM runs only what follows the layer. `benchmarks/vision.py`",
        "",
        "| what | times | rounds |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {spread(numbers)} | {numbers['rounds']} |" for name, numbers in found["ratios"].items()]
    cases = found["cases"]
    few, many = (cases[f"batched {size}"]["peak megabytes"] for size in (16, 64))
    lines += [
        "",
        f"Integrated gradients of 256 images: peak {few:.0f} MB with batches of 16, {many:.0f} MB with batches of 64.",
    ]
    return lines


def convolution() -> list[str]:
    lines = [
        "## Winograd's convolution",
        "",
        "Convolutions of 3 × 3 in the copy of a network that masks and perturbations are asked of: torch's own time by ours, on one",
        "thread, median of the rounds with least and most; and the largest error relative to the largest output, float64 being",
        "exact. Outputs that fill less than half of their tiles of 4 × 4, as the last, stay torch's. `benchmarks/convolution.py`",
        "",
        "| images | channels | pixels | times as fast | error | error of torch | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in result("convolution")["shapes"]:
        lines.append(
            f"| {found['images']} | {found['channels']} | {found['pixels']} × {found['pixels']} | {spread(found)} "
            f"| {found['error']:.1e} | {found['error of torch']:.1e} | {found['rounds']} |"
        )
    return lines


def sequence_models() -> list[str]:
    found = result("sequence_models")["runs"]
    lines = [
        "## Networks that read sequences",
        "",
        "The configurations below `examples/sequence`, trained on one thread from the seed in each file; measured on samples that the",
        "run did not train on, at its first and at its last step. The plain networks are there to fail at what needs a memory of 100",
        "steps: 0.125 is chance in the recall, 0.167 the error of always saying 1. `benchmarks/sequence_models.py`",
        "",
        "| example | measured | at step 0 | at the end | must be | steps | processor seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, run in found.items():
        seconds = "–" if run["seconds"] is None else f"{run['seconds']:.0f}"
        lines.append(
            f"| `{name}` | {run['quantity']}, {run['unit']} | {run['at step 0']:.3g} | {run['value']:.3g} "
            f"| {run.get('bound', '–')} | {run['steps']:,} | {seconds} |"
        )
    return lines


def attention() -> list[str]:
    found = result("attention")
    setting, memory = found["setting"], found["peak megabytes"]
    names = {
        "captured by eager": "all weights captured, by the forward that computes them anyway",
        "encoder_captured by eager": "the same of torch's encoder layers, by that forward",
        "function_captured by eager": "the same of attention by the fused function alone, by that forward",
        "captured by without_weights": "all weights captured, by the forward that does not ask for them",
        "eager by without_weights": "the forward that computes the weights, by the one that does not",
        "encoder_captured by encoder": "torch's encoder layers captured, by their fast path",
        "function_captured by function": "attention by the fused function alone: its weights computed beside it, by the function",
    }
    return [
        "## Attention",
        "",
        f"A causal transformer of {setting['layers']} layers, width {setting['width']}, {setting['heads']} heads, {setting['tokens']} tokens, "
        f"{setting['sequences']} sequences a batch;",
        f"ratios of processor seconds within a round, median of {found['rounds']} rounds with least and most. `benchmarks/attention.py`",
        "",
        "| what | times |",
        "|---|---|",
        *(f"| {said} | {spread(found['ratios'][name])} |" for name, said in names.items()),
        "",
        "Peak memory of the statistics of a small network (the sequences alone, read from the store, in brackets): "
        + ", ".join(
            f"{memory[f'statistics of {count}']:.0f} MB ({memory[f'samples of {count}']:.0f}) for {count:,} sequences"
            for count in (1_000, 100_000)
        )
        + ".",
    ]


def recurrent() -> list[str]:
    found = result("recurrent")
    lines = [
        "## Recurrent states",
        "",
        f"{found['layers']} layers of {found['width']} units, batch {found['batch']}, {found['time']} steps, float32 without gradients, one thread;",
        f"processor seconds against the module itself within a round, median of {found['rounds']} rounds with least and most.",
        "`benchmarks/recurrent.py`",
        "",
        "| what | times |",
        "|---|---|",
    ]
    lines += [f"| {name} | {spread(numbers)} |" for name, numbers in found["ratios"].items()]
    few, many = (found["cases"][f"states {count}"]["peak megabytes"] for count in (1000, 100000))
    lines += [
        "",
        f"`recurrent_state` over 1,000 sequences: peak {few:.0f} MB; over 100,000 of the same length: {many:.0f} MB.",
    ]
    return lines


def main() -> None:
    machine = result("extraction")["machine"]
    lines = [
        "# Performance",
        "",
        "<!-- Written by benchmarks/page.py from benchmarks/results/. -->",
        "",
        f"Measured on {machine['cores']} cores ({machine['processor']}), Python {machine['python']}, torch {machine['torch']}; one thread for",
        "each process. Absolute numbers are this machine's; the ratios compare cases of one run. The load while each part ran",
        "stands in its file below `benchmarks/results/`.",
    ]
    for part in (
        extraction,
        audit,
        archive,
        triage,
        representations,
        vision,
        convolution,
        attention,
        recurrent,
        sequence_models,
    ):
        lines += ["", *part()]
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
