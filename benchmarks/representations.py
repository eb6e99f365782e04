"""How long the measures of one layer at one checkpoint take: n = 2,000 samples, d = 512 features, one thread.

`python benchmarks/representations.py` writes medians with their spread to `results/representations.json`. Each case is a
process of its own, rounds are interleaved. A case is a function in `CASES` that measures one group of measures: it makes
what it needs first and returns what is to be timed. To add a group, write one such function and list it.
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
from measuring import RESULTS, in_own_process, interleaved, measured, summary, write_results

SAMPLES, FEATURES, CLASSES = 2000, 512, 10
ROUNDS = 200
LIMITS = {0: 2.0, ROUNDS: 20.0}
"""Seconds that a group may take, by rounds of resampling."""
OWN_LIMITS = {"linear probe": {0: 10.0, ROUNDS: 20.0}}
"""A probe is fitted ninety times for its path and folds alone."""

SIMILARITIES = (
    "cka", "cka_rbf", "svcca", "pwcca", "procrustes_distance", "shape_distance_0.5", "rsa_correlation_spearman",
    "rsa_euclidean_pearson", "mutual_knn", "linear_predictivity",
)  # fmt: skip
"""`cka` and `procrustes_distance` stand in the ledger by default."""

Work = Callable[[], Any]


def layer() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (sample, feature) with classes that overlap and a falling spectrum, classes, and outputs (sample, class)."""
    generator = np.random.default_rng(0)
    classes = np.arange(SAMPLES) % CLASSES
    sizes = np.arange(1, FEATURES + 1) ** -0.5
    centres = generator.normal(size=(CLASSES, FEATURES)) * sizes
    values = centres[classes] + generator.normal(size=(SAMPLES, FEATURES)) * sizes
    outputs = generator.normal(size=(SAMPLES, CLASSES)) + 3 * np.eye(CLASSES)[classes]
    return values.astype(np.float32), classes, outputs


def features() -> Any:
    """That layer as an analysis reads it."""
    from stratascope.tasks.representation.features import Features

    values, classes, _ = layer()
    names = tuple(map(str, range(CLASSES)))
    return Features("test", "layer", values, classes, np.arange(SAMPLES), names)


def separation(rounds: int) -> Work:
    """All scores of separation and neural collapse, with as many permutations as rounds of resampling."""
    from stratascope.tasks.analysis import Findings
    from stratascope.tasks.representation.separation import LayerScores, SeparationOptions

    item = features()
    decisions = layer()[2].argmax(1)
    weights = np.random.default_rng(1).normal(size=(CLASSES, FEATURES))
    options = SeparationOptions(bootstrap=rounds, permutations=rounds)
    return lambda: LayerScores(item, options, decisions, weights).file(Findings())


def geometry(rounds: int) -> Work:
    """Spectrum, intrinsic dimension, anisotropy, class clouds and hubs."""
    from stratascope.tasks.analysis import Findings
    from stratascope.tasks.representation.geometry import GeometryOptions, measure

    item = features()
    return lambda: measure(item, GeometryOptions(bootstrap=rounds), "classification", Findings())


def linear_probe(rounds: int) -> Work:
    """The probe of the layer with its path of penalties; with `rounds`, intervals and the default controls too."""
    from stratascope.tasks.analysis import Findings
    from stratascope.tasks.representation.linear_probe import LinearProbeOptions
    from stratascope.tasks.representation.probe_controls import control_labels
    from stratascope.tasks.representation.probe_findings import LayerProbe, ProbeSamples
    from stratascope.tasks.representation.probe_folds import stratified_folds
    from stratascope.tasks.representation.resampling import bootstrap_counts

    item = features()
    values, classes, _ = layer()
    plain = {"permutations": 0, "control_groups": 0, "block_fractions": ()}
    options = LinearProbeOptions(bootstrap=rounds, **({} if rounds else plain))
    folds = stratified_folds(classes, np.arange(SAMPLES), options.folds)
    control = control_labels(values, classes, options.control_groups, 0) if rounds else ""
    samples = ProbeSamples(folds, classes, bootstrap_counts(SAMPLES, rounds, 0), control)
    return lambda: LayerProbe(item, samples, options.work).file_classes(Findings())


