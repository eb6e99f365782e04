"""The tests that a map has to stand, for all samples of a question, and the rows that come of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.tasks.vision import map_tests
from stratascope.tasks.vision.chosen_samples import normal_noise, sample_generator
from stratascope.tasks.vision.forward_copy import forward_copy
from stratascope.tasks.vision.map_similarity import rank_correlations

if TYPE_CHECKING:
    from stratascope.tasks.vision.attribution_methods import Explained
    from stratascope.tasks.vision.attribution_trust import AttributionTrustOptions
    from stratascope.tasks.vision.explainers import Explainer

_LEAST_JUDGED = 6
"""Of fewer samples no one-sided Wilcoxon test can be surer than 5 %."""


@dataclass
class MethodScores:
    """What the tests found of one method; all by sample."""

    importance: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    road: np.ndarray
    """(sample, order, share): most relevant first, then least relevant first."""
    drop: np.ndarray
    infidelity: np.ndarray | None = None
    sensitivity: np.ndarray | None = None
    alike: np.ndarray | None = None
    """(sample, shuffled)."""

    @property
    def road_score(self) -> np.ndarray:
        return (self.road[:, 1] - self.road[:, 0]).mean(1) / 2


class Tests:
    """All tests of one question; what its `methods` need of it is made once."""

    def __init__(
        self, asked: Explained, blurred: np.ndarray, options: AttributionTrustOptions, methods: int
    ) -> None:
        self._asked, self._blurred, self._options = asked, blurred, options
        altered = 2 * len(map_tests.SHARES) + 2 * len(map_tests.REMOVED) + 1 + options.draws
        self._network = forward_copy(
            asked.network, asked.inputs[: asked.batch_size], methods * altered * len(asked)
        )
        self._inputs = asked.inputs.numpy()
        spans = np.ptp(self._inputs.reshape(len(asked), -1), axis=1)[:, None, None, None].astype(np.float32)
        shape = self._inputs.shape[1:]
        named = asked.sample_id
        self._fill = 0.01 * spans * np.concatenate([normal_noise(name, slice(0, 1), shape, asked.seed, "road") for name in named])  # fmt: skip
        self._noise = options.noise * spans[:, None] * np.stack([normal_noise(name, slice(0, options.draws), shape, asked.seed, "infidelity") for name in named])  # fmt: skip
        self._nudges = options.radius * spans[:, None] * np.stack(
            [
                np.stack([sample_generator(name, asked.seed, "nudge", draw).uniform(-1, 1, shape) for draw in range(options.nudges)])
                if options.nudges else np.zeros((0, *shape))
                for name in named
            ]
        )  # fmt: skip

    def probability(self, pictures: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float64 (copy,): the probability of the output asked about, or the score where outputs are no classes."""
        outputs = self._network.outputs_in_batches(pictures, self._asked.batch_size).double()
        indices = self._asked.indices[torch.from_numpy(rows)]
        if outputs.ndim == 2 and outputs.shape[1] > 1 and self._asked.target.function is None:
            outputs = outputs.softmax(1)
        return self._asked.target.scores(outputs, indices).numpy()

    def raw_score(self, pictures: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float64 (copy,): the score that the maps explain."""
        outputs = self._network.outputs_in_batches(pictures, self._asked.batch_size)
        return self._asked.target.scores(outputs, self._asked.indices[torch.from_numpy(rows)]).double().numpy()

    def of(self, explainer: Explainer) -> MethodScores:
        """Every test but that of the shuffled weights. Raises DoesNotApply where the maps are not finite."""
        importance = explainer.importance(self._asked)
        if not np.isfinite(importance).all():
            raise DoesNotApply(f"the maps of {explainer.title} are not finite.")
        deletion, insertion = map_tests.exchange_curves(
            self.probability, self._inputs, self._blurred, importance, map_tests.SHARES
        )
        most, least = map_tests.road_scores(
            self.probability, self._inputs, importance, self._fill, map_tests.REMOVED
        )
        drop = map_tests.confidence_drop(self.probability, self._inputs, self._blurred, importance)
        found = MethodScores(importance, deletion, insertion, np.stack([most, least], axis=1), drop)
        if explainer.maps is not None:
            maps = explainer.maps(self._asked)
            found.infidelity = map_tests.infidelity(self.raw_score, self._inputs, maps, self._noise)
        if self._options.nudges:
            found.sensitivity = self._sensitivity(explainer, importance)
        return found

    def _sensitivity(self, explainer: Explainer, importance: np.ndarray) -> np.ndarray:
        from dataclasses import replace

        sizes = np.linalg.norm(importance.reshape(len(importance), -1), axis=1)
        largest = np.zeros(len(importance))
        for draw in range(self._options.nudges):
            moved = torch.from_numpy((self._inputs + self._nudges[:, draw]).astype(np.float32))
            changed = explainer.importance(replace(self._asked, inputs=moved, shared={}))
            distance = np.linalg.norm((changed - importance).reshape(len(importance), -1), axis=1)
            largest = np.maximum(largest, distance)
        return np.divide(largest, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)

    def shuffle(self, explainers: Sequence[Explainer], scores: dict[str, MethodScores]) -> None:
        """Fill in how alike each method's maps are once the weights are shuffled; leaves it out where they cannot be."""
        from dataclasses import replace

        from stratascope.tasks.vision.weight_randomization import cascade

        alike: dict[str, list[np.ndarray]] = {name: [] for name in scores}
        try:
            for _, network in cascade(self._asked.network, self._options.shuffled, self._asked.seed):
                asked = replace(self._asked, network=network, shared={})
                for explainer in explainers:
                    if explainer.name in scores:
                        shuffled = explainer.importance(asked)
                        alike[explainer.name].append(
                            rank_correlations(scores[explainer.name].importance, shuffled)
                        )
        except DoesNotApply:
            return
        for name, found in alike.items():
            scores[name].alike = np.stack(found, axis=1)


def trust_rows(
    probe: str, name: str, found: MethodScores, null: MethodScores, options: AttributionTrustOptions
) -> Iterator[Row]:
    """Every row of one method: medians of the samples with a bootstrap interval, and the verdict with its reason."""
    part = f"method={name}"
    every: list[tuple[str, str, np.ndarray | None]] = [
        ("road_score", part, found.road_score), ("deletion_area", part, map_tests.area_below(found.deletion, map_tests.SHARES)),
        ("insertion_area", part, map_tests.area_below(found.insertion, map_tests.SHARES)), ("confidence_drop", part, found.drop),
        ("infidelity", part, found.infidelity), ("max_sensitivity", part, found.sensitivity),
    ]  # fmt: skip
    if found.alike is not None:
        for place, share in enumerate(options.shuffled):
            every.append(("shuffled_weights_similarity", f"{part};shuffled={share:g}", found.alike[:, place]))
    for metric, told, values in every:
        if values is not None:
            yield _mean_row(metric, told, probe, values, options.seed)
    yield _verdict(probe, name, found, null, options)


def _mean_row(metric: str, part: str, probe: str, values: np.ndarray, seed: int) -> Row:
    known = values[np.isfinite(values)]
    if not len(known):
        reason = "no sample has a number: maps or changes are zero everywhere"
        return Row(metric, part=part, probe=probe, status="does_not_apply", reason=reason)
    generator = np.random.default_rng(seed)
    means = known[generator.integers(len(known), size=(400, len(known)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Row(
        metric, float(known.mean()), low=float(low), high=float(high), n=len(known), part=part, probe=probe,
        estimator="mean; 95 % bootstrap over samples",
    )  # fmt: skip


def _verdict(
    probe: str, name: str, found: MethodScores, null: MethodScores, options: AttributionTrustOptions
) -> Row:
    about: dict[str, Any] = {"probe": probe, "part": f"method={name}", "n": len(found.drop)}
    if not found.importance.any():
        return Row("attribution_trusted", 0.0, reason="every map is zero", **about)
    if len(found.drop) < _LEAST_JUDGED:
        reason = f"{len(found.drop)} samples are too few to judge by; {_LEAST_JUDGED} are needed"
        return Row(
            "attribution_trusted", status="does_not_apply", reason=reason, **(about | {"n": len(found.drop)})
        )
    reasons = []
    if found.alike is not None:
        last = found.alike[:, -1]
        alike = float(np.nanmedian(last)) if np.isfinite(last).any() else 0.0
        if alike > options.most_alike:
            reasons.append(f"its maps hardly change when all weights are shuffled (rank correlation {alike:.2f})")
    better = _better_than(found.road_score, null.road_score)
    if name != "random" and better > options.significance:
        reasons.append(f"it is not surely better than a random order of the pixels (p = {better:.2g})")
    if name == "random":
        reasons.append("it is a random order, and knows nothing")
    return Row("attribution_trusted", 0.0 if reasons else 1.0, reason="; ".join(reasons), **about)


def _better_than(values: np.ndarray, null: np.ndarray) -> float:
    """One-sided p of Wilcoxon's signed-rank test that `values` are larger than `null`, sample by sample."""
    from scipy.stats import wilcoxon

    differences = values - null
    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences, alternative="greater").pvalue)
