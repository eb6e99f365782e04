"""Kernel alignment of all layers of all checkpoints from the archive: time, memory, and one pair at a time beside it.

    python benchmarks/similarity.py

Stores of made-up layers, n = 2,000 samples, 64 to 512 features: with spectra that fall like those of trained networks
(variance of component i like i^-1.5 to i^-2), and flat ones, the worst case. What `decomposition` would file is written
through the real storage functions. `pairs` compares 16 checkpoints x 12 layers, all 192 x 192 pairs; `steps` 200
checkpoints x 12 layers, all steps of each layer and all layers at 12 steps. Each layer is read once. `naive` makes both
centred Gram matrices of one pair in float64, as is done where pairs are compared one by one; its time for all pairs is
extrapolated. `torch_cka` compares one pair of models of 12 layers of those widths, n = 2,000 in one batch, with the
package of that name; its time for the pairs of 16 models is extrapolated. It is left out where the package is missing:

    python -m pip install --no-deps torch_cka==0.21
    python benchmarks/similarity.py peer         # that comparison alone, once; all else stays in the file

(It declares no dependencies; torch, tqdm and matplotlib are what it imports, and they are here already.)
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import RESULTS, WORK, in_own_process, interleaved, measured, summary, write_results

SAMPLES, WIDTHS = 2000, (64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512, 512)
KEPT_GRAM = 1e-4
CASES = ("pairs falling", "pairs flat", "steps falling", "steps flat", "naive flat")
PEER = "torch_cka flat"
"""Where the package is there."""
MODELS = 16


def place_of(spectrum: str, steps: int) -> Path:
    return WORK / "similarity" / f"{spectrum}-{steps}"


def make_store(spectrum: str, steps: int) -> None:
    """A store in which each layer drifts from step to step."""
    from stratascope.storage.archive import join_path
    from stratascope.storage.probes import ProbeSpec
    from stratascope.storage.store import Store
    from stratascope.storage.units import Unit
    from stratascope.tasks.analysis import NamedArray
    from stratascope.tasks.units import keep_probe

    folder = place_of(spectrum, steps)
    store = Store.open(folder, create=True)
    keep_probe(
        str(store.path), "test", ProbeSpec(dataset="digits", split="test", limit=100), str(folder), "made up"
    )
    generator = np.random.default_rng(0)
    start, end = (generator.normal(size=(SAMPLES, max(WIDTHS))) for _ in range(2))
    sample = ("decomposition_sample",)
    for step in range(steps):
        unit = Unit("checkpoint", "run", step, "decomposition")
        with store.stage(unit, f"{spectrum} {step}", {}) as staged:
            staged.write_array("test/sample_id", NamedArray(sample, np.arange(SAMPLES)))
            for number, width in enumerate(WIDTHS):
                decay = 0.0 if spectrum == "flat" else 0.75 + 0.25 * number / len(WIDTHS)
                share = step / max(1, steps - 1)
                scores = ((1 - share) * start + share * end)[:, :width] * np.arange(1, width + 1) ** -decay
                scores -= scores.mean(0)
                variance = (scores**2).sum(0) / (SAMPLES - 1)
                tail = np.sqrt(np.append((variance[::-1] ** 2).cumsum()[::-1], 0.0))
                kept = max(1, int(np.argmax(tail <= KEPT_GRAM * tail[0])))
                place = join_path("test", f"layer{number:02d}")
                arrays = {
                    "scores": NamedArray((*sample, "component"), scores[:, :kept].astype(np.float32), {"features": width}),
                    "variance": NamedArray(("every_component",), variance),
                    "squared_norm": NamedArray(sample, (scores**2).sum(1)),
                    "neighbour": NamedArray((*sample, "rank"), np.zeros((SAMPLES, 20), np.int32)),
                }  # fmt: skip
                for name, array in arrays.items():
                    staged.write_array(f"{place}/{name}", array)
            staged.commit()


def compare(kind: str, spectrum: str) -> dict[str, Any]:
    """One comparison from the archive, in this process, on one thread."""
    from stratascope.storage.checkpoint_files import RunSource
    from stratascope.storage.store import Store
    from stratascope.tasks.contexts import SeriesContext, Subject
    from stratascope.tasks.representation import similarity

    steps = 16 if kind == "pairs" else 200
    store = Store.open(place_of(spectrum, steps))
    source = RunSource(name="run", checkpoints="*", model={"factory": "made:up"})
    subject = Subject(store.location, "run", ("test",), source, str(store.path))
    context = SeriesContext(store, subject, tuple(range(steps)), {step: {"weights_digest": str(step)} for step in range(steps)})  # fmt: skip
    # 200 steps of a flat layer with 512 components are 820 MB by themselves, beside the layers of the chosen steps.
    options = similarity.SimilarityOptions(
        measures=(), matrices=("cka",), all_pairs=kind == "pairs", memory=800 if kind == "pairs" else 2000
    )
    read: list[int] = []
    reading = similarity.read_item

    def noted(*words: Any) -> Any:
        read.append(1)
        return reading(*words)

    similarity.read_item = noted
    found: dict[str, Any] = {}
    taken = measured(lambda: found.update(similarity.compute(context, options).arrays))
    values = found["test/cka/all_pairs" if kind == "pairs" else "test/cka/step_by_step"].values
    assert np.isfinite(values).all()
    kept = [store.array_info(f"runs/run/{0:012d}/decomposition/test/layer{number:02d}/scores")[1][1] for number in range(len(WIDTHS))]  # fmt: skip
    return {**taken, "numbers": int(values.size), "layers read": len(read), "kept components": kept}


def naive() -> dict[str, Any]:
    """One pair at a time from the features: centred Gram matrices, debiased; the mean over twelve pairs."""
    generator = np.random.default_rng(0)
    spent = []
    for width in WIDTHS:
        sides = [generator.normal(size=(SAMPLES, width)) for _ in range(2)]
        begun = time.perf_counter()
        grams = [side @ side.T for side in (values - values.mean(0) for values in sides)]
        for gram in grams:
            np.fill_diagonal(gram, 0)

        def criterion(first: np.ndarray, second: np.ndarray) -> float:
            rows = first.sum(1), second.sum(1)
            middle = rows[0].sum() * rows[1].sum() / ((SAMPLES - 1) * (SAMPLES - 2))
            return float((first * second).sum() + middle - 2 / (SAMPLES - 2) * (rows[0] @ rows[1]))

        assert np.isfinite(
            criterion(*grams) / np.sqrt(criterion(grams[0], grams[0]) * criterion(grams[1], grams[1]))
        )
        spent.append(time.perf_counter() - begun)
    pairs = 192 * 193 // 2
    return {"seconds": float(np.mean(spent)), "extrapolated seconds for all pairs": float(np.mean(spent)) * pairs}


def torch_cka() -> dict[str, Any]:
    """All layers of one pair of models by the package torch_cka, each layer's output one of `WIDTHS` wide."""
    import warnings
    from importlib.metadata import version

    import torch
    from torch_cka import CKA

    class Layers(torch.nn.Module):
        """Twelve layers that each hand out a given matrix: what is measured is the comparison, not the networks."""

        def __init__(self, seed: int) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in WIDTHS)
            self.given = [torch.randn(SAMPLES, width, generator=generator) for width in WIDTHS]

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            for layer, given in zip(self.layers, self.given, strict=True):
                layer(given[: len(batch)])
            return batch

    torch.set_num_threads(1)
    names = [f"layers.{number}" for number in range(len(WIDTHS))]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.zeros(SAMPLES, 1)), batch_size=SAMPLES
    )
    warnings.simplefilter("ignore")
    comparison = CKA(Layers(0), Layers(1), "first", "second", names, names)
    taken = measured(lambda: comparison.compare(loader))
    assert comparison.export()["CKA"].shape == (len(WIDTHS), len(WIDTHS))
    # A pair of models stands for 12 x 12 numbers; 16 models make 136 pairs with themselves.
    pairs = MODELS * (MODELS + 1) // 2
    return {**taken, "version": version("torch_cka"), "models": MODELS, "extrapolated seconds for all pairs": taken["processor_seconds"] * pairs}  # fmt: skip


