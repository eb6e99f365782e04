"""Layers as `decomposition` filed them, pair by pair: their values, how sure those are, and the rows that say so."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.digests import identity_of
from stratascope.storage.ledger import Row
from stratascope.storage.units import Unit
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.decomposition import (
    Decomposition,
    DecompositionOptions,
    decomposed_layers,
    read_decomposition,
)
from stratascope.tasks.representation.features import chosen_rows, matching_names, read_features
from stratascope.tasks.representation.gram_products import Kernel, cka_error_bound, cka_matrix
from stratascope.tasks.representation.resampling import percentile_interval, permutation_p
from stratascope.tasks.representation.similarity_measures import NOISE, Measure
from stratascope.tasks.representation.similarity_resampling import Interval, WeightedKernel, drawn
from stratascope.tasks.representation.similarity_sides import Side

_CACHED_BYTES = 192 << 20
"""So much is held of what pairs share; at least four layers."""


@dataclass(frozen=True)
class Item:
    """One layer of one checkpoint."""

    context: CheckpointContext
    probe: str
    layer: str
    found: Decomposition

    @property
    def key(self) -> tuple[str, int, str]:
        return self.context.run, self.context.step, self.layer

    @property
    def bytes(self) -> int:
        """Of memory, as long as it is held."""
        return sum(item.nbytes for item in (self.found.scores, self.found.squared_norm, self.found.neighbour))

    def side(self) -> Side:
        """Ready for comparison; made anew each time, so that nothing is held longer than it is used."""
        return Side(self.found, self._features)

    def _features(self) -> np.ndarray:
        options = _decomposition_options(self.context)
        rows = chosen_rows(self.context.probes[self.probe], options.max_samples, options.seed)
        return read_features(self.context, options, self.probe, self.layer, rows).values


def _decomposition_options(context: CheckpointContext) -> DecompositionOptions:
    manifest = context.store.manifest(_unit(context))
    chosen = manifest.identity_parts.get("options", {}) if manifest is not None else {}
    return DecompositionOptions.model_validate(chosen)


def _unit(context: CheckpointContext) -> Unit:
    return Unit("checkpoint", context.run, context.step, "decomposition")


def token_of(context: CheckpointContext) -> str:
    """What stands for everything that this checkpoint's decomposed layers depend on: equal tokens, equal numbers."""
    manifest = context.store.manifest(_unit(context))
    identity = manifest.identity if manifest is not None else ""
    return identity_of({"decomposition": identity, "weights": context.facts.get("weights_digest")})


def read_item(context: CheckpointContext, probe: str, layer: str) -> Item:
    """What `decomposition` filed of a layer. Raises DoesNotApply with the reason that it gave for having nothing."""
    try:
        return Item(context, probe, layer, read_decomposition(context, probe, layer))
    except DoesNotApply:
        rows = context.store.rows([_unit(context)])
        refused = rows[(rows["status"] != "ok") & (rows["probe"] == probe) & rows["layer"].isin([layer, ""])]
        reasons = [reason for reason in refused["reason"] if reason]
        if reasons:
            raise DoesNotApply(reasons[0]) from None
        raise


def chosen_layers(contexts: Iterable[CheckpointContext], probe: str, patterns: Sequence[str]) -> list[str]:
    """Decomposed layers that `patterns` (names, globs, `re:…`) mean, in the order of the first of `contexts` that has them."""
    found: dict[str, None] = {}
    for context in contexts:
        found |= dict.fromkeys(decomposed_layers(context, probe))

    wanted = {name for pattern in patterns for name in matching_names(pattern, list(found))}
    return [layer for layer in found if layer in wanted]


