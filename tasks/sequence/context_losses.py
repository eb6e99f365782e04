"""The loss of a network that is given the last few tokens only, after nothing, another sample's past, or its own shuffled.

Works for whatever reads sequences of any length; no state is looked at.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from stratascope.errors import CaptureError, DoesNotApply
from stratascope.tasks.given_samples import GivenSamples
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.step_losses import step_losses
from stratascope.tasks.vision.sample_gradients import LossKind

PASTS = ("none", "other", "shuffled")


def doubling(longest: int) -> list[int]:
    """1, 2, 4, … and `longest`."""
    found = [2**power for power in range(max(1, longest).bit_length()) if 2**power < longest]
    return [*found, longest] if longest > 0 else found


def context_losses(
    network: SequenceNetwork, part: GivenSamples, others: np.ndarray, ends: np.ndarray, contexts: list[int], past: str,
    kind: LossKind, seed: int,
) -> np.ndarray:  # fmt: skip
    """float64 (sample, context): the loss at each sample's last token when the last so many tokens are its own.

    `ends` int64 (sample,) is the place of that token, -1 to leave a sample out (NaN). `past` says what stands before
    them: `none`, the network starts at the first of them; `other`, the same places of `others`, inputs (sample, …) like
    the part's own; `shuffled`, its own tokens in an order drawn for its id. A context longer than what a sample has is
    all it has. Raises DoesNotApply where the network cannot read such a piece.
    """
    if isinstance(part.inputs, Mapping):
        raise DoesNotApply("the network reads several inputs at once: there is no one past to take away.")
    found = np.full((len(part), len(contexts)), np.nan)
    for place, context in enumerate(contexts):
        starts = np.maximum(0, ends + 1 - context)
        spans = np.stack([starts if past == "none" else np.zeros_like(starts), ends + 1], 1)
        # Samples of one length go together: nothing has to be padded.
        for span in np.unique(spans[ends >= 0], axis=0):
            rows = np.flatnonzero((spans == span).all(1) & (ends >= 0))
            inputs = _steps_first(part.inputs[rows])[:, span[0] : span[1]]
            if past != "none":
                inputs = _with_past(
                    inputs, _steps_first(others[rows]), starts[rows], past, part.sample_id[rows], seed
                )
            found[rows, place] = _loss_at_the_end(network, part, rows, inputs, span, kind)
    return found


def _steps_first(inputs: np.ndarray) -> np.ndarray:
    """(sample, time, …): images (sample, channel, y, x) are read row by row."""
    return np.moveaxis(inputs, 2, 1) if inputs.ndim == 4 else inputs


def _with_past(
    inputs: np.ndarray, others: np.ndarray, starts: np.ndarray, past: str, sample_id: np.ndarray, seed: int
) -> np.ndarray:
    found = inputs.copy()
    for row, (start, name) in enumerate(zip(starts, sample_id.tolist(), strict=True)):
        if past == "other":
            found[row, :start] = others[row, :start]
        else:
            generator = np.random.default_rng([seed, zlib.crc32(str(name).encode()), int(start)])
            found[row, :start] = inputs[row, generator.permutation(int(start))]
    return found


@torch.no_grad()
def _loss_at_the_end(
    network: SequenceNetwork, part: GivenSamples, rows: np.ndarray, inputs: np.ndarray, span: np.ndarray, kind: LossKind
) -> np.ndarray:  # fmt: skip
    """float64 (row,)."""
    assert part.targets is not None
    stepwise = part.targets.ndim > 1 and part.targets.shape[1] >= span[1] and kind.task == "tokens"
    stepwise = stepwise or (kind.task == "regression" and part.targets.ndim == 3)
    targets = part.targets[rows]
    given = np.moveaxis(inputs, 1, 2) if np.asarray(part.inputs).ndim == 4 else inputs
    piece = replace(
        part, rows=part.rows[rows], inputs=np.ascontiguousarray(given), mask=None, sample_id=part.sample_id[rows],
        targets=targets[:, span[0] : span[1]] if stepwise else targets,
    )  # fmt: skip
    try:
        outputs = torch.cat(
            [network.run(piece.part(some)) for some in network.batches_of(piece, len(piece))]
        ).cpu()
    except CaptureError as error:
        raise DoesNotApply(f"the network cannot read {inputs.shape[1]} steps alone ({error}).") from error
    losses = step_losses(outputs, piece, kind)
    return (losses.values[:, -1] if losses.stepwise else losses.whole()).double().numpy()


def gain_length(losses: np.ndarray, contexts: list[int], share: float) -> float:
    """How many tokens give `share` of what all of them gain over the last one alone, linear in the number's logarithm.

    `losses` (context + 1,): those of `contexts`, which start with 1, then that of the whole past. NaN where the whole
    past gains nothing; infinite where the longest context does not reach the share.
    """
    known = np.isfinite(losses[:-1])
    gain = losses[0] - losses[-1]
    if not known.any() or not gain > 0:
        return float("nan")
    reached = np.where(known, (losses[0] - losses[:-1]) / gain, -np.inf)
    above = np.flatnonzero(reached >= share)
    if not len(above):
        return float("inf")
    place = int(above[0])
    if place == 0:
        return float(contexts[0])
    before, after = reached[place - 1], reached[place]
    part = (share - before) / (after - before)
    ends = np.log2(contexts[place - 1]), np.log2(contexts[place])
    return float(2 ** (ends[0] + part * (ends[1] - ends[0])))