def described(case: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of a case's rounds."""
    more = {} if case.startswith("naive") else {"peak bytes": summary(found, "peak_bytes"), "processor seconds": summary(found, "processor_seconds")}  # fmt: skip
    return {"seconds": summary(found), "last": found[-1], **more}


def main() -> None:
    if len(sys.argv) == 3:
        kind, spectrum = sys.argv[1:]
        alone = {"naive": naive, "torch_cka": torch_cka}
        print(json.dumps(alone[kind]() if kind in alone else compare(kind, spectrum)))
        return
    cases = CASES
    if sys.argv[1:] == ["peer"]:
        earlier = json.loads((RESULTS / "similarity.json").read_text())
        found = [in_own_process(__file__, *PEER.split())]
        earlier["cases"][PEER] = described(PEER, found)
        write_results("similarity", earlier | {"what": __doc__})
        return
    if importlib.util.find_spec("torch_cka") is None:
        print("torch_cka is left out: python -m pip install --no-deps torch_cka==0.21", file=sys.stderr)
    else:
        cases = (*CASES, PEER)
    shutil.rmtree(WORK / "similarity", ignore_errors=True)
    (WORK / "similarity").mkdir(parents=True)
    for spectrum in ("falling", "flat"):
        for steps in (16, 200):
            make_store(spectrum, steps)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    runs = interleaved(rounds, cases, lambda case: in_own_process(__file__, *case.split()))
    content = {case: described(case, found) for case, found in runs.items()}
    write_results("similarity", {"what": __doc__, "threads": 1, "rounds": rounds, "cases": content})
    shutil.rmtree(WORK / "similarity", ignore_errors=True)


if __name__ == "__main__":
    main()
