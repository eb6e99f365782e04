"""All maps of one layer over a series of steps: what was kept, what is made now, and how good each is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.digests import identity_of
from stratascope.storage.probes import Probe
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.representation.features import chosen_rows, read_features
from stratascope.tasks.representation.kept_maps import (
    MEASURES,
    Kept,
    kept_map,
    steady_choice,
    step_digests,
    unknown_quality,
)
from stratascope.tasks.representation.map_quality import (
    Estimate,
    distance_correlations,
    judged,
    kept_neighbours,
)
from stratascope.tasks.representation.maps import KEPT_COMPONENTS, scaled, turned_onto, unfit
from stratascope.tasks.representation.principal_components import principal_scores
from stratascope.tasks.representation.tsne import MOST_SOLID, Mapped, Tsne
from stratascope.tasks.representation.umap_and_pacmap import GraphMap

if TYPE_CHECKING:
    from stratascope.tasks.representation.embedding import EmbeddingOptions

FEATURES = "features"
"""Stands for the features themselves among the maps."""
_HELD_SAMPLES = 300_000
"""Of more samples than these over all steps, affinities are found again rather than held."""


@dataclass
class LayerMaps:
    """What is known of one layer on one probe: its maps by name, and the steps that have them."""

    context: SeriesContext
    options: EmbeddingOptions
    probe: Probe
    layer: str
    rows: np.ndarray
    """Row numbers of the mapped samples in the probe."""
    names: tuple[str, ...]
    """The maps that are made: `pca_2d` …"""
    solid: np.ndarray = field(init=False)
    """bool (sample,): which of them are mapped in three dimensions."""
    steps: list[int] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)
    maps: dict[str, Kept] = field(default_factory=dict)
    _scores: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _prepared: dict[tuple[str, str, bool], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        few = set(chosen_rows(self.probe, min(MOST_SOLID, len(self.rows)), self.options.seed).tolist())
        self.solid = np.array([row in few for row in self.rows.tolist()])

    # -- what goes in ------------------------------------------------------------------------------------

    def samples_of(self, name: str) -> np.ndarray:
        """bool (sample,): which of the samples the map `name` holds."""
        return self.solid if name.endswith("_3d") else np.ones(len(self.rows), bool)

    def count_of(self, name: str) -> int:
        return int(self.samples_of(name).sum())

    def recipe(self, name: str) -> dict[str, Any]:
        """What a map is made by, apart from the features: where this is the same, the old maps hold."""
        options, method = self.options, name.partition("_")[0]
        made = {
            "samples": identity_of({"sample_id": self.probe.sample_id[self.rows].tolist()}),
            "probe": self.probe.digest, "reduction": options.reduction, "seed": options.seed,
        }  # fmt: skip
        if method == FEATURES:
            return made
        made |= {"solver": options.solver, "comparable": options.comparable}
        if method == "tsne":
            made |= {
                "perplexity": list(options.perplexities), "iterations": options.iterations,
                "exaggeration": options.exaggeration, "angle": options.angle,
            }  # fmt: skip
        elif method != "pca":
            made |= {"neighbours": options.neighbours}
        return made

    def values(self, step: int) -> np.ndarray:
        """The features (sample, feature) at `step`. Raises DoesNotApply where they cannot be mapped."""
        found = read_features(self.context.at(step), self.options, self.probe.name, self.layer, self.rows).values
        if reason := unfit(found):
            raise DoesNotApply(reason)
        return found

    def scores(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Principal components and their shares of the variance; found once for all steps with the same features."""
        key = self.digests[step]
        if key not in self._scores:
            count = max(KEPT_COMPONENTS, *self.options.dimensions)
            values = self.values(step).astype(np.float64)
            self._scores[key] = principal_scores(values, count, self.options.solver, self.options.seed)
        return self._scores[key]

    # -- the work ----------------------------------------------------------------------------------------

    def make(self) -> None:
        """Choose the steps, take over what holds, make what is missing, and judge it."""
        place = (self.probe.name, self.layer)
        self.digests = step_digests(self.context, *place, self.context.steps)
        for name in (FEATURES, *self.names):
            self.maps[name] = kept_map(self.context, place, name, self.recipe(name), self.digests)
        complete = [set(self.maps[name].quality) for name in (FEATURES, *self.names)]
        known = frozenset(set.intersection(*complete))
        chosen = steady_choice(self.context.steps, self.options.max_steps, known)
        for step in self.context.steps:
            if step not in chosen:
                most = self.options.max_steps
                self.skipped.append((step, f"left out: the maps show {most} checkpoints at most"))
                continue
            try:
                if step not in known:
                    self.scores(step)
            except DoesNotApply as reason:
                self.skipped.append((step, str(reason)))
                continue
            self.steps.append(step)
        if not self.steps:
            return
        for name in self.names:
            self._map(name)
        self._judge()
        self._compare_starts()

    def _twin(self, kept: dict[int, np.ndarray], step: int) -> np.ndarray | None:
        """What is known of another step whose features are the same."""
        twins = (other for other in self.steps if other in kept and self.digests[other] == self.digests[step])
        found = next(twins, None)
        return None if found is None else kept[found]

    def _map(self, name: str) -> None:
        method, _, end = name.partition("_")
        dimensions = int(end[0])
        kept = self.maps[name]
        missing = [step for step in self.steps if step not in kept.positions]
        if method == "pca":
            self._map_by_axes(kept, missing, dimensions)
            return
        mapper = self.mapper(method)
        comparable = self.options.comparable
        if self._lacks_start(kept, missing) and comparable in ("consensus", "last", "procrustes"):
            newest = self.steps if comparable == "consensus" else self.steps[-1:]
            kept.start_facts = kept.start_facts or self._made_from(name, kept.anew, newest)
            kept.start = self._start(mapper, name, dimensions, kept.start_facts["steps"]).astype(np.float32)
        for step in missing:
            quality = kept.quality[step] = unknown_quality()
            twin = self._twin(kept.positions, step) if comparable != "chain" else None
            if twin is not None:
                kept.positions[step] = twin
                continue
            mapped = self._at_step(mapper, name, dimensions, step)
            kept.positions[step] = mapped.positions.astype(np.float32)
            quality[MEASURES.index("kl_divergence"), 0] = mapped.divergence
            if comparable in ("independent", "procrustes"):
                quality[MEASURES.index("kl_divergence_of_own_start"), 0] = mapped.divergence

    def _map_by_axes(self, kept: Kept, missing: Sequence[int], dimensions: int) -> None:
        inside = self.solid if dimensions == 3 else slice(None)
        if self._lacks_start(kept, missing) and self.options.comparable != "independent":
            kept.start_facts = kept.start_facts or self._made_from("pca", kept.anew, self.steps[-1:])
            (only,) = kept.start_facts["steps"]
            kept.start = self.scores(only)[0][inside, :dimensions].astype(np.float32)
        for step in missing:
            scores, shares = self.scores(step)
            drawn = scores[inside, :dimensions]
            if kept.start is not None:
                drawn = turned_onto(drawn, kept.start)
            kept.positions[step] = drawn.astype(np.float32)
            quality = kept.quality[step] = unknown_quality()
            quality[MEASURES.index("explained_variance"), 0] = float(shares[:dimensions].sum())

    @staticmethod
    def _lacks_start(kept: Kept, missing: Sequence[int]) -> bool:
        """Whether a start is to be made: for the maps that are missing, or because the one that there was is lost."""
        return kept.start is None and bool(missing or kept.start_facts)

    def mapper(self, method: str) -> Tsne | GraphMap:
        options = self.options
        if method == "tsne":
            return Tsne(
                options.perplexities, options.iterations, options.exaggeration, options.seed, options.angle
            )
        return GraphMap(method, options.neighbours, options.seed)  # type: ignore[arg-type]

    def _ready(self, mapper: Tsne | GraphMap, name: str, step: int) -> Any:
        """What `mapper` needs of `step`, held where all steps together are few enough."""
        key = (name.partition("_")[0], self.digests[step], bool(self.samples_of(name).all()))
        if key in self._prepared:
            return self._prepared[key]
        ready = mapper.prepared(scaled(self.scores(step)[0])[self.samples_of(name)])
        if len(self.steps) * len(self.rows) <= _HELD_SAMPLES:
            self._prepared[key] = ready
        return ready

    def _start(self, mapper: Any, name: str, dimensions: int, steps: Sequence[int]) -> np.ndarray:
        if self.options.comparable == "consensus":
            every: Iterator[Any] = (self._ready(mapper, name, step) for step in steps)
            return np.asarray(mapper.consensus(every, dimensions).positions)
        return np.asarray(mapper.alone(self._ready(mapper, name, steps[-1]), dimensions).positions)

    def _made_from(self, name: str, anew: str, steps: Sequence[int]) -> dict[str, Any]:
        """The attributes of a start: from which steps and features it was made, and by what."""
        method = name.partition("_")[0]
        package = {"tsne": "openTSNE", "umap": "umap-learn", "pacmap": "pacmap"}.get(method, "scipy")
        made = {"steps": list(steps), "digests": [self.digests[step] for step in steps]}
        return {**made, "made_from": identity_of(made), "made_anew": anew, "package": f"{package} {version(package)}"}  # fmt: skip

    def _at_step(self, mapper: Any, name: str, dimensions: int, step: int) -> Mapped:
        kept, comparable = self.maps[name], self.options.comparable
        ready = self._ready(mapper, name, step)
        start = kept.start
        if comparable == "chain":
            before = [other for other in kept.positions if other < step]
            start = kept.positions[max(before)] if before else None
        if comparable == "last" and kept.start_facts.get("digests") == [self.digests[step]]:
            # The start is this step's own map; it would only be moved on.
            assert start is not None
            return Mapped(start, mapper.alone(ready, dimensions).divergence)
        if comparable in ("independent", "procrustes") or start is None:
            found = mapper.alone(ready, dimensions)
            return found if start is None else Mapped(turned_onto(found.positions, start), found.divergence)
        joined: Mapped = mapper.continued(ready, start)
        return joined

    # -- how good ----------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """How well each map that is new keeps neighbours and distances; equal maps of equal features are judged once."""
        for step in self.steps:
            features = self.maps[FEATURES].quality
            lacking = [name for name in self.names if not self._is_judged(name, step)]
            lacking = [name for name in lacking if not self._judged_elsewhere(name, step)]
            if step not in features and (twin := self._twin(features, step)) is not None:
                features[step] = twin.copy()
            if not lacking and step in features:
                continue
            # Read again rather than kept: the features of all steps together may not fit into the memory.
            values = self.values(step)
            for inside, names in self._by_samples(lacking):
                self._judge_maps(step, values[inside], inside, names)
            features[step][MEASURES.index("feature_count"), 0] = values.shape[1]

    def _is_judged(self, name: str, step: int) -> bool:
        return bool(np.isfinite(self.maps[name].quality[step][MEASURES.index("trustworthiness"), 0]))

    def _judged_elsewhere(self, name: str, step: int) -> bool:
        """Take over what another step with the same features and the same map was judged to be, if there is one."""
        kept = self.maps[name]
        for other in self.steps:
            same = self.digests[other] == self.digests[step] and self._is_judged(name, other)
            if same and np.array_equal(kept.positions[other], kept.positions[step]):
                kept.quality[step] = kept.quality[other].copy()
                return True
        return False

    def _by_samples(self, names: Sequence[str]) -> Iterator[tuple[np.ndarray, list[str]]]:
        """The maps that hold all samples, with the features themselves, and those that hold some."""
        every = np.ones(len(self.rows), bool)
        flat = [name for name in names if self.samples_of(name).all()]
        yield every, flat
        if rest := [name for name in names if name not in flat]:
            yield self.solid, rest

    def _judge_maps(self, step: int, values: np.ndarray, inside: np.ndarray, names: Sequence[str]) -> None:
        classes = self.classes
        classes = None if classes is None else classes[inside]
        maps = {name: self.maps[name].positions[step] for name in names}
        found = judged(values, maps, classes, self.options.seed)
        for name, more in distance_correlations(values, maps, classes, self.options.seed).items():
            found[name] |= more
        if inside.all():
            self.maps[FEATURES].quality.setdefault(step, unknown_quality())
        else:
            found.pop("")
        for name, estimates in found.items():
            quality = self.maps[name or FEATURES].quality[step]
            for measure, estimate in estimates.items():
                quality[MEASURES.index(measure)] = estimate

    @property
    def classes(self) -> np.ndarray | None:
        """int64 (sample,): the class of each sample; None where the targets are no classes."""
        targets = self.probe.targets
        if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
            return None
        return targets[self.rows].astype(np.int64)

    def _compare_starts(self) -> None:
        """The price of a common start, at some steps; and at the last one how much of the map another start would keep."""
        own, stable = MEASURES.index("kl_divergence_of_own_start"), MEASURES.index("seed_stability")
        priced = steady_choice(self.steps, self.options.priced_steps)
        for name in self.names:
            method, _, end = name.partition("_")
            if method == "pca":
                continue
            mapper, kept = self.mapper(method), self.maps[name]
            for step in priced:
                quality = kept.quality[step]
                if method == "tsne" and not np.isfinite(quality[own, 0]):
                    ready = self._ready(mapper, name, step)
                    quality[own, 0] = mapper.alone(ready, int(end[0])).divergence
            last = self.steps[-1]
            if self.options.stability_seeds and not np.isfinite(kept.quality[last][stable, 0]):
                kept.quality[last][stable] = self._stability(mapper, name, last)

    def _stability(self, mapper: Any, name: str, step: int) -> Estimate:
        ready = self._ready(mapper, name, step)
        dimensions = int(name.partition("_")[2][0])
        seeds = range(self.options.seed + 1, self.options.seed + 1 + self.options.stability_seeds)
        others = [mapper.alone(ready, dimensions, seed).positions for seed in seeds]
        return kept_neighbours(self.maps[name].positions[step], others, self.options.seed)
