"""What maps of samples cost: t-SNE against openTSNE by hand, a common start against own ones, components out of core.

    python benchmarks/embedding.py tsne --samples 10000
    python benchmarks/embedding.py consensus --samples 2000
    python benchmarks/embedding.py components --rows 1000000 --features 512

The first two take MNIST's test features from a store whose audit captured the layer: `--store`, `--run`, `--layer`.
Each case runs in a process of its own on one thread. The ratio that counts is that of processor seconds, which other work
on the machine hardly touches; it stands for each round, and for the medians. Results stand in `benchmarks/results/embedding_<what>.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import RESULTS, in_own_process, interleaved, machine, measured, summary

CASES = {
    "tsne": ("ours", "by_hand"),
    "consensus": ("consensus", "independent"),
    "components": ("gram", "scikit_learn"),
}
_BLOCK = 8192


def features(options: argparse.Namespace, most_steps: int) -> list[np.ndarray]:
    """float64 (sample, feature) of the layer at the last of `most_steps` evenly chosen steps."""
    from stratascope.storage.probes import read_probe
    from stratascope.storage.store import Store
    from stratascope.tasks.representation.features import chosen_rows
    from stratascope.tasks.representation.pictures import even_choice

    store = Store.open(options.store)
    rows = chosen_rows(read_probe(store, options.probe), options.samples, 0)
    steps = store.captured_steps(options.run)
    chosen = even_choice(steps, most_steps) if most_steps > 1 else steps[-1:]
    place = "runs/{}/{:012d}/activations/{}/{}/pooled"
    return [
        store.array(place.format(options.run, step, options.probe, options.layer))[rows].astype(np.float64)
        for step in chosen
    ]


def tsne(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """One map of the last step: from features to places, components included."""
    from stratascope.tasks.representation.maps import KEPT_COMPONENTS, principal_components, scaled
    from stratascope.tasks.representation.tsne import Tsne

    (values,) = features(options, 1)
    found: dict[str, float] = {}

    def ours() -> None:
        mapper = Tsne()
        ready = mapper.prepared(scaled(principal_components(values, KEPT_COMPONENTS)[0]))
        found["divergence"] = mapper.alone(ready, 2).divergence

    def by_hand() -> None:
        from openTSNE import TSNE
        from sklearn.decomposition import PCA

        wanted = min(KEPT_COMPONENTS, *values.shape)
        made = TSNE(n_jobs=1, random_state=0).fit(PCA(wanted).fit_transform(values))
        found["divergence"] = float(made.kl_divergence)

    return measured(ours if case == "ours" else by_hand) | found


def consensus(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Maps of all steps; affinities are found before the clock starts, since both need the same ones."""
    from stratascope.tasks.representation.map_quality import movement
    from stratascope.tasks.representation.maps import KEPT_COMPONENTS, principal_components, scaled
    from stratascope.tasks.representation.tsne import Tsne

    mapper = Tsne()
    every = features(options, options.steps)
    ready = [mapper.prepared(scaled(principal_components(values, KEPT_COMPONENTS)[0])) for values in every]
    maps: list[Any] = []

    def common() -> None:
        start = mapper.consensus(ready, 2).positions
        maps.extend(mapper.continued(item, start) for item in ready)

    def own() -> None:
        maps.extend(mapper.alone(item, 2) for item in ready)

    found = measured(common if case == "consensus" else own)
    moves = [movement(a.positions, b.positions) for a, b in pairwise(maps)]
    return found | {"divergences": [item.divergence for item in maps], "movement": float(np.mean(moves))}


def blocks(options: argparse.Namespace) -> Iterator[np.ndarray]:
    """float32 (sample, feature) blocks of a decaying spectrum, made as they are asked for."""
    scale = np.geomspace(10, 0.1, options.features).astype(np.float32)
    for number, start in enumerate(range(0, options.rows, _BLOCK)):
        generator = np.random.default_rng([0, number])
        count = min(_BLOCK, options.rows - start)
        yield generator.standard_normal((count, options.features), np.float32) * scale


def components(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """The 50 leading components of all rows; making the blocks is part of both."""
    found: dict[str, Any] = {}

    def gram() -> None:
        from stratascope.tasks.representation.principal_components import components_of_blocks

        found["variance"] = components_of_blocks(blocks(options), 50).variance[:5].tolist()

    def scikit_learn() -> None:
        from sklearn.decomposition import IncrementalPCA

        model = IncrementalPCA(50)
        for block in blocks(options):
            if len(block) >= 50:
                model.partial_fit(block)
        found["variance"] = model.explained_variance_[:5].tolist()

    work: Callable[[], None] = gram if case == "gram" else scikit_learn
    return measured(work) | found


def compared(what: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The numbers that the claims are about."""
    first, second = CASES[what]
    seconds, processor = (
        {case: summary(found, key)["median"] for case, found in runs.items()}
        for key in ("seconds", "processor_seconds")
    )
    peaks = {case: summary(found, "peak_bytes")["median"] for case, found in runs.items()}
    told = {
        "seconds_first_over_second": seconds[first] / seconds[second],
        "processor_seconds": processor,
        "processor_seconds_first_over_second": processor[first] / processor[second],
        "ratio_in_each_round": [
            one["processor_seconds"] / two["processor_seconds"]
            for one, two in zip(runs[first], runs[second], strict=True)
        ],
        "peak_bytes": peaks,
    }
    if what == "consensus":
        common, own = (np.array(runs[case][0]["divergences"]) for case in (first, second))
        told |= {
            "mean_divergence_cost": float(common.mean() / own.mean() - 1), "costs": (common / own - 1).tolist(),
            "movement": {case: runs[case][0]["movement"] for case in (first, second)},
        }  # fmt: skip
    elif what == "tsne":
        told["divergence_over_by_hand"] = runs[first][0]["divergence"] / runs[second][0]["divergence"]
    else:
        pair = (np.array(runs[case][0]["variance"]) for case in (first, second))
        told["largest_difference_of_variance"] = float(np.max(np.abs(np.divide(*pair) - 1)))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=CASES)
    parser.add_argument("--case", default="")
    parser.add_argument("--store", default="")
    parser.add_argument("--run", default="lenet")
    parser.add_argument("--probe", default="test")
    parser.add_argument("--layer", default="fc2:input")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what != "components" and not options.store:
        parser.error("--store: the store whose audit captured the layer")
    if options.case:
        print(json.dumps(globals()[options.what](options.case, options)))
        return
    words = [item for item in sys.argv[1:] if item != options.what]
    runs = interleaved(
        options.rounds,
        CASES[options.what],
        lambda case: in_own_process(__file__, options.what, *words, "--case", case),
    )
    told = compared(options.what, runs)
    asked = {name: value for name, value in vars(options).items() if name not in ("case", "store")}
    result = {"machine": machine(), "options": asked, "compared": told, "runs": runs}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"embedding_{options.what}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
