"""What is kept of the attention of a layer: sums over samples, batch by batch, and the weights of the samples that are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import NamedArray
from stratascope.tasks.sequence.attention_axes import PatchGrid
from stratascope.tasks.sequence.attention_calls import AttentionCall
from stratascope.tasks.sequence.attention_patterns import (
    KNOWN_PATTERNS,
    AttentionPattern,
    chance_score,
    pattern_keys,
    pattern_score,
)
from stratascope.tasks.sequence.attention_scores import (
    MaskedAttention,
    SampleMoments,
    distance,
    entropy,
    entropy_share,
    lag_profile,
    locality,
    masked_attention,
    patch_distances,
    sink_masses,
    token_distances,
)
from stratascope.tasks.sequence.sequence_samples import SHOWN

_MEAN_BYTES = 64 << 20
"""Mean weights that would take more are not kept."""
WITHOUT_FIRST = ";first_token=without"
"""Ends the name of a score that leaves the first token out."""
_MARGIN = 1.96
WRONG = 1e-4
"""With a larger residual the weights are not those that the layer used."""


@dataclass(frozen=True)
class Asked:
    """What is measured of every layer."""

    window: int = 3
    lags: int = 32
    sinks: int = 8
    patterns: Mapping[str, AttentionPattern] = field(default_factory=dict)


@dataclass
class LayerStatistics:
    """One layer's attention over the samples so far."""

    call: AttentionCall
    """The first one, without its weights."""
    asked: Asked
    grid: PatchGrid | None
    shown: int
    """So many first samples are kept as they are."""
    place: int = 0
    """Its number in the order of execution."""
    scores: dict[str, SampleMoments] = field(default_factory=dict)
    chances: dict[str, SampleMoments] = field(default_factory=dict)
    lags: SampleMoments = field(default_factory=SampleMoments)
    sinks: SampleMoments = field(default_factory=SampleMoments)
    weights: list[Tensor] = field(default_factory=list)
    total: Tensor | None = None
    count: int = 0
    whole: bool = True
    """Whether all samples so far had one length, so that a mean over them means something."""
    blind: int = 0
    """Real queries that see no key."""

    def add(self, call: AttentionCall, queries: Tensor | None, keys: Tensor | None, tokens: Tensor | None) -> None:
        """Take in a batch. `queries` and `keys` bool (sample, token) are true for real ones, None where all are;
        `tokens` int (sample, token) are the codes of both axes, None where they are of different inputs or no codes."""
        kept = max(0, min(self.shown - self.count, len(call.weights)))
        if kept:
            self.weights.append(call.weights[:kept].half().cpu())
        self._add_to_mean(call.weights, queries, keys)
        self.count += len(call.weights)
        attention = self._measured(call, queries, keys)
        real = (
            attention.rows.new_ones(attention.rows.shape[::2])
            if queries is None
            else queries.to(attention.weights.device)
        )
        self.blind += int((real[:, None] & ~attention.rows).any(1).sum())
        for name, values in self._values(attention, tokens).items():
            self.scores.setdefault(name, SampleMoments()).add(values)
        masses = sink_masses(attention, self.asked.sinks)
        self.sinks.add(masses)
        if self.in_line:
            count = min(self.asked.lags, max(1, attention.weights.shape[-1] - 1))
            first = 0 if self.one_way(attention) else -count
            # Lags that this batch is too short for are unknown, not absent.
            width = 2 * self.asked.lags + 1
            lines = torch.full((*attention.weights.shape[:2], width), torch.nan, dtype=torch.float64)
            middle = self.asked.lags
            lines[..., middle + first : middle + count + 1] = lag_profile(attention, range(first, count + 1)).cpu()
            self.lags.add(lines)

    @property
    def in_line(self) -> bool:
        """Whether queries and keys are the tokens of one sequence, so that there are distances and lags along it."""
        return self.call.kind != "graph" and self.grid is None and self._same

    @property
    def _same(self) -> bool:
        call = self.call
        return call.kind == "self" or (call.kind == "named" and call.query_input is not None and call.query_input == call.key_input)  # fmt: skip

    @staticmethod
    def one_way(attention: MaskedAttention) -> bool:
        """Whether no query may look ahead."""
        return not bool(attention.allowed.triu(1).any())

    def _measured(self, call: AttentionCall, queries: Tensor | None, keys: Tensor | None) -> MaskedAttention:
        weights, allowed = call.weights, call.allowed
        if call.added_keys:
            weights = weights[..., : -call.added_keys]
            allowed = None if allowed is None else allowed[..., : -call.added_keys]
        attention = masked_attention(weights, queries, keys, allowed)
        if keys is None and not call.added_keys:
            return attention
        # What went to padding, or to keys that are no tokens, is taken from the rows.
        return attention.without(torch.zeros_like(attention.keys))

    def _values(self, attention: MaskedAttention, tokens: Tensor | None) -> dict[str, Tensor]:
        """(sample, head) by score."""
        found = {"attention_entropy": entropy(attention), "attention_entropy_share": entropy_share(attention)}
        found["sink_mass"] = sink_masses(attention)[..., 0]
        if self.grid is not None:
            patches = attention.cut(self.grid.leading)
            lengths = patch_distances(self.grid.rows, self.grid.columns)
            found["attention_distance"] = distance(patches, lengths)
            found["locality"] = distance(patches, (lengths <= self.asked.window).float())
        elif self.in_line:
            lengths = token_distances(*attention.weights.shape[-2:])
            found["attention_distance"] = distance(attention, lengths)
            found["locality"] = locality(attention, self.asked.window)
            later = attention.without_first()
            found[f"attention_entropy{WITHOUT_FIRST}"] = entropy(later)
            found[f"attention_distance{WITHOUT_FIRST}"] = distance(later, lengths)
            for name, pattern in (KNOWN_PATTERNS | dict(self.asked.patterns)).items():
                if pattern.needs_tokens and tokens is None:
                    continue
                wanted = pattern_keys(pattern, attention, tokens)
                found[f"{name}_score"] = pattern_score(attention, wanted)
                self.chances.setdefault(f"{name}_score", SampleMoments()).add(chance_score(attention, wanted))
        return found

    def _add_to_mean(self, weights: Tensor, queries: Tensor | None, keys: Tensor | None) -> None:
        whole = all(real is None or bool(real.all()) for real in (queries, keys))
        fits = weights[0].numel() * 8 <= _MEAN_BYTES and (
            self.total is None or self.total.shape == weights.shape[1:]
        )
        self.whole &= whole and fits
        if self.whole:
            added = weights.double().sum(0).cpu()
            self.total = added if self.total is None else self.total + added
        else:
            self.total = None

    # What is filed.

    def arrays(self) -> Iterator[tuple[str, NamedArray]]:
        """(name, array) of the layer."""
        call = self.call
        about: dict[str, Any] = {
            "residual": call.residual if np.isfinite(call.residual) else None, "kind": call.kind, "query_input": call.query_input, "key_input": call.key_input,
            "added_keys": call.added_keys, "place": self.place,
        }  # fmt: skip
        if self.grid is not None:
            about["grid"] = [self.grid.leading, self.grid.rows, self.grid.columns, self.grid.patch]
        if self.weights:
            sizes = [max(item.shape[axis] for item in self.weights) for axis in (2, 3)]
            padded = [torch.nn.functional.pad(item, (0, sizes[1] - item.shape[3], 0, sizes[0] - item.shape[2])) for item in self.weights]  # fmt: skip
            yield "weights", NamedArray((SHOWN, "head", "query", "key"), torch.cat(padded).numpy(), about)
        names = list(self.scores)
        values = np.stack([self.scores[name].mean.numpy() for name in names]).astype(np.float32)
        yield "scores", NamedArray(("score", "head"), values, {"score": names} | about)
        yield "sink", NamedArray(("head", "leading_key"), self.sinks.mean.numpy().astype(np.float32))
        if self.lags.count is not None:
            lags = self.lags.mean.numpy().astype(np.float32)
            middle = self.asked.lags
            known = np.flatnonzero(np.isfinite(lags).any(0))
            if len(known):
                span = slice(int(known[0]), int(known[-1]) + 1)
                lagged = {"lag": list(range(span.start - middle, span.stop - middle))}
                yield "lag_profile", NamedArray(("head", "lag"), lags[:, span], lagged)
        if self.whole and self.total is not None:
            mean = (self.total / self.count).numpy().astype(np.float32)
            yield "mean_weights", NamedArray(("head", "query", "key"), mean)

    def rows(self, probe: str) -> Iterator[Row]:
        """A row for each head and score, and the layer's residual."""
        about: dict[str, Any] = {"probe": probe, "layer": self.call.layer}
        yield residual_row(self.call, about)
        facts = [f"queries that see no key: {self.blind}"] if self.blind else []
        facts += [f"without the {self.call.added_keys} keys that are no tokens"] if self.call.added_keys else []
        for name, moments in self.scores.items():
            mean, error, count = moments.mean, moments.standard_error, moments.measured
            chance = [f"chance={float(self.chances[name].mean):.4g}"] if name in self.chances else []
            metric, _, rest = name.partition(";")
            pattern = name.removesuffix("_score")
            if pattern in self.asked.patterns and pattern not in KNOWN_PATTERNS:
                metric, rest = "pattern_score", f"pattern={pattern}"
            unit = "patch" if metric == "attention_distance" and self.grid is not None else ""
            for head in range(len(mean)):
                part = f"head={head}" + (f";{rest}" if rest else "")
                value, spread = float(mean[head]), _MARGIN * float(error[head])
                if not count[head]:
                    reason = "no sample has a query that this can be measured for" + (", and none has weights that are numbers" if self.blind else "")  # fmt: skip
                    yield Row(metric, part=part, status="does_not_apply", reason=reason, **about)
                    continue
                yield Row(
                    metric, value, part=part, n=int(count[head]), low=value - spread, high=value + spread,
                    estimator="mean over samples; low and high: 1.96 standard errors", convention="; ".join(facts + chance), unit=unit, **about,
                )  # fmt: skip
        for metric, why in self._left_out().items():
            yield Row(metric, status="does_not_apply", reason=why, **about)

    def _left_out(self) -> dict[str, str]:
        """Metrics that make no sense for this layer, with the reason."""
        names = [f"{name}_score" for name in KNOWN_PATTERNS]
        if self.grid is not None:
            return dict.fromkeys(names, "its tokens are patches of a picture, which have no order along a line")
        if not self.in_line:
            why = "its queries and keys are not the tokens of one sequence: there is no distance between them"
            return dict.fromkeys(["attention_distance", "locality", *names], why)
        why = "its tokens have no codes that could be compared"
        return {name: why for name in names if name not in self.scores}


def residual_row(call: AttentionCall, about: Mapping[str, Any]) -> Row:
    """How far the output made of the weights is from the real one; `vacuous` where they are not those that the layer used."""
    metric, convention = "attention_residual", f"kind={call.kind}"
    if not np.isfinite(call.residual):
        if call.blind:
            reason = "the weights of the first batch are no numbers, so nothing can be held against them"
            return Row(metric, status="failed", reason=reason, convention=convention, **about)
        reason = "what the module does with its weights cannot be seen, so nothing can be held against them"
        return Row(metric, status="does_not_apply", reason=reason, convention=convention, **about)
    estimator = "largest difference over the largest output, first batch"
    if call.residual > WRONG:
        reason = f"the weights do not give the layer's output: they are off by {call.residual:.2g} of it"
        return Row(metric, call.residual, status="vacuous", reason=reason, convention=convention, estimator=estimator, **about)  # fmt: skip
    return Row(metric, call.residual, convention=convention, estimator=estimator, **about)
