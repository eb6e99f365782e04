"""The words below the figures of experiments on memory."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "context": {
        "shows": "Loss at a token when only the last so many tokens are the sample's own, at step {step}: before them nothing, another sample's tokens, or the sample's own in random order. Mean over {n} samples, pale bands are 95 % bootstrap intervals; the dashed line is the loss with the whole past.",
        "reading": "Where a curve comes down to the dashed line, the network has got all it takes from the past. Where the shuffled past lies below the foreign one, it takes from far back which tokens there were, not their order.",
        "caution": "The last token alone costs {one:.3g} ({lead} it), the whole past {whole:.3g}. {gain} With nothing before it the network starts from zeros, which it may rarely have seen in training at such places: hold that curve against the others.",
        "audience": "For those who ask how much context a model uses.",
        "practitioner": "A context beyond the point where the curve is flat costs time and gains nothing. If it is not flat at its end, train and serve on longer sequences.",
        "researcher": "This is a causal experiment on the inputs, gradients play no part; it measures use, not storage. A past that is redundant counts as unused once its copy lies within the context.",
    },
    "impulse": {
        "shows": "Distance of each layer's state from what it would have been, by how many steps were read since the disturbance, at step {step}: after a push of the state in a random direction (in lengths of the push; a tenth of the usual length of the state unless configured), and after one token was replaced by another sample's (in usual lengths of the state). Mean over {n} samples, pale bands are 95 % intervals.",
        "reading": "A straight fall is forgetting by the same factor at every step. A curve that rises first, or stays, keeps or amplifies the difference: memory, or in the extreme chaos.",
        "caution": "{lives} Pushes are in random directions: a direction that the network itself uses may live far longer.",
        "audience": "For those who want to see the memory of a network without any gradient.",
        "practitioner": "If a wrong token still shakes the state after hundreds of steps, one outlier in a sensor or one typing error spoils all that follows; if nothing is left after five steps, the network cannot remember more than that.",
        "researcher": "The push has finite length, so gates may saturate on the way: the curve need not follow the Jacobian. Distances are means of norms, led by the largest.",
    },
    "answer": {
        "shows": "How far the answers move by the same disturbances, at step {step}: {distance}. Mean over {n} samples, pale bands are 95 % intervals.",
        "reading": "What the state keeps need not reach the answer. A curve far below that of the states is memory that the output does not read, at least not then.",
        "caution": "The strongest effect is {top:.2g}, of {which}; {last} steps on it is {left}. Answers that are nearly sure cannot move much, however far the state has.",
        "audience": "For those who care for what the network says, not for how it is built.",
        "practitioner": "This is the time for which one wrong input, or one reset, can still change what users see.",
        "researcher": "Where the answer comes at the end only, each distance is a disturbance of its own; where there is one at every step, all come from {places} at most.",
    },
    "erasure": {
        "shows": "By how much the loss rises, by the number of steps since the state of all layers was set to zero, at step {step}; for an LSTM also when the cell or the hidden state alone was. Mean over {n} samples, pale bands are 95 % intervals.",
        "reading": "Where the curve is back at zero, the network has rebuilt from the tokens since then all that it uses. The state whose loss hurts more is the one that carries the memory: in an LSTM it should be the cell.",
        "caution": "The largest rise is {top:.3g} ({which}, {when}). {end} Setting a state to zero also puts it where the network may never have been.",
        "audience": "For those who cut long streams into pieces, or reset states while serving.",
        "practitioner": "After a reset of the state, count on worse answers for as many steps as this curve takes to come down.",
        "researcher": "The excess mixes what is forgotten with the shock of an unusual state; the context curve with another sample's past has the first without the second.",
    },
    "course": {
        "shows": "Over the training, in steps: the shortest context that gives nine tenths of what the whole past gains, by what stands before it (context), and the half-life of the state after a push of it (push) and after a token was replaced (token), by layer.",
        "reading": "Curves that rise are memory that grows with training. A context length without the half-lives rising is better use of the same memory.",
        "caution": "At step {step}: {numbers} {bounds}",
        "audience": "For those who ask when in training memory comes to be.",
        "practitioner": "If these still grow at the last checkpoint, the network is still learning to look further back: train on.",
        "researcher": "Lengths come from interpolation between doubled contexts; a change of less than a third is within that grid.",
    },
}
