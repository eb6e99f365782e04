"""The texts of the figures of filters; numbers of the run at hand are put into them."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "first_layer": {
        "shows": "{shown} of the {count} filters of {layer}, the first convolution ({inputs} × {height} × {width} weights each), with their numbers, at the step that is chosen.",
        "reading": "{colours}. Full colour stands for ± {bound} at all steps, and a filter keeps its place. Filters that look for edges have two or three stripes, those for a colour have one tone, and noise has no order.",
        "caution": "Of {stored} filters {double} have a double at step {last} (cosine above 0.95) and {dead} are next to zero. Kernels of {height} × {width} places can show little more than an edge or a spot. They act on normalised inputs, so that grey is not the grey of a picture.",
        "audience": "For everyone: it is the one layer whose weights can be looked at.",
        "practitioner": "Filters that still look like noise at the end mean too little training, too little data, or too much width.",
        "researcher": "Raw weights; the scale is the 99th percentile over all filters and drawn steps. What a filter answers to also depends on the power spectrum of pictures: a rough filter may get little to see.",
    },
    "first_layer_steps": {
        "shows": "The {shown} largest filters of {layer} at {drawn} checkpoints from step {first} to step {last}.",
        "reading": "{colours}, on one scale (± {bound}). Along a line one filter takes its form; the filters stand in the order of their numbers.",
        "caution": "Chosen by their norm at step {last}. All filters together grew {growth} times from step {first}; filter {turned} turned farthest, to a cosine of {cosine} with its start. A filter may grow without turning, which changes nothing before a batch norm.",
        "audience": "For those who want to see when the first layer was learned.",
        "practitioner": "If nothing moves after the first checkpoints, the first layer can be frozen.",
        "researcher": "The cosine of every layer's filters with their start is filed by filter_change.",
    },
    "norms": {
        "shows": "The mean Frobenius norm of a filter, by layer and step.",
        "reading": "Rising lines grow, falling ones are taken down by weight decay.",
        "caution": "At the last step {high} has the largest filters and {low} the smallest; {most} changed its size most upwards, {growth} times. The largest share of filters next to zero is {share}, in {worst}. Filters with more weights have larger norms at the same size of a weight.",
        "audience": "For people who set initialisation and weight decay.",
        "practitioner": "Filters that shrink to nothing can be pruned.",
        "researcher": "Before batch norm the length of a filter has no effect on the function, only on the effective learning rate.",
    },
    "duplicates": {
        "shows": "Which share of a layer's filters has a double: another filter with a cosine above 0.95.",
        "reading": "0 means that all directions differ. What random directions give by chance is in the table, as null=chance.",
        "caution": "At step {last} {newest}. Chance would give {chance} in {high}, and the more the fewer weights a filter has; {missing}.",
        "audience": "For those who ask whether a layer is wider than it need be.",
        "practitioner": "Where the share is well above chance, fewer channels may do.",
        "researcher": "Equal directions with unlike biases or scales still compute different things after a ReLU; opposite directions (cosine below -0.95) are not counted.",
    },
    "roughness": {
        "shows": "The share of the filters' power in high spatial frequencies (a quarter of a cycle per pixel and above), by layer and step.",
        "reading": "Low is smooth, such as a blur or a wide edge; {chance} is what independent random weights give, and above it filters alternate from pixel to pixel.",
        "caution": "At step {last} {newest}. A small kernel is smooth only if its weights are nearly equal; {missing}.",
        "audience": "For people who compare layers and trainings by more than accuracy.",
        "practitioner": "First-layer filters that stay as rough as noise point to too little training or to noisy data; rough filters are also those that adversarial noise uses.",
        "researcher": "Power of the zero-padded Fourier transform, summed over input channels, mean over filters. It is the filter's spectrum, not that of what it answers to.",
    },
    "expanded": {
        "shows": "{name} as one convolution: the kernels that lead from what {first} reads ({inputs} channels) to {shown} of the {outputs} channels of {second}, {height} × {width} places wide, at the step that is chosen.",
        "reading": "Each line is an output channel, the strongest at step {last} first. Left is the one pattern that explains most of all its input channels, with the share that it explains; then come its strongest input channels, with their number and share of the squared weights. Red raises the output, blue lowers it.",
        "caution": "Between them lie: {between}. Non-linearities are taken as doing nothing, a maximum as a mean and batch norm as its factor, so this is what the pair does where every unit is active. {branches}. On average the pattern holds {held} of the weights, and an output draws on {effective} of {inputs} input channels at step {last}. Colours of the pattern have a scale of their own.",
        "audience": "For those who ask how two layers work together.",
        "practitioner": "Lines with one clear pattern are easy to name; lines without one mix many things and cannot be read from weights.",
        "researcher": "Gradient of an inner output by the first convolution's input with all steps made linear (expanded weights, Voss et al. 2021). Pattern by singular value decomposition of channels × places. The signs of patterns follow the last step's.",
    },
    "expanded_tiles": {
        "shows": "What {shown} of the {outputs} channels of {second} see of the network's input: {name} as one convolution, {height} × {width} places wide, at the step that is chosen.",
        "reading": "{colours}. Full colour stands for ± {bound} at all steps. Each tile is the pattern that would raise that channel most, if nothing between the two convolutions ever switched off.",
        "caution": "Between them lie: {between}. Non-linearities are taken as doing nothing, a maximum as a mean and batch norm as its factor. {branches}. One scale for all: at step {last} the strongest channel has {spread} times the size of the weakest.",
        "audience": "For everyone who wants to see what the second layer looks for.",
        "practitioner": "Patterns such as corners, bars and blobs are what a trained second layer has; noise means that it has not learned yet.",
        "researcher": "Gradient of an inner output by the input with all steps made linear (expanded weights, Voss et al. 2021); real receptive patterns depend on which units are active.",
    },
    "concentration": {
        "shows": "For {count} taken as one: the share of the squared weights that one pattern times one list of input channels holds.",
        "reading": "Each row is a pair, called by its second convolution where that is in one pair only. 1 means that an output channel sees the same pattern in all its inputs; low values mean a different pattern in each.",
        "caution": "At the last step {newest}, as a mean over up to {n} channels; {refused}. Random kernels have a share that depends on their shape alone: compare a pair with its own start, not with others.",
        "audience": "For readers who compare layers by how readable their weights are.",
        "practitioner": "Pairs with a high share are good places to begin reading weights.",
        "researcher": "The squared first singular value by the sum of all, for each output channel; the share of squared weights by input channel is filed beside it (over=channels).",
    },
}
