"""The words below the figures of head importance."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "ablation": {
        "shows": "How much the loss of probe {probe} rises when the output of one attention head is set to zero, for every head, at step {step}; the slider goes through the checkpoints on one scale.",
        "reading": "A bright cell is a head that the answers rest on. A cell near zero can be taken away without a loss; below zero the network does better without the head. A head that lights up from one step to the next has begun to matter there.",
        "caution": "At step {step} the interval of {unsure} of {heads} heads holds 0: of them it cannot be said that they matter. The most important is {best} with {best_value:.3g} of a loss of {loss}. One head at a time: where two do the same work, each alone looks idle.",
        "audience": "For those who look at attention weights and want to know which of them count.",
        "practitioner": "Read weights of the bright heads first; what an idle head looks at explains no answer.",
        "researcher": "Ablation by zero moves the network off its data: a head whose mean output carries a bias looks important for that alone. Mean ablation would tell the two apart.",
    },
    "agreement": {
        "shows": "Each point is an attention head at step {step}: upwards, the rise of the loss without it (with its 95 % interval). Left against the derivative of the loss by a gate on the head, right against how pointed its weights are (0 uniform, 1 all weight on one token).",
        "reading": "If points rise to the right on the left-hand side, the cheap gradient orders heads as ablation does. On the right-hand side a cloud without direction means that pointed weights say nothing about whether a head matters.",
        "caution": "Rank correlation with the rise of the loss: {gradient} for the gradient, {focus} for pointed weights, over {heads} heads. {verdict}",
        "audience": "For those who take a striking attention map for an explanation.",
        "practitioner": "Weights say where a head looks, not whether the answer depends on it. Take the maps of heads that stand high here.",
        "researcher": "The gradient is linear about the open gate; saturated heads have small ones and large effects. Pointedness is 1 less normalised entropy, so sinks on the first token count as pointed.",
    },
    "pruning": {
        "shows": "{what} of probe {probe} when more and more attention heads are set to zero at step {step}: least important first by gradient or by ablation, and in {draws} random orders (pale lines).",
        "reading": "The longer a line stays level, the more heads the network can do without. An order is worth what it is better than the random ones.",
        "caution": "In the order by {order} {share:.0%} of {heads} heads can go before {harm} by more than {tolerance:.0%} of itself; at random {random:.0%}. One half of the samples gave the order, the {n} others the curve. Nothing is trained again in between.",
        "audience": "For those who want a smaller network, or to know how many heads do the work.",
        "practitioner": "Heads on the level part are candidates to be removed; train on a little afterwards before you judge.",
        "researcher": "Greedy orders from single effects ignore what heads do together; a level line bounds redundancy from below.",
    },
    "over_training": {
        "shows": "The rise of the loss of probe {probe} without one head, over the checkpoints, for the {shown} that ever mattered most; pale bands are 95 % intervals.",
        "reading": "Where a line leaves zero, the network begins to use that head. Lines that cross show work that moves from one head to another.",
        "caution": "{best} has the largest rise at the last step, {value:.3g}, where the loss is {loss}; a loss that falls makes equal work look smaller. {rest}",
        "audience": "For those who ask when a head came to matter.",
        "practitioner": "Hold it against the curves of what heads look at: a pattern that forms before its line rises is not yet used.",
        "researcher": "The rise is in nats of a loss that changes itself; divide by the loss for a share.",
    },
}
