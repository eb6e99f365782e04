"""The words below the figures of gradients through time."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "decay": {
        "shows": "Norm of the gradient of a sample's loss by the state of each recurrent layer, by how many steps before the loss that state was reached, at step {step}; mean over {loss_steps} and over {n} samples, pale bands are 95 % bootstrap intervals. Dotted: the first checkpoint, step {first}.",
        "reading": "A straight line down is a gradient that vanishes by the same factor at every step; a flat one is memory that training can reach. The cell state of an LSTM should lie flatter than what a plain network has. A line that rises to the right is a gradient that explodes.",
        "caution": "In {best} half of the gradient within the window of {window} steps lies in the nearest {half:.1f} steps and nine tenths in {ninety:.1f}; after {last} steps {left} of it is left. {limit}",
        "audience": "For those who ask how far back a recurrent network can learn from.",
        "practitioner": "If the gradient is gone long before the distance that your task needs, longer training will not help: take gates (LSTM, GRU), a forget bias above zero, or shorter distances. If it is flat up to the window's end, a longer window may pay.",
        "researcher": "The derivative by h_t or c_t is the whole one, over all ways forward, taken from an unrolled copy of the layer that differs from the real one by at most {residual:.1e} of its output. Means of norms are led by the samples with the largest. A gradient at a state says that the loss could be changed from there, not that the network stores anything there.",
    },
    "table": {
        "shows": "The same, one by one: power of ten of the mean gradient norm of the loss at each chosen loss step (line) by the {state} of {layer} at each source step (column). Move the slider to go through the checkpoints; all share one scale.",
        "reading": "Each line ends at its own loss step on the right, where it is brightest, and fades to the left. Lines that fade alike mean that memory depends on the distance alone; bright columns are steps that every later loss hangs on.",
        "caution": "{count} of {total} loss steps were asked, each at most {window} steps back: empty cells were not asked, they are not zero. At step {step} the darkest cell holds {faint:.1e} and the brightest {bright:.1e}.",
        "audience": "For those who want to see where in the sequence long dependencies begin.",
        "practitioner": "Cutting sequences for truncated training throws away all that lies left of the cut: see here whether anything was there.",
        "researcher": "Means over samples hide places that differ between them: a column shows only where all samples have the same structure at the same step. The rest is in the array shown, sample by sample.",
    },
    "sample": {
        "shows": "Sample {sample}: norm of the gradient of {loss} by the {state} of {layer} when each of these tokens had just been read, at step {step}.",
        "reading": "A high bar is a moment in the text at which a small change of the state would move this loss most. The bar of the loss step itself has another colour: its state feeds the prediction directly.",
        "caution": "{shown} of the {real} tokens are drawn; the highest bar but the last stands {distance} before the end, at {share:.0%} of the highest. One sample is an anecdote.",
        "audience": "For those who want to see the numbers on a text or series that they know.",
        "practitioner": "If the bars fall off within a word or two, the network predicts from spelling; if some far back stand out, look at what stands there.",
        "researcher": "A gradient is local: gates that are saturated hide dependencies that an erased past would show. Hold it against the forgetting experiments.",
    },
    "jacobian": {
        "shows": "How much of a small change of the {state} of {layer} is left after so many further steps, at step {step}: the whole derivative (over all paths) and the product of the gates alone (direct path); largest singular value, and root mean square of all. Median over {n} samples.",
        "reading": "The direct path is what the gates let through of the cell itself. Where the whole derivative lies above it, the memory is carried, or disturbed, over the hidden state and the gates too. Slope -1/τ in this picture is a time constant of τ steps.",
        "caution": "{lag} steps on the whole derivative is {full:.2g} in its best direction and the direct path {direct}: {verdict}. {method} The derivative holds the layer's inputs fixed.",
        "audience": "For those who read forget gates as memory.",
        "practitioner": "Time constants from forget gates alone are a bound on one path. Before you call a unit a long memory, see that the two curves agree.",
        "researcher": "The largest singular value bounds what any change can do, the root mean square tells what a random one does; eigenvalues of the recurrent weights bound neither. In a plain network there is no direct path.",
    },
}
