"""What the figures of attribution say about themselves."""

from __future__ import annotations

MEANINGS = {
    "slope": "where it is red a larger value of the pixel would raise the score, where it is blue it would lower it; white is nothing",
    "signed": "red is for the explained output, blue against it, white is nothing",
    "unsigned": "yellow is much, dark is nothing; there is no for and against",
}
"""Of colours: for slopes of the score, for shares of it, and for what has no sign."""

WORDS: dict[str, dict[str, str]] = {
    "steps": {
        "shows": "{title} of the same samples at several steps: {formula} ({source}), y being the explained output and x the picture in the network's own numbers, added over the channels.",
        "reading": "Along a row the picture is the same and only the weights differ. On the colours: {meaning}. One scale holds for all samples and steps; it is full at {bound}.",
        "caution": "It misleads in this way: {lies}. The mean size of a map went from {low:.3g} at step {first} to {high:.3g} at step {last}, so pale columns are small, not empty; {blank} of {shown} maps at the last step are zero everywhere. There the network answers {agree} of {count} samples with the output that is explained.{warning}",
        "audience": "For people who want to see when a network began to look where they would.",
        "practitioner": "If the marks leave the object and settle on borders, text or background as training goes on, look for a short cut in the data.",
        "researcher": "The raw and signed maps lie in the archive, float32 and unscaled; scale only when drawing. Random numbers belong to a sample's id, so columns differ by the weights alone.",
    },
    "methods": {
        "shows": "All {methods} methods for the same {shown} samples; the slider goes over the steps.",
        "reading": "Each row is one method, on a scale of its own that holds for all steps and samples: red is for the explained output and blue against it (for gradients: a larger value there would raise or lower it); for methods without a sign red is much. A pale row is small against the same method at another step.",
        "caution": "Rows cannot be compared in size, only in shape: methods have different units. Where they disagree at least one misleads. At step {last} the network answers {agree} of {count} samples with the output that is explained. {warned}",
        "audience": "For people who have to choose a method, or doubt one.",
        "practitioner": "Trust what several methods of different kinds agree on; a detail that one method alone shows is first of all a property of that method.",
        "researcher": "Methods that look the same at step 0 and at the end do not depend on what was learned: compare with the similarity over training before telling a story about the picture.",
    },
    "forms": {
        "shows": "{title} of {shown} samples in the forms that toolboxes draw. {colour} grey map adds the sizes over the channels; the last two part the map by its sign.",
        "reading": "In grey, white is the strongest per cent of the pixels. Red are values above zero and blue those below, each full at its own largest. Move the slider to follow the training.",
        "caution": "Every map here is stretched to its own range, so sizes cannot be compared: they grew from {low} at step {first} to {high} at step {last}, which this figure hides. At the last step {share} of the size is above zero.{warning}",
        "audience": "For people who know these pictures from other toolboxes.",
        "practitioner": "Use the figure over training to compare steps; use this one to see fine structure.",
        "researcher": "The colour form has no fixed place for zero; the two signs are added over channels after parting them, so a pixel can have both. Nothing of this is stored: it is derived from the signed map.",
    },
    "gaps": {
        "shows": "How far the maps are from adding up to what they explain, divided by it: the difference between the score of the sample and that of its baseline, and for relevance the score itself. Median over the samples, the band from the smallest to the largest.",
        "reading": "Low is right. A gap of 0.05 means that five hundredths of what should be explained are missing or too much.",
        "caution": "At step {step} the largest median is that of {worst}: {value} over {n} samples, {high} for the worst of them. Where there is nearly nothing to add up to, a tiny gap is a large share.{warning}",
        "audience": "For anyone who quotes a number from such a map.",
        "practitioner": "If it is above a tenth, give the method more steps or draws, or another baseline, before you read its maps.",
        "researcher": "For integrated gradients it is the error of the quadrature alone; for expected gradients that of sampling; for methods with rules it tells that a rule does not fit this network, and no number of steps mends it.",
    },
    "sizes": {
        "shows": "Sum of the absolute values of a map, mean over {n} samples, by method, divided by the same at the last step.",
        "reading": "A line that rises tells that the score hangs more and more on the pixels. All lines end at 1.",
        "caution": "{most} changed most over the run, by a factor of {span}; {least} least, by {small}. Sizes follow the scale of the outputs, which grows with confidence even where nothing new is learned.{warning}",
        "audience": "For people who compare maps of different steps.",
        "practitioner": "A jump in the size between two steps is worth a look at the maps themselves, and at what changed in the training there.",
        "researcher": "Gradients are in score by pixel unit and not invariant to a factor on the last layer; for probabilities as a target the sizes fall where the softmax saturates.",
    },
    "similarity": {
        "shows": "How alike the maps of the same samples are at each checkpoint and at the one before, by method: {measure}. Median over the samples, band: its 95 % interval.",
        "reading": "1 is the same map, 0 nothing in common. Lines that rise towards 1 have settled; a dip is a step after which the network looks elsewhere.",
        "caution": "At step {step} {top} is the most alike ({high:.2f}) and {bottom} the least ({low:.2f}), over {n} samples. Maps of different samples by {top} are alike by {null:.2f} already, which has nothing to do with training. Steps are not equally far apart.{warning}",
        "audience": "For people who ask when a network's reasons stopped changing.",
        "practitioner": "Read a map only from checkpoints on where its method is well above what different samples have in common.",
        "researcher": "Cosine and rank correlation ignore a factor on the map; the structure is that of the sizes without their sign, each map divided by its largest. Noise of sampling methods is the same at both checkpoints, which makes them more alike than independent draws would be.",
    },
    "settling": {
        "shows": "How alike the maps at each checkpoint are to those at the last one, by method: {measure}. Median over the samples, band: its 95 % interval.",
        "reading": "Where a line comes near 1 the maps have their final shape. All lines end at 1.",
        "caution": "{slow} is the last to come within 0.1 of its final maps, at step {when}; {count} methods are compared over {n} samples. A method whose line is high from step 0 on shows the picture rather than what was learned: here {early} is highest there, at {start:.2f}.{warning}",
        "audience": "For people who choose a checkpoint, or a method.",
        "practitioner": "If the maps settle long before the accuracy does, later training changed confidence rather than what is looked at.",
        "researcher": "This is a randomisation test that training itself makes: at step 0 the weights are random, so a method that is alike there is insensitive to the weights (Adebayo et al. 2018). Maps without a sign are alike by nature, since both are large near the middle of the object.",
    },
}
