"""What is said below the pictures of concepts."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "patterns": {
        "shows": "Six examples of each built-in concept, as they are drawn: patterns in the size of the probe's pictures. In use they are laid over samples of the probe and make {strength} of the picture.",
        "reading": "Each row is one concept; period, phase and colour differ from picture to picture. Noise is no concept but a control: it disturbs a picture as much and has no form.",
        "caution": "At step {step} a linear classifier tells {best} best from random samples ({best_value:.2f} of held-out samples in {best_layer}) and {worst} least ({worst_value:.2f} in {worst_layer}); where that is near 0.5 the layer has no direction for it.",
        "audience": "For everyone who reads the pictures of concepts below.",
        "practitioner": "For concepts of your own give samples by their ids, or a callable that returns pictures: stripes are seldom what one wants to know about.",
        "researcher": "Laid over the data rather than shown alone, so that the direction holds the pattern and not the difference between synthetic and natural pictures. Random sets never share a picture with the concept they are held against.",
    },
    "table": {
        "shows": "At the last step, for every layer, concept and class, the mean cosine between the gradient of the class's output and the concept's direction. Grey cells could be chance.",
        "reading": "Red: the concept speaks for the class. Blue: it speaks against it. Compare each concept with the row of the noise.",
        "caution": "At step {step} {count} of {all} cells are beyond chance at the level {level}, after correction for all of them, with {sets} random sets; the clearest is {best}. As for false alarms, {control}.",
        "audience": "For a first look at what the answers depend on.",
        "practitioner": "A class that follows stripes or dots leans on texture: try it on pictures without that texture before you trust it.",
        "researcher": "Significance is a t-test of the concept's mean sensitivity against those of random sets treated as concepts, then Holm. Cosines shrink with the width of a layer, so compare along a row.",
    },
    "bars": {
        "shows": "For class {class}, in each layer, the share of its samples whose output grows when the layer moves along the concept; thin lines are the middle 95 % over the random sets.",
        "reading": "Far right: the concept speaks for the class in nearly all samples; far left: against it; the dashed line is indifference. Grey bars could be chance, whatever their length.",
        "caution": "At step {step}, {count} of {all} bars are beyond chance at the level {level} (their scores: {range}); over {sets} random sets the scores of one bar differ by up to {widest:.2f}.",
        "audience": "For those who know TCAV and want its usual picture.",
        "practitioner": "Read coloured bars only, and believe a concept when neighbouring layers agree.",
        "researcher": "A count of signs, so that near a linear head it is 0 or 1 for any direction, random ones too: long grey bars are that. The test behind the colours is on mean cosines, which keep the size.",
    },
    "course": {
        "shows": "For class {class} and each layer, the mean cosine of the output's gradient with each concept's direction over the training; coloured points are beyond chance, grey ones are not.",
        "reading": "Lines that leave zero early and stay are concepts that the class is built on; those that rise and fall were used for a while.",
        "caution": "Of the points of {steps} checkpoints {share} are beyond chance at the level {level}, {first}. At step {last} the lines lie between {low:+.2f} and {high:+.2f}. Each checkpoint has directions of its own: a line compares answers with the concept, not with the direction of another step.",
        "audience": "For watching a class come to depend on something.",
        "practitioner": "If a concept that should not matter goes up, stop there and look at the data.",
        "researcher": "The same samples, random sets and patterns at every step, so the differences are due to the weights; each checkpoint's tests are corrected by themselves.",
    },
}
