"""The texts of a comparison's figures; numbers of the comparison at hand are put into them."""

from __future__ import annotations

_MOSAIC = {
    "reading": "Below each {what} stand the true class and both answers with their mean softmax probability; green is right, red is wrong. Those come first on which even the less sure side is sure.",
    "caution": "Of {total} such samples among {n} on probe {probe} these {shown} are shown for their certainty, and not at random. {sure} The most frequent pair of answers here is {pair} ({pair_count} of these).",
    "researcher": "A side’s answer is the majority of its runs, ties going to the higher mean probability; probabilities are means over runs and not calibrated. Votes and probabilities of every sample are in the archive.",
}

WORDS: dict[str, dict[str, str]] = {
    "effects": {
        "shows": "The difference of the two sides in standard deviations of their runs (Hedges’ g), with its {level} interval; the {shown} largest of {known} metrics.",
        "reading": "Right of the line {a} has the higher number, left of it {b}. Blue differs after correction; grey does not. An arrow is an interval that goes on. Higher is not always better: think of the loss.",
        "caution": "With {sizes}, {wide} of the {known} intervals contain 0. The largest effect, {largest}, is {value:.3g}, but anything from {low:.3g} to {high:.3g} is compatible with it; a tiny spread over seeds makes large effects of differences nobody would notice.",
        "audience": "For the first look at what separates the two sides.",
        "practitioner": "Read the difference in the metric’s own unit in the table before you act: an effect of 5 may be a tenth of a per cent.",
        "researcher": "Exact small-sample correction; intervals by inverting the noncentral t distribution, which supposes normal values of equal variance. Colour follows {test}, corrected over {family} tests.",
    },
    "trend": {
        "shows": "Mean {metric} of each side’s runs on probe {probe} at every step that its runs share, with the band from the lowest to the highest run.",
        "reading": "Bands that part show a difference larger than that of the seeds; where they overlap, a single run of either side could be ahead.",
        "caution": "{ends}; from lowest to highest run the ends span {spreads}, over {runs} runs. A band from so few runs is narrower than what further seeds would give.{left_out}",
        "audience": "For those who ask when the sides part.",
        "practitioner": "Where the lines meet at the end, take the side that is cheaper to train.",
        "researcher": "Steps are not compute: different architectures, batch sizes or data passes make equal steps unequal. The band is the range, not an interval of the mean.",
    },
    "only_a": {
        "shows": "Samples that {a} has right and {b} has wrong.",
        "audience": "For whoever wants to see what {a} can do and {b} cannot.",
        "practitioner": "Look for what they have in common: that is where choosing {a} would pay.",
        **_MOSAIC,
    },
    "only_b": {
        "shows": "Samples that {b} has right and {a} has wrong.",
        "audience": "For whoever wants to see what {b} can do and {a} cannot.",
        "practitioner": "Look for what they have in common: that is what choosing {a} would cost.",
        **_MOSAIC,
    },
    "both_wrong": {
        "shows": "Samples that both sides have wrong, with different answers.",
        "audience": "For people who doubt labels.",
        "practitioner": "Check these labels first; what is truly ambiguous no network will get right.",
        **_MOSAIC,
    },
    "traditional": {
        "shows": "Share of {test} samples of probe {probe} that each traditional method has right, with its {level} interval; learned from {train} samples of probe {train_probe} on raw inputs, on their principal components, and on what enters the last linear layer of each side’s networks. The vertical lines are the networks themselves.",
        "reading": "How far the network features lie to the right of raw inputs is what the network adds for that method. A method on network features that reaches the vertical line loses nothing against the network’s own last layer.",
        "caution": "The networks ({networks}) may have learned from far more samples than the {train} that the methods had. Best without a network: {best} with {best_value:.3f}. Gains by network features go from {gains}; single accuracies are known to about ± {half:.3f}.",
        "audience": "For readers who ask whether a network is needed at all.",
        "practitioner": "If a method on raw inputs is within its interval of the network, use that: it trains in seconds.",
        "researcher": "Constants by stratified cross-validation on the training samples alone; scaling fitted there too. Intervals are Wilson’s over test samples, for network features averaged over runs; they do not cover the choice of training samples. Networks saw the training probe’s labels if it is a part of their training data.",
    },
}
