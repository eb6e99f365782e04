"""Gradients through time, one by one: of the loss at each loss step, by the state at each source step.

The states are those of an unrolled recurrent layer, still in the graph of the losses. A derivative by a state is the whole
one: over all the ways on which a change of this state, alone, would reach the loss. Nothing here calls cuDNN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

AFTER_THE_END = -1
"""The loss step of a loss that is taken once, of the whole sequence."""


def natural_window(counts: Tensor) -> int:
    """As many steps as stand behind at least half of the steps at which the loss counts, their own included: half of a
    sequence with a loss at every step, all of one whose loss comes at the end. `counts` is bool (sample, time)."""
    found = torch.nonzero(counts.any(0)).flatten().tolist()
    return int(found[(len(found) - 1) // 2]) + 1 if found else 1


def chosen_loss_steps(counts: Tensor, most: int, window: int) -> list[int]:
    """At most `most` of the steps at which the loss counts for a sample, evenly, the last among them; ascending.

    `counts` is bool (sample, time). Steps that have `window` steps before them, their own included, are preferred, so
    that every lag of the window is seen from the same loss steps.
    """
    found = torch.nonzero(counts.any(0)).flatten().tolist()
    late = [step for step in found if step + 1 >= window]
    steps = late or found[-1:]
    if len(steps) <= most:
        return steps
    return [steps[len(steps) - 1 - round(place * len(steps) / most)] for place in range(most)][::-1]


def itemised_norms(
    losses: Sequence[Tensor], states: Sequence[Sequence[Tensor]], spans: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """For each list of states float64 (loss, sample, time): the norm over units of the gradient of each sample's loss.

    `losses` are (sample,) each, `states` lists over time of (sample, unit), one list for each kind of state. Of loss
    number n gradients are asked by the states from `spans[n][0]` to `spans[n][1]` - 1 only, which bounds how far back
    is gone; other places are NaN. Zero where the loss does not depend on a state, infinite where a gradient is not
    finite. The graph is kept.
    """
    found = [torch.full((len(losses), len(line[0]), len(line)), torch.nan, dtype=torch.float64) for line in states]
    for number, (loss, (first, last)) in enumerate(zip(losses, spans, strict=True)):
        asked = [state for line in states for state in line[first:last]]
        gradients = torch.autograd.grad(
            loss.sum(), asked, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        width = last - first
        for place in range(len(states)):
            own = gradients[place * width : (place + 1) * width]
            norms = torch.stack([gradient.double().norm(dim=-1) for gradient in own], dim=1)
            found[place][number, :, first:last] = norms.nan_to_num(nan=torch.inf).cpu()
    return found


def before_activation(
    cell: str,
    gates: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    hidden: Tensor,
    hidden_gradient: Tensor,
) -> list[Tensor]:
    """Gradients (…, unit) of a loss by what the recurrent weights add to, in the order of torch's weight blocks.

    `gates` and `gradients` are the gates' values and the gradients by them, `hidden` and `hidden_gradient` those of h_t;
    all of one step or of many. Derivatives of sigmoid and tanh follow from their values.
    """
    if cell == "lstm":
        slopes = {name: value * (1 - value) for name, value in gates.items() if name != "candidate"}
        slopes["candidate"] = 1 - gates["candidate"] ** 2
        return [gradients[name] * slopes[name] for name in ("input", "forget", "candidate", "output")]
    if cell == "gru":
        # torch's reset gate acts after the product with the weights, bias included.
        inner = gradients["candidate"] * (1 - gates["candidate"] ** 2) * gates["reset"]
        outer = [gradients[name] * gates[name] * (1 - gates[name]) for name in ("reset", "update")]
        return [*outer, inner]
    slope = 1 - hidden**2 if cell == "rnn_tanh" else (hidden > 0).to(hidden.dtype)
    return [hidden_gradient * slope]


def weight_gradients(blocks: Sequence[Tensor], previous: Tensor) -> Tensor:
    """(time, row, column): what each source step adds to the gradient by the recurrent weights, summed over samples.

    `blocks` are those of `before_activation`, (sample, time, unit) each, `previous` is h_{t-1} (sample, time, unit). Over
    time it sums to the gradient of backpropagation through time.
    """
    rows = torch.cat(list(blocks), dim=-1)
    return torch.einsum("str,stc->trc", rows, previous)