def similarity(measure: str) -> Callable[[int], Work]:
    """One layer against the same layer a checkpoint before, by one measure; what was decomposed once is there already."""

    def of(rounds: int) -> Work:
        from types import SimpleNamespace

        from stratascope.tasks.representation.decomposition import decompose
        from stratascope.tasks.representation.similarity_measures import MEASURES
        from stratascope.tasks.representation.similarity_pairs import Item, Pairs

        class Given(Item):
            def _features(self) -> np.ndarray:
                return self.context.values  # type: ignore[attr-defined]

        values, _, _ = layer()
        noise = np.random.default_rng(2).normal(size=values.shape).astype(np.float32)
        items = [
            Given(SimpleNamespace(run="run", step=step, values=given), "test", "layer", decompose(given, 1e-4, 20))  # type: ignore[arg-type]
            for step, given in enumerate((values, values + 0.3 * noise * values.std(0)))
        ]

        def work() -> None:
            pairs = Pairs(MEASURES[measure], rounds, 0, 0)
            value = pairs.matrix(items, np.array([[False, True], [False, False]]))[0, 1]
            assert np.isfinite(value)
            pairs.interval(items[0], items[1], value)

        return work

    return of


def scikit_learn(rounds: int) -> Work:
    """Beside them: scikit-learn's silhouette, Davies-Bouldin index and leave-one-out votes, without any interval."""
    from sklearn.metrics import davies_bouldin_score, silhouette_score
    from sklearn.neighbors import NearestNeighbors

    values, classes, _ = layer()

    def work() -> None:
        silhouette_score(values, classes)
        davies_bouldin_score(values, classes)
        near = NearestNeighbors(n_neighbors=15, algorithm="brute").fit(values).kneighbors(return_distance=False)
        np.apply_along_axis(np.bincount, 1, classes[near], minlength=CLASSES).argmax(1)

    return work


CASES: dict[str, tuple[Callable[[int], Work], tuple[int, ...]]] = {
    "separation": (separation, (0, ROUNDS)),
    "geometry": (geometry, (0, ROUNDS)),
    "linear probe": (linear_probe, (0, ROUNDS)),
    **{f"similarity, {measure}": (similarity(measure), (0, ROUNDS)) for measure in SIMILARITIES},
    "scikit-learn: three of separation's scores": (scikit_learn, (0,)),
}
"""The groups, and with how many rounds of resampling each is measured."""


def one_case(case: str) -> dict[str, Any]:
    """One group once, in this process, on one thread; a first call on other data has loaded what is loaded late."""
    from threadpoolctl import threadpool_limits

    name, _, rounds = case.rpartition(", rounds ")
    work = CASES[name][0](int(rounds))
    with threadpool_limits(limits=1):
        CASES[name][0](0)()
        return measured(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="groups whose name begins so; the results of all others stay in the file")
    parser.add_argument("--case")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(one_case(options.case)))
        return
    chosen = {name: item for name, item in CASES.items() if name.startswith(options.only or "")}
    cases = [f"{name}, rounds {rounds}" for name, (_, every) in chosen.items() for rounds in every]
    runs = interleaved(options.rounds, cases, lambda case: in_own_process(__file__, "--case", case))
    table = {
        case: {
            "seconds": summary(found), "processor seconds": summary(found, "processor_seconds"),
            "peak megabytes": max(item["peak_bytes"] for item in found) / 1e6,
            "limit in seconds": OWN_LIMITS.get(case.rpartition(", rounds ")[0], LIMITS)[int(case.rpartition(" ")[2])],
        }
        for case, found in runs.items()
    }  # fmt: skip
    setting = f"n = {SAMPLES}, d = {FEATURES}, {CLASSES} classes, float32, one thread, one layer of one checkpoint"
    kept = {}
    if options.only:
        # What these were measured with is kept beside them: the file's own words speak of the last whole run.
        earlier = json.loads((RESULTS / "representations.json").read_text())
        for case in table.values():
            case["measured alone, rounds"] = options.rounds
        kept = {case: found for case, found in earlier["cases"].items() if case not in table}
        options.rounds = earlier["rounds"]
    write_results("representations", {"setting": setting, "rounds": options.rounds, "cases": kept | table})


if __name__ == "__main__":
    main()
