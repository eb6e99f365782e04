"""The texts of the figures of attention over the training; numbers of the run at hand are put into them."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "formation": {
        "shows": "How far each head does one known thing, over the training. A coloured line is a head that came to do it; its dot marks the first checkpoint from which the score stays past half of its way. Grey lines are all other heads.",
        "reading": "A score of 1 means that all the weight lies on the keys of the pattern. A sudden rise is a head that formed between two checkpoints; a line that was high at the start has nothing to learn.",
        "caution": "{formed} of {lines} curves rose by {least:g} or more. {best} {change} Checkpoints are {shortest} to {longest} steps apart, so no step is known more exactly. {importance}",
        "audience": "For everyone who asks when a network acquired an ability, and where it lives.",
        "practitioner": "If a head of the kind you need has not formed, train on, or look at the data: induction needs repetitions to learn from, at distances that vary, or heads learn to count places.",
        "researcher": "The share of the weight on the pattern (mul of TransformerLens), over the queries that have a match. Half way is between the first checkpoint and the median of the last tenth. Change points: exact penalised segmentation with a permutation test, in the table of findings.",
    },
    "order": {
        "shows": "At which step each head formed, by what it does: a dot at the first checkpoint past half way, a bar back to the checkpoint before.",
        "reading": "From the top: the earliest first. The longer a bar, the less is known about when it happened.",
        "caution": "{heads} of {total} heads formed by some score; the first is {first} ({first_score}) by step {first_step}, the last {last} ({last_score}) by step {last_step}. Drawn are {shown}; a head may stand here twice, with two scores.",
        "audience": "For people who compare the order in which abilities appear.",
        "practitioner": "Where induction heads appear without a previous-token head before them, suspect a shortcut, such as repetitions that always come at the same distance.",
        "researcher": "An interval holds the crossing of the middle for good only as far as checkpoints sample the curve; a dip between two is not seen.",
    },
    "change": {
        "shows": "How far each head moved since the checkpoint before: the Jensen–Shannon distance of its weights on the same samples, 0 for none, 1 where it looks at other keys altogether.",
        "reading": "Bright cells are heads that look elsewhere than before. A row that turns dark has settled.",
        "caution": "The largest move is {value:.3f}, of {most} from step {before} to {step}; over the last step {still} of {heads} heads moved by less than 0.05. Over {samples} shown samples; steps farther apart allow larger moves.",
        "audience": "For those who look for the moment at which a head changed its job.",
        "practitioner": "Heads that still move at the end are not finished; what you read from their weights holds for this checkpoint alone.",
        "researcher": "Square root of the divergence in bit, hence a metric; mean over real queries, so that a few queries that changed wholly and many that changed a little look alike.",
    },
    "map": {
        "shows": "For each head, {what}, over the training.",
        "reading": "{how}",
        "caution": "At step {step} it is {where}; the largest change of one head over the run is {gain:.3g}, of {moved}. {note}",
        "audience": "For readers who follow how heads specialise.",
        "practitioner": "Rows alike from first to last are heads that the training did not touch.",
        "researcher": "Means over the samples of each sample's mean over its real queries, on one scale for all steps; attention has intervals by checkpoint.",
    },
    "weights": {
        "shows": "The weights of the heads that {lead} at the end, at each checkpoint: rows are queries, columns are keys, {of}.",
        "reading": "Move the slider to see a pattern appear. A line beside the diagonal is a head that looks at a fixed distance; an upright line is a key that all look at, a sink.",
        "caution": "At step {step} the strongest cell shown is {strongest:.2f}, while looking everywhere alike would give {alike:.3f}.{blocks} {importance}",
        "audience": "For everyone who wants to see what a score stands for.",
        "practitioner": "Read a picture only together with the score: the eye finds lines in noise too.",
        "researcher": "One colour scale for all heads and steps, cut at the {quantile} quantile. Stored in half precision.",
    },
}

MAPS: dict[str, tuple[str, str, str, str]] = {
    "attention_entropy_share": ("Entropy of attention", "entropy as share of the largest", "the entropy of its weights as a share of the largest that the number of keys allows", "1 is looking everywhere alike, 0 is looking at a single key. Heads begin bright and darken as they choose."),
    "attention_distance": ("Distance of attention", "mean distance", "the mean distance between a query and the keys it looks at, in tokens or patches", "Dark rows are local heads; bright ones gather from afar."),
    "sink_mass": ("Weight on the sink", "share of the weight", "the share of the weight that goes to the first key", "A bright row is a head that mostly looks at the first key, which often means that it does nothing."),
}  # fmt: skip
"""By score: title, label, what it is, how to read it."""
NOTES = {
    "attention_entropy_share": "A sharp head need not matter, and entropies of long and short texts are compared by share only.",
    "attention_distance": "What a random network has depends on the length of the samples alone.",
    "sink_mass": "Where queries see few keys, the first one gets much by necessity.",
}
