"""What is said below the pictures of the samples' gradients."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "heat": {
        "shows": "For every layer and step the median, over the probe's samples, of the norm of the gradient of a sample's own loss by that layer's weights, as a power of ten.",
        "reading": "Rows stand in the order of the network, the input's side on top. Rows on top that are darker than those below by several powers of ten are gradients that vanish on their way back.",
        "caution": "Taken over {n} samples in evaluation mode. At step {step} the layers lie {spread:.1f} powers of ten apart, with a slope of {slope}; gradients were flagged as vanishing {vanishing}, as exploding {exploding}. {empty} cells are empty: there half of the samples give no gradient at all.",
        "audience": "For anyone whose deep network learns slowly, or not at all.",
        "practitioner": "If the top rows stay dark, add shortcuts or normalisation, or change the initialisation; if the whole map darkens, most samples are already fitted.",
        "researcher": "A norm grows with the number of weights, so compare along a row or against the ratio to the weights. The medians of single samples do not cancel as the mean gradient does: a dark mean with bright medians is noise, not vanishing.",
    },
    "spread": {
        "shows": "The norm of a sample's own gradient in some of the layers: the median as a line, and between which values nine tenths of the samples lie.",
        "reading": "A band that widens downwards means that more and more samples are settled; one that stays high at its upper edge means that a few samples still pull hard.",
        "caution": "{count} of {all} layers are drawn, over {n} samples. At step {step} nine tenths of the norms of the whole network lie between {low:.3g} and {high:.3g} around {middle:.3g}, the upper end {times} times the lower one.",
        "audience": "For those who ask whether all samples teach the network, or a few only.",
        "practitioner": "When the upper edge stays while the median falls, look at those samples: wrong labels and rare cases are among them.",
        "researcher": "Quantiles of norms at fixed weights, not of the batches that were drawn. With a bounded loss slope the norm has a ceiling, so a flat upper edge may be saturation.",
    },
    "noise": {
        "shows": "About how many samples a batch must have for the noise of its gradient to equal its signal, over training; the band is a 95 % interval.",
        "reading": "It usually grows as training goes on: the easy common direction is used up, and what remains differs from sample to sample.",
        "caution": "On probe {probe} it went from {first:.3g} to {last:.3g} samples at step {step} ({interval}), estimated from {n} samples; {missing} steps have none, since noise hid the signal there. Values far above {n} are rough.",
        "audience": "For people who choose the size of batches.",
        "practitioner": "Batches far smaller than this waste little; far larger ones spend work without better steps. It may pay to let the batch grow as the curve does.",
        "researcher": "The simple noise scale, blind to curvature, at evaluation-mode weights and of this probe's samples; on a test probe it is not the training noise. The mean ratio per weight stands at {signal} by the end (chance is taken off).",
    },
    "noise_map": {
        "shows": "The noise scale of every layer on its own, as a power of ten of samples.",
        "reading": "Bright rows are layers whose samples disagree most about where to go.",
        "caution": "At step {step} it runs from {low_value:.3g} in {low} to {high_value:.3g} in {high}. Over {n} samples, margins {margin}; {empty}.",
        "audience": "For those who look for layers that train on noise.",
        "practitioner": "A layer with a noise scale far above the batch size moves mostly at random: a smaller rate for it loses nothing.",
        "researcher": "Estimated by layer from the same samples. Where the unbiased signal came out below zero the cell is empty, which happens most where the value would be largest: the map is biased towards low noise.",
    },
    "alignment": {
        "shows": "The cosine between the mean gradients of each pair of classes, over all weights together; the slider moves through training.",
        "reading": "Bright: what helps one class helps the other. Dark: a step for one class undoes some of the other. The diagonal, always 1, is left out.",
        "caution": "At step {step} the mean is {mean:.3f}, and {share:.0%} of the pairs pull against each other; {one} and {other} agree most ({highest:.2f}), {against} and {with_it} least ({lowest:.2f}). The smallest class has {smallest} samples: with few, cosines shrink towards 0.",
        "audience": "For seeing which classes compete while the network learns.",
        "practitioner": "Pairs that stay dark are those that the network must tell apart by effort: more data of both helps most.",
        "researcher": "With cross-entropy the output layer's part of the gradient sets classes against each other by itself, about -1/(C - 1) at the start; the findings by layer show what happens below it.",
    },
}
