"""The texts of the pictures of state patterns."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "matches": {
        "shows": "At the top the selected stretch (framed), below it the other stretches at which the same {units} units of {layer} ({kind}) are on together, the longest first. The colour behind each token is the share of these units that are on; {strip}",
        "reading": "If the framed stretches have something in common that the rest of the text lacks, the units stand for it. If they look arbitrary, the selection was no pattern of its own. Slide over the steps to see when the matches begin to make sense.",
        "caution": "At step {step} there are {count} matches; {precision} Few selected units match nearly everywhere and many nearly nowhere: {units} were selected here, at a threshold of {threshold:g}. {causal}",
        "audience": "For readers with a guess about what a state means.",
        "practitioner": "Name your own stretch with the option ranges, and change the threshold when matches are too many or none.",
        "researcher": "As LSTMVis: on at every token of the range and off within {off_before} tokens before and {off_after} behind it; matches are maximal runs of all selected units, ranked by length and then by how few others are on. Units count with either sign unless the option both_signs is off.",
    },
    "precision": {
        "shows": "Of the best matches of the selected stretch, the share that lies in the same feature of the text, “{title}”, at each checkpoint.",
        "reading": "High above the dashed line, which is how often the feature holds anyway, means that the state during the stretch stands for the feature. A rise during training is when it came to.",
        "caution": "At step {step} the share is {value:.0%} of {n} matches, against {base:.1%} of all tokens. Checkpoints without any selected unit or match have no point: {missing} of {steps} here. One stretch was selected; another one may tell another story.",
        "audience": "For people who compare checkpoints.",
        "practitioner": "A share near the dashed line means: do not read anything into the matched phrases.",
        "researcher": "Matches are counted, not tokens; a match is inside where more than half of its tokens are. The selection itself is left out.",
    },
}  # fmt: skip
