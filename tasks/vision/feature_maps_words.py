"""The texts of the figures of feature maps; numbers of the run at hand are put into them."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "side_by_side": {
        "shows": "What each of {count} layers makes of {samples}: the mean over its channels, from the first layer to the last, at the step that is chosen.{left_out}{blocks}",
        "reading": "Follow the picture through the network: early layers keep its outline, late ones only where something is. Red places raise the mean, blue ones lower it; layers that only put out numbers from zero up go from dark to yellow. The scale stands above each layer and is the same at all steps.",
        "caution": "Colours can be compared within a layer, not between layers: {scales}; {full}. Positive and negative channels cancel in a mean: of the channels' own size {low_share} is left in {low} and {high_share} in {high}, at step {last}{stretched}.",
        "audience": "For everyone who wants to see what the layers do with a picture.",
        "practitioner": "A layer that is one flat colour passes on nothing about places; look at its channels one by one before drawing a conclusion.",
        "researcher": "Raw outputs in evaluation mode before any in-place operation. Each scale is the 99th percentile of the drawn means at the last step, or the median of the steps' own where that is larger; the archive has the channels themselves, unscaled.",
    },
    "through_training": {
        "shows": "The mean over channels of each layer for sample {sample} at {drawn} checkpoints from step {first} to step {last}.{left_out}",
        "reading": "Along a line the same sample goes through the same layer of ever later checkpoints, on one scale of colours that stands beside the layer.",
        "caution": "One sample is shown, and {most} still changed most since step {before}, by {change} of its size. A pale map is a small one, not a missing one; {full}.",
        "audience": "For those who ask when a layer took on its final form.",
        "practitioner": "Layers whose maps no longer change are candidates for freezing; check it on more samples with feature_map_change.",
        "researcher": "The change is ‖b − a‖ by the mean of both norms. Sign and place of channels are kept by gradient descent, so maps of one run may be compared channel by channel; those of two runs may not.",
    },
    "by_layer": {
        "shows": "The {shown} strongest channels of each layer for sample {sample}, with their numbers, at the step that is chosen.{left_out}{blocks}",
        "reading": "The channels were chosen at step {last} by their mean size and are the same at every step. The scale of a layer stands beside it and holds at all steps.",
        "caution": "Strong is not important: in {narrow} these channels hold {share} of the size of all {channels}, and a channel of constant size may be cancelled later on. On the common scales {full}. Chosen by the end, they say little about channels that were strong at the start and faded.",
        "audience": "For people who want to know what single channels see.",
        "practitioner": "Several channels with the same picture are redundant; channels of one flat colour carry an offset.",
        "researcher": "Order by the mean of |A| over the shown samples and all positions at the last step. Raw values; the scale is the 99th percentile at the last step, or the median of the steps' own where that is larger; {drawn} steps can be chosen.",
    },
    "by_channel": {
        "shows": "{shown} of the {channels} channels of {layer} for sample {sample}, each with its number, at the step that is chosen.{blocks}",
        "reading": "{colours}; the scale ({scale}) is the same for all channels and all steps.",
        "caution": "On the samples shown {silent} of the stored channels are zero everywhere at step {last}, and {near} stay below a hundredth of the strongest one's size. A channel that is zero here may fire on other samples; {full}.{broken}",
        "audience": "For people who look for dead, doubled or telling channels.",
        "practitioner": "Many channels without anything to see point to a layer that is too wide, or to dead units; dead_fraction counts them over the whole probe.",
        "researcher": "Values before the activation where the layer is a convolution: what a ReLU would cut is drawn in blue. Name the activation in layers to see what goes on.",
    },
    "by_checkpoint": {
        "shows": "The {shown} strongest of the {channels} channels of {layer} at {drawn} checkpoints from step {first} to step {last}, for sample {sample}.{blocks}",
        "reading": "{colours}, on one scale ({scale}) for all channels and steps. Read along a line to see a channel take shape.",
        "caution": "The channels were chosen by their strength at step {last}; at that step they are {growth} as large as at step {first}. One scale for all: {full}.",
        "audience": "For those who follow single channels through a training.",
        "practitioner": "A channel that fades, or turns over late, marks a training that has not settled.",
        "researcher": "The same input through different weights in evaluation mode: with batch norm, running statistics of early checkpoints lag behind, which shifts early maps.",
    },
    "scales": {
        "shows": "The size that 99 % of each layer's values stay below, over {n} samples of probe {probe}.",
        "reading": "A line that rises without an end, or falls to zero, is a layer whose signal grows or dies. The colours of the maps are scaled by these numbers.",
        "caution": "At the last step {high} has the largest values ({high_value:.3g}) and {low} the smallest ({low_value:.3g}), over {n} samples only; {failed}. On these samples {silent}.",
        "audience": "For people who check that a signal passes through a deep network.",
        "practitioner": "Where neighbours differ by powers of ten, initialisation or normalisation deserves a look.",
        "researcher": "Not invariant: a layer before batch norm or with ReLU can be scaled by a factor that the next one takes back.",
    },
}
