"""Passes with gates on attention heads: what a head's output is worth to the loss.

A gate ξ multiplies the output of a head before the heads are joined; 1 leaves it, 0 takes it away (Michel, Levy and Neubig
2019, section 2.3). Each sample has gates of its own, so that its gradient is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stratascope.errors import DoesNotApply
from stratascope.tasks.given_samples import GivenSamples
from stratascope.tasks.representation.losses import counted_rows
from stratascope.tasks.sequence.attention_calls import AttentionCall, AttentionSpec, captured_attention
from stratascope.tasks.sequence.attention_scores import entropy_share, masked_attention
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.step_losses import step_losses
from stratascope.tasks.vision.sample_gradients import LossKind

Head = tuple[str, int]
"""Layer and number."""


@dataclass(frozen=True)
class GatedNetwork:
    """A network, the samples that it is asked about, and the loss."""

    network: SequenceNetwork
    samples: GivenSamples
    kind: LossKind
    spec: AttentionSpec
    batch_size: int

    @torch.no_grad()
    def calls(self) -> list[AttentionCall]:
        """The attention of the first batch whose heads can be gated. Raises DoesNotApply where there is none."""
        rows = self.network.batches_of(self.samples, self.batch_size)[0]
        with captured_attention(self.network, self.spec) as recorder:
            self.network.run(self.samples.part(rows))
            found = recorder.take()
        if not found:
            raise DoesNotApply(
                "no attention of this network can be seen; name its modules with `modules` or `softmax`."
            )
        gated = [call for call in found if call.gated]
        if not gated:
            raise DoesNotApply("the heads of this network's attention cannot be switched off one by one.")
        return gated

    def gradients(self, heads: Mapping[str, int]) -> dict[str, np.ndarray]:
        """float64 (sample, head) by layer: ∂ loss of the sample / ∂ ξ at ξ = 1."""
        found: dict[str, list[np.ndarray]] = {layer: [] for layer in heads}
        for rows in self.network.batches_of(self.samples, self.batch_size):
            part = self.samples.part(rows)
            with torch.enable_grad():
                gates = {
                    layer: torch.ones(len(part), count, device=self.network.device, requires_grad=True)
                    for layer, count in heads.items()
                }
                with captured_attention(self.network, self.spec, gates):
                    losses = step_losses(self.network.run(part), part, self.kind).whole()
                if not losses.requires_grad:
                    raise DoesNotApply("no gradient of the loss reaches the attention.")
                slopes = torch.autograd.grad(losses.sum(), list(gates.values()), materialize_grads=True)
            for layer, slope in zip(gates, slopes, strict=True):
                found[layer].append(slope.double().cpu().numpy())
        return {layer: np.concatenate(parts) for layer, parts in found.items()}

    @torch.no_grad()
    def scores_without(self, heads: Mapping[str, int], removed: frozenset[Head]) -> np.ndarray:
        """float64 (score, sample): the loss of each sample, and the share that is right, NaN for numbers, without those heads."""
        gates = {
            layer: torch.ones(count) for layer, count in heads.items() if any(layer == name for name, _ in removed)
        }
        for layer, number in removed:
            gates[layer][number] = 0
        gates = {layer: item.to(self.network.device) for layer, item in gates.items()}
        found = []
        for rows in self.network.batches_of(self.samples, self.batch_size):
            part = self.samples.part(rows)
            if gates:
                with captured_attention(self.network, self.spec, gates):
                    outputs = self.network.run(part)
            else:
                outputs = self.network.run(part)
            losses = step_losses(outputs, part, self.kind).whole()
            found.append(torch.stack([losses.double(), self._right(outputs.cpu(), part)]).numpy())
        return np.concatenate(found, 1)

    def _right(self, outputs: Tensor, part: GivenSamples) -> Tensor:
        if self.kind.task == "regression":
            return torch.full((len(part),), torch.nan, dtype=torch.float64)
        rows = counted_rows(outputs, torch.as_tensor(part.targets), part.mask, self.kind.task)
        right = (rows.outputs.argmax(-1) == rows.targets).double()
        counts = torch.bincount(rows.owner, minlength=len(part)).clamp(min=1)
        return torch.zeros(len(part), dtype=torch.float64).index_add(0, rows.owner, right) / counts

    @torch.no_grad()
    def focus(self, real: Mapping[str | None, np.ndarray]) -> dict[str, np.ndarray]:
        """float64 (head,) by layer: 1 − entropy as a share of that of uniform attention, mean over samples.

        `real` has the real tokens (sample, token) of each input; padding does not count.
        """
        sums: dict[str, list[np.ndarray]] = {}
        with captured_attention(self.network, self.spec) as recorder:
            for rows in self.network.batches_of(self.samples, self.batch_size):
                part = self.samples.part(rows)
                self.network.run(part)
                for call in recorder.take():
                    masks = [real.get(name) for name in (call.query_input, call.key_input)]
                    queries, keys = (None if mask is None else torch.from_numpy(mask[rows]) for mask in masks)
                    keys = keys if not call.added_keys else None
                    share = entropy_share(masked_attention(call.weights[: len(part)], queries, keys, call.allowed))
                    sums.setdefault(call.layer, []).append(1 - share.double().cpu().numpy())
        joined = {layer: np.concatenate(parts) for layer, parts in sums.items()}
        return {layer: _mean_of_known(values) for layer, values in joined.items()}


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """The mean over samples (axis 0) of what is a number; NaN where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
