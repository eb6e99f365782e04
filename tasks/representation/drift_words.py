"""The texts of the figures of drift; numbers of the run at hand are put into them."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "movement": {
        "shows": "How far each layer's features of the same samples moved since the checkpoint before ({measure}, by powers of ten), with marks where a layer's movement reached a new level.",
        "reading": "Bright cells are big moves. Read along a line to see when a layer settles, and down a column to see which part of the network moved then.",
        "caution": "Checkpoints are {shortest} to {longest} steps apart, and a longer way allows a bigger move. The largest is {value}, of {layer} from step {before} to {step}; the choice of these {n} samples alone moves a cell by up to {floor}. {marks}.",
        "audience": "For everyone who asks which part of the network is still learning.",
        "practitioner": "Layers that have stood still for long can be frozen in fine-tuning; one that moves late and alone deserves a look.",
        "researcher": "Debiased linear CKA or Procrustes distance of principal scores, hence blind to rotation, shift and scale. Marks: exact penalised segmentation of each curve, tested by permutation between neighbouring marks. The table also gives distances for each doubling of the step.",
    },
    "ranking": {
        "shows": "The layers by how far they moved up to the last checkpoint {since} ({measure}), each with its 95 % interval.",
        "reading": "The layer on top moved most. Where intervals overlap, the order may be another one on other samples.",
        "caution": "{top} moved most, {value} up to step {last}, and {rivals}; {least} moved least. Over {n} samples sampling alone moves a value by up to {floor}, and a layer whose samples were shuffled would stand at {ceiling}.",
        "audience": "For those who come back to a run and ask what changed in it.",
        "practitioner": "Look first at the layers on top, and at what changed in data or learning rate since.",
        "researcher": "Bootstrap of the first-order parts of the U-statistics, with the same weights for all layers; intervals of the ranks themselves are in the table.",
    },
    "first": {
        "shows": "How far each layer's features are from those of the first checkpoint, step {other} ({measure}).",
        "reading": "A line that rises early belongs to a layer that was rebuilt early; one that stays low kept what its random start gave it.",
        "caution": "At the end {far} is farthest from its start ({far_value}) and {near} nearest ({near_value}), over {n} samples; the widest interval is ± {wide}. How far apart two starts would be is not known from one run.",
        "audience": "For readers who ask how much of the start is left.",
        "practitioner": "A layer near its start does little that a random layer would not do: it may be too wide, or its learning rate too small.",
        "researcher": "Distance saturates: near 1, further movement cannot be seen. Lazy training shows as lines that stay low while accuracy rises.",
    },
    "last": {
        "shows": "How far each layer's features still are from those of the last checkpoint, step {other} ({measure}).",
        "reading": "The sooner a line comes down, the sooner that layer had taken its final form.",
        "caution": "At the beginning {far} is farthest from its end ({far_value}) and {near} nearest ({near_value}), over {n} samples and within ± {wide}. All lines end at 0 by construction: with further checkpoints they would end later.",
        "audience": "For people who decide what to freeze, and when to stop.",
        "practitioner": "If all lines have been near 0 for many checkpoints, the rest of the training changed little in what the network represents.",
        "researcher": "Convergence from the bottom up (Raghu et al. 2017) shows as lines that come down in the order of the layers.",
    },
    "churn": {
        "shows": "Which share of each sample's {k} nearest neighbours in a layer is new since the checkpoint before, and which share of the predictions changed.",
        "reading": "0 means that everything stayed. Neighbours may change a lot while predictions hardly do: samples of one class change places among themselves.",
        "caution": "At step {step} {most} has the most, {value}, and {answers} changed; with neighbours at random it would be {chance}, with unrelated predictions {prediction_chance}. Over {n} samples; with few samples or many features near neighbours are close calls.",
        "audience": "For whoever relies on single answers, or on nearest neighbours, from one checkpoint to the next.",
        "practitioner": "High prediction churn at equal accuracy means that users see other mistakes after each update.",
        "researcher": "Intervals are over samples, which share neighbours, and so are a little too narrow. Churn counts replaced neighbours whatever their rank.",
    },
    "transitions": {
        "shows": "The share of samples that became right, became wrong, and changed from one wrong answer to another since the checkpoint before.",
        "reading": "Accuracy rises by the first less the second. Two lines of equal height mean that the network trades samples instead of gaining any.",
        "caution": "From step {before} to {step}, of {n} samples {newly_right} became right, {newly_wrong} wrong, and {changed_wrong} wrong otherwise. Whatever came and went between two checkpoints is not seen.",
        "audience": "For readers whom one number of accuracy does not satisfy.",
        "practitioner": "Check the newly wrong ones before you replace a network in use: the pictures show them.",
        "researcher": "Wilson intervals for each share alone; the difference of the first two is paired, hence surer than they suggest.",
    },
    "learning": {
        "shows": "The share of samples that were right and then wrong at least once, that no checkpoint has had right yet, and that were learned and kept.",
        "reading": "The three add up to all samples. A rising first line means unstable learning.",
        "caution": "{checkpoints} checkpoints see only part of the forgetting: {forgotten} of {n} samples were forgotten, {events} times each on average over all, and {never} were never right. On a probe that is not trained on, these are changes of mind rather than forgetting.",
        "audience": "For those who ask how stable the learning is.",
        "practitioner": "Samples that are never learned or often forgotten are the first to check for wrong labels.",
        "researcher": "Toneva et al. (2019) count over presentations in training. Between checkpoints counts are lower bounds, and grow with the number of checkpoints.",
    },
    "change": {
        "shows": "How far the predictions moved since the checkpoint before, in standard deviations of the targets.",
        "reading": "0 means equal predictions. 1 means moves as large as the targets differ among themselves.",
        "caution": "The last move is {value} (95 % interval {low} to {high}) over {n} samples; the largest, {largest}, is at step {step}. A few samples with huge moves can make all of it.",
        "audience": "For users of a regression's single values.",
        "practitioner": "Compare it with the error that you can bear: updates that move predictions further will be noticed.",
        "researcher": "Root of the mean square over samples and columns of the targets; each sample's move is in the archive.",
    },
    "order": {
        "shows": "Each line is a sample and each column a checkpoint: blue where it is right, orange where it is wrong; sorted by kind and by when it was first right.",
        "reading": "The stair is the order of learning. Orange in blue lines is forgetting; the block at the bottom was never right.",
        "caution": "{drawn} of {n} samples are drawn, evenly over the order. {kept} were learned and kept, {forgotten} forgotten at least once (one of them {most} times), {never} never right, at the {checkpoints} checkpoints that were audited.",
        "audience": "For everyone who wants to see learning sample by sample.",
        "practitioner": "The table lists all samples in this order: begin to look for wrong labels at its end.",
        "researcher": "Ties are broken by the number of forgetting events and of right checkpoints. Columns are checkpoints, not equal spans of training.",
    },
}

MOSAIC_WORDS: dict[str, dict[str, str]] = {
    "forgotten": {
        "shows": "The samples that were most often right at one checkpoint and wrong at the next.",
        "reading": "Below each {what}: the true class, how often it was forgotten, and what the last checkpoint answers; green is right, red is wrong.",
        "caution": "Of {total} samples among {n} that were forgotten at all these {shown} are shown for their number of events, at most {most} over {checkpoints} checkpoints; {still} of them are wrong at the end. Most are of class {common} ({count}).",
        "audience": "For whoever looks for hard samples and wrong labels.",
        "practitioner": "Look at the label first: a sample that the network learns and loses again often has a wrong or doubtful one.",
        "researcher": "Ties are in the order of a digest of the samples' ids, so that a shuffled probe shows the same ones.",
    },
    "newly_right": {
        "shows": "Samples that are right at step {after} and were wrong at step {before}.",
        "reading": "Below each {what}: the true class and both answers. First come those that had been wrong at most checkpoints.",
        "caution": "{total} of {n} samples became right, of which {shown} are shown, and not at random; {fresh} of these are right for the first time. The most frequent true class among them is {common} ({count}).",
        "audience": "For readers who ask what the latest training steps brought.",
        "practitioner": "If these look alike, the last stretch of training, or its data, taught that kind of sample.",
        "researcher": "The gain of one step of the audit, not of one step of training: single updates between go unseen.",
    },
    "newly_wrong": {
        "shows": "Samples that are wrong at step {after} and were right at step {before}.",
        "reading": "Below each {what}: the true class, then the right answer in green and the wrong one in red. First come those that had been right at most checkpoints.",
        "caution": "{total} of {n} samples became wrong, of which {shown} are shown for having been right so often; {once} of these were lost for the first time. The most frequent true class is {common} ({count}).",
        "audience": "For people who answer for a network in use.",
        "practitioner": "These are the complaints that an update from step {before} to step {after} would bring.",
        "researcher": "Compare their number with that of the newly right: an exchange of many for many is churn, not learning.",
    },
    "churned": {
        "shows": "The samples that had most of their {k} nearest neighbours in {layer} replaced between the last two checkpoints: in each first row {width} of those at step {before}, in the row below {width} of those at step {after}.",
        "reading": "The first {what} in each row is the sample, the others are neighbours of it, with their classes; orange ones, which come first, are among the {k} at that step only: lost in the upper row, new in the lower.",
        "caution": "In the mean {mean} of the neighbours were replaced, and for {whole} of {n} samples all; {shown} are shown, and not at random. The share of neighbours of the sample's own class is {classes}.",
        "audience": "For those who want to see what a layer takes for alike.",
        "practitioner": "If the later neighbours look more alike than the earlier ones, the layer has learned something about this kind of sample.",
        "researcher": "Euclidean neighbours in all features of the layer. In a crowded region many are equally near, and churn is high without any change of meaning.",
    },
}