class Pairs:
    """All that is asked of pairs of items with one measure."""

    def __init__(self, measure: Measure, rounds: int, shuffles: int, seed: int) -> None:
        self.measure = measure
        self.rounds, self.shuffles, self.seed = rounds, shuffles, seed
        self.reasons: dict[tuple[Any, Any], str] = {}
        """Why a pair, by its items' keys, has no value."""
        self._held: OrderedDict[tuple[str, int, str], WeightedKernel] = OrderedDict()

    def matrix(self, items: Sequence[Item | None], needed: np.ndarray) -> np.ndarray:
        """float64 (item, item): the values of all `needed` (item, item) pairs of items that are there, else NaN."""
        values = np.full(needed.shape, np.nan)
        places = [place for place, item in enumerate(items) if item is not None]
        if self.measure.kernel:
            kernels = {}
            for place in places:
                try:
                    kernels[place] = self._kernel(items[place])
                except DoesNotApply as reason:
                    self._refuse(items, place, str(reason))
            inside = np.ix_(list(kernels), list(kernels))
            if needed[inside].any():
                try:
                    values[inside] = cka_matrix(list(kernels.values()), self.measure.debiased, needed[inside])
                except DoesNotApply as reason:
                    for place in kernels:
                        self._refuse(items, place, str(reason))
            values[~needed] = np.nan
            return values
        sides: dict[int, Side] = {}
        for first, second in np.argwhere(needed):
            if items[first] is None or items[second] is None:
                continue
            if self.measure.symmetric and np.isfinite(values[second, first]):
                values[first, second] = values[second, first]
                continue
            values[first, second] = self._value(items, sides, int(first), int(second))
        return values

    def _value(self, items: Sequence[Item | None], sides: dict[int, Side], first: int, second: int) -> float:
        one, other = items[first], items[second]
        assert one is not None
        assert other is not None
        if len(sides) > 3 + _CACHED_BYTES // (one.found.scores.nbytes * 4 + 1):
            sides.clear()
        try:
            return self.measure.checked(
                sides.setdefault(first, one.side()), sides.setdefault(second, other.side())
            )
        except DoesNotApply as reason:
            self.reasons[one.key, other.key] = str(reason)
            return float("nan")

    def _kernel(self, item: Item | None) -> Kernel:
        assert item is not None
        assert self.measure.kernel
        return Kernel(item.side(), self.measure.kernel)

    def _refuse(self, items: Sequence[Item | None], place: int, reason: str) -> None:
        one = items[place]
        assert one is not None
        for other in items:
            if other is not None:
                self.reasons[one.key, other.key] = self.reasons[other.key, one.key] = reason

    def reason(self, first: Item, second: Item) -> str:
        """Why the pair has no value."""
        return self.reasons.get((first.key, second.key)) or NOISE.format(n=len(first.found.scores))

    def interval(self, first: Item, second: Item, value: float) -> Interval:
        """The 95 % interval of the pair's `value`; NaN twice where none is asked for."""
        if self.rounds < 2 or not np.isfinite(value):
            return float("nan"), float("nan")
        if self.measure.kernel:
            return percentile_interval(self._weighted(first).cka(self._weighted(second)))
        return self.measure.interval(first.side(), second.side(), value, self.rounds, self.seed)

    def _weighted(self, item: Item) -> WeightedKernel:
        if item.key in self._held:
            self._held.move_to_end(item.key)
            return self._held[item.key]
        n = len(item.found.scores)
        most = max(4, _CACHED_BYTES // (n * (4 * n + 12 * self.rounds)))
        while len(self._held) >= most:
            self._held.popitem(last=False)
        weights = drawn(n, self.rounds, self.seed)
        self._held[item.key] = WeightedKernel(self._kernel(item), weights, self.measure.debiased)
        return self._held[item.key]

    def rows(
        self, first: Item, second: Item, value: float, interval: Interval, part: str = "", null: bool = False, **more: Any
    ) -> list[Row]:  # fmt: skip
        """The finding about one pair, filed under the first item; with `null` also what shuffled samples would give."""
        about = self.about(first, second, part) | more
        if not np.isfinite(value):
            return [Row(self.measure.metric, status="does_not_apply", reason=self.reason(first, second), **about)]
        rows = [Row(self.measure.metric, float(value), low=interval[0], high=interval[1], **about)]
        if null and self.shuffles > 1:
            shuffled = self.measure.null(first.side(), second.side(), self.shuffles, self.seed)
            if np.isfinite(shuffled).any():
                low, high = percentile_interval(shuffled)
                towards = 1.0 if self.measure.kind == "similarity" else -1.0
                chance = f"p={permutation_p(towards * value, towards * shuffled):.3g}"
                beside = {"part": joined(about["part"], "null=permuted"), "convention": f"{about['convention']};rounds={self.shuffles};{chance}"}  # fmt: skip
                rows.append(
                    Row(self.measure.metric, float(np.nanmean(shuffled)), low=low, high=high, **(about | beside))
                )
        return rows

    def about(self, first: Item, second: Item, part: str = "") -> dict[str, Any]:
        """What is filed of a pair beside its value."""
        convention = f"d={first.found.features};other_d={second.found.features}"
        if self.measure.kernel == "linear":
            convention += f";error_bound={cka_error_bound(first.side(), second.side(), self.measure.debiased):.1e}"
        if self.measure.chance is not None:
            convention += f";chance={self.measure.chance(first.side(), second.side()):.3g}"
        return {
            "layer": first.layer, "probe": first.probe, "step": first.context.step, "n": len(first.found.scores),
            "part": joined(part, self.measure.part), "estimator": self.measure.estimator, "convention": convention,
        }  # fmt: skip


@cache
def joined(*parts: str) -> str:
    """The parts of a row's `part` that are not empty."""
    return ";".join(filter(None, parts))
