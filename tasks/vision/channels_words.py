"""The texts of the pictures of channels."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "selectivity": {
        "shows": "How strongly the channels of each layer prefer one class, mean over the channels that are not silent: 0 where all classes excite a channel alike, 1 where a single class does.",
        "reading": "Selectivity usually grows from the first layers to the last, and with training. A layer that loses it again has begun to share its channels.",
        "caution": "At step {step} {high} has the highest value, {high_value:.3g}, and {low} the lowest, {low_value:.3g}; {empty}. With few samples a class, chance alone makes channels look selective.",
        "audience": "For people who want to know where classes become separate.",
        "practitioner": "Do not prune by it: networks whose channels are selective are not more accurate for it.",
        "researcher": "The class selectivity index of Morcos et al. 2018, taken of what is above 0, mean over the positions. Rescaling a channel does not change it; it tells nothing about whether the channel is used.",
    },
    "effective": {
        "shows": "How many channels of each layer vary independently of each other.",
        "reading": "A number far below the layer's width means that many channels say the same about these samples.",
        "caution": "At step {step} {high} has the highest number, {high_value:.3g}, and {low} the lowest, {low_value:.3g}, of at most {n} channels; {empty}. Only means over positions are compared: channels that fire at different places of the same pictures look alike here.",
        "audience": "For people who choose the width of layers.",
        "practitioner": "A layer that stays at a tenth of its width over the whole training is a candidate for fewer channels.",
        "researcher": "Participation ratio of the eigenvalues of the correlation matrix of the channels that vary. It is at most the number of samples less one.",
    },
    "redundancy": {
        "shows": "The share of each layer's channels that nearly repeat another one: the correlation of their means over positions is beyond 0.95 either way.",
        "reading": "Dark rows have no repeats. A row that grows brighter has channels that became copies of each other.",
        "caution": "At step {step} it is highest in {high}, {high_value:.3g}, and lowest in {low}, {low_value:.3g}; {empty}. Channels that differ only in where they fire count as repeats.",
        "audience": "For people who prune.",
        "practitioner": "Of two channels that repeat each other one can often go, with its weight added to the other.",
        "researcher": "Pearson's r over the samples; the threshold is a convention. Early on, all channels may follow the brightness of the picture.",
    },
    "dead": {
        "shows": "The share of each layer's channels that never rise above 0 before the ReLU that follows.",
        "reading": "A dead channel gives nothing and learns nothing. A jump at one step points at a learning rate that was too high.",
        "caution": "At step {step} the largest share is {high_value:.3g}, in {high}; {empty}. Dead is meant for these samples; others may still wake the channel.",
        "audience": "For anyone whose training stalls.",
        "practitioner": "Above a third in a layer, lower the rate or the weight decay, or start the biases above 0.",
        "researcher": "Only layers whose output alone enters a ReLU, through a norm at most, are judged; before a sum with a shortcut the word has no meaning.",
    },
    "classes": {
        "shows": "For each class the share of its samples in which a channel of {layer} is among the few that hold {mass:.0%} of the sample's activation.",
        "reading": "Columns are channels, ordered by the class that excites them most at the last step, and stay in their places while the slider moves. A column that is bright in one row only serves one class; one bright throughout serves all.",
        "caution": "Of {shown} channels shown of {channels}, {broad} are among the strongest for at least half of the samples of every class at step {step}; such channels say little about any class. The shares are over {n} samples.",
        "audience": "For people who look for what a class is made of.",
        "practitioner": "Two classes with the same bright columns are told apart elsewhere; look where the rows first differ.",
        "researcher": "The aggregation of Summit (Hohman et al. 2019): the spatial maximum of each channel, the fewest channels that hold the share, counted by class. A channel with large values for everything crowds out the others.",
    },
    "examples": {
        "shows": "The samples that excite single channels of {layer} most at step {step}. Left the whole pictures, faded outside the part that the strongest position can see; right that part alone.",
        "reading": "Read along a row: what the parts have in common is what the channel answers to; pale blue lies outside the picture. The channels are those that add most to the scores, the strongest first.",
        "caution": "Taken from {n} samples; others may excite the channels more. For channel {channel}, the first row, the {k} values go from {top:.3g} to {last:.3g}, the channel's mean is {mean:.3g}. {field}",
        "audience": "For everyone.",
        "practitioner": "If the parts of a row share a watermark, a border or a background, the network may lean on it.",
        "researcher": "One position a sample, that of the largest value. The part is the structural receptive field, of which the middle counts most; the mean excites a channel rarely as its extremes do.",
    },
    "over_steps": {
        "shows": "The samples that excite channel {channel} of {layer} most, at {count} steps of the training; faded outside the part that the strongest position can see.",
        "reading": "Rows are steps, the strongest sample stands first. Where the rows become alike the channel has found what it answers to.",
        "caution": "Of the {k} samples at step {last}, {kept} were among them at the step drawn before, and {first_kept} at step {first}. The channel keeps its number, not its meaning: channels may swap roles.",
        "audience": "For people who follow how features form.",
        "practitioner": "Rows that still change at the end mean that the channel is still learning.",
        "researcher": "It is the channel that adds most to the scores at the last step, so its past is seen with hindsight.",
    },
    "contributions": {
        "shows": "What the channels of {layer} add to the score, mean over {n} samples, estimated in {methods} ways.",
        "reading": "Right of the line a channel speaks for the score, left against it. Bars of one channel that agree can be believed; where gradient and ablation differ in sign, the channel saturates or others stand in for it.",
        "caution": "{shown} of {channels} channels are shown, those with the largest contribution along the path at step {step}. There gradient × activation and zero ablation agree to a rank correlation of {agreement}, and the path's sum misses the difference that it stands for by {gap}.",
        "audience": "For people who want to know what a decision is made of.",
        "practitioner": "Channels with long bars on the wrong side are where to look when a class is missed.",
        "researcher": "Zero is not neutral for a layer without a ReLU behind it: there the mean ablation asks the better question. Ablations of single channels miss what two redundant channels do together.",
    },
    "correlations": {
        "shows": "How the channels of a layer correlate over the samples, by their means over positions, for {layers} layers and {steps} steps.",
        "reading": "Channels stand in the same order at all steps: alike ones at the last step side by side. Blocks of one colour are groups that say the same.",
        "caution": "In {layer}, {last:.0%} of {channels} channels nearly repeat another at step {step}, {first:.0%} at step {start}. Taken over {n} samples, where chance alone gives correlations of about {chance:.2f}.",
        "audience": "For people who prune or widen layers.",
        "practitioner": "Large blocks at the end are capacity that is not used.",
        "researcher": "Order by average linkage of 1 - |r|. Channels that do not vary have no correlation and are drawn in magenta; of layers with more than 128 channels every second, third … is drawn.",
    },
}
