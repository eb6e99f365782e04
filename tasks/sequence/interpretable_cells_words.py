"""The texts of the pictures of interpretable cells and of how they came to be."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "scores": {
        "shows": "For each feature of the text the unit that follows it best: how well on samples that had no part in choosing it, with the interval of a bootstrap over those samples. {probe_line}",
        "reading": "Long bars to the right are units that tell the feature. A filled dot means that the corrected p-value is below {level:g}, an empty one that chance may be enough. Crosses are the best units of the first checkpoint: what was learned is the way from cross to dot. A bar near 0 belongs to a unit that was chosen by chance.",
        "caution": "At step {step}, {tracked} of {count} features are tracked; the best is “{best}” with r = {best_score:.2f}, by unit {best_unit} of {best_layer}. {early} {spread} A feature that is rare in these {samples} samples has little power: a wide interval means that it was hardly tested, not that nobody follows it.",
        "audience": "For anyone who wants to know whether single units mean something.",
        "practitioner": "Use it to find a unit to watch, or to steer by. That a unit follows a feature does not show that the network uses it: erase the unit and watch the loss before you say so.",
        "researcher": "Half of the samples picks the unit with the largest |r| among all units, layers and kinds of state; the other half gives r, its interval and the p-value, so the search needs no correction; Holm corrects for the features. The test exchanges whole texts against states, which keeps the dependence within a text and what both owe to the place in the sample.",
    },
    "texts": {
        "shows": "Texts of the testing half, each character coloured by the state of unit {unit} of {layer} ({kind}) after it was read; the green strip below marks where “{title}” holds, the higher the larger its value.",
        "reading": "Colour that comes and goes with the strip is a unit that follows the feature. Colour that begins a few characters late shows what the unit needs to see first. Slide over the steps: each shows the unit that was best then.",
        "caution": "At step {step} this unit reaches r = {score:.2f} (95 % interval {low:.2f} to {high:.2f}), {secondary_name} {secondary:.2f}, corrected p {p_value}; {early}. These texts were chosen because the feature changes most in them, whatever the unit does; elsewhere it may be quiet or wrong.",
        "audience": "For readers who want to see a cell at work.",
        "practitioner": "Look for what the colour does where the strip is absent: those are the unit's mistakes, or another meaning of it.",
        "researcher": "Cells are shown as tanh(c_t), hidden states as h_t. The unit's sign is as it is in the network. Features such as the characters left in a line look ahead; a causal network can only guess them.",
    },
    "profile": {
        "shows": "How the state of each feature's best unit lies where the feature is absent and present, or over eight ranges of its value: median, middle half (thick) and middle 90 % (thin).",
        "reading": "Two bars that do not overlap mean that the unit alone tells the feature. A staircase is a counter. Where only the thin lines overlap the unit is right most of the time.",
        "caution": "Of {count} panels at step {step}, {apart} have middle halves that do not overlap between the first and the last group. Positions of one text depend on each other: the spread here is of positions, not of independent samples.",
        "audience": "For readers who want to know what kind of code a unit uses.",
        "practitioner": "A unit with two clear levels can be read out with a threshold; a staircase can be read as a number.",
        "researcher": "Quantiles over the positions of the testing half, at which the feature is known. Groups of a numeric feature have about equal size, so their widths differ.",
    },
    "map": {
        "shows": "The size of the correlation of units with features, on the testing half: the three units of each feature with the largest one, {units} in all, in the order of their layers.",
        "reading": "A row with one bright cell is a feature with a unit of its own; a row that is bright throughout is spread over the layer, and a column with several bright cells is a unit that follows several features, or features that go together. Cells stay empty where chance is enough to explain the correlation.",
        "caution": "At step {step}, {sure} of {pairs} pairs of all units and features pass |z| > {bound:.1f}, the bound that {level:g} corrected for all pairs asks for. Features overlap: {overlap}.",
        "audience": "For people who ask whether meaning sits in single units or in many.",
        "practitioner": "If many units are bright in a row, no single one is worth watching: train a linear probe on the layer instead.",
        "researcher": "z is of the proposing half, by the exact variance over exchanges of whole samples (Hoeffding 1951); its normal tail is an approximation that is poor for features that occur in few samples. r is of the testing half.",
    },
    "growth": {
        "shows": "How well the unit that is best at the last checkpoint followed its feature at each earlier one; with the same half of the samples throughout.",
        "reading": "A curve that leaps shows when the cell came to be. One that is high from the first step on belongs to a feature that random weights carry as well.",
        "caution": "{first_line} {forming} Units are chosen at the last step by samples that are not drawn here, so the last value is not flattered; earlier ones may be those of a unit that did another thing then. {spread}",
        "audience": "For people who ask when in training a network learned something.",
        "practitioner": "Features that come late are those that a shorter training would have missed.",
        "researcher": "Oriented r on the testing half. The step of formation is the first from which on r stays at half of its last value or more; nothing is said of features that are not tracked at the last step.",
    },
    "best": {
        "shows": "How well the best unit of each checkpoint follows each feature; the unit may be another one at each step.",
        "reading": "Rows brighten when some unit begins to follow the feature. The first column is what random weights give.",
        "caution": "At step {first}, before or early in training, the best value is {start:.2f} (“{start_title}”); at step {last} it is {end:.2f} (“{end_title}”). {changed} of {count} features change their best unit between the last two checkpoints, so a row is no history of one unit.",
        "audience": "For people who compare checkpoints.",
        "practitioner": "A row that pales towards the end is a feature that moved from a single unit to many.",
        "researcher": "Each checkpoint picks its unit on the proposing half and is scored on the other; the values are comparable over steps, their units are not.",
    },
}  # fmt: skip
