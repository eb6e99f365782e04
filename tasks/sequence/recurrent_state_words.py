"""What is said below the pictures of recurrent state."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "saturation": {
        "shows": "For every unit and gate the share of time steps in which the gate is nearly open (to the right) or nearly shut (upwards); one dot a unit, one panel a gate, one colour a layer.",
        "reading": "Dots near the dashed line are gates that are always at one end, like switches. Dots in the lower left corner are dials: they rarely reach an end. A forget gate far to the right belongs to a unit that remembers; one far up to a unit that looks at the present only. In a GRU it is the update gate that keeps.",
        "caution": "At step {step} the {gate} gate of {layer} is at an end most often, {right} of the time open and {left} shut; {free} of all dots are at an end less than a twentieth of the time. Counted over {n} sequences without their padding. The unrolled layers differ from the network's own output by at most {residual} of its largest value.",
        "audience": "For anyone who asks whether a recurrent network uses its gates.",
        "practitioner": "If all dots stay in the corner late in training, the gates are hardly used: the sequences may need no memory, or learning is too slow. If all lie on the dashed line, gradients through the gates are nearly zero.",
        "researcher": "After Karpathy, Johnson and Fei-Fei 2015, figure 3. The ends are conventions; histograms of 20 bins are stored, so other ones can be applied later without running the network.",
    },
    "constants": {
        "shows": "For every number of steps, the share of units that hold what they hold for longer than that, by layer; the slider moves through training.",
        "reading": "A curve that falls at once is a layer of short memories only. One that slopes over several powers of ten has units for every span. Against the dashed curve of the first step you see what training has added.",
        "caution": "In {layer} at step {step} a tenth of {units} units hold less than {low}, half less than {middle}, a tenth more than {high}: a spread of {spread} times, where it was {earlier} at step {first}; the longest reaches {longest}. Taken from the gate that keeps, over {n} sequences, and of the direct path alone: a unit can also be reminded by others.",
        "audience": "For those who ask how far back a network can look.",
        "practitioner": "Compare with the distances in your data: where the longest memory is far shorter, what lies further back is lost; start forget gates with a bias of 1 or more, or train on longer sequences.",
        "researcher": "The geometric mean over steps, as the product of the gates demands; an arithmetic one would be biased upwards. Tallec and Ollivier 2018 set the scale at the start by the bias; Mahto et al. 2021 tie its tail to that of the text.",
    },
    "saturation_plain": {
        "shows": "For every unit the share of time steps in which its hidden state is near its upper end (to the right) or near its lower end (upwards); one dot a unit, one colour a layer.",
        "reading": "A plain cell has no gates: what saturates is the state itself. Dots near the dashed line are units that only ever say yes or no; dots in the lower left corner work in the range where the cell is almost linear.",
        "caution": "At step {step} the units of {layer} are at the upper end {right} of the time and at the lower one {left}; {free} of them are at an end less than a twentieth of the time. Counted over {n} sequences without padding; the unrolled layers agree with the network's own output to {residual} of its largest value.",
        "audience": "For anyone who trains recurrent networks without gates.",
        "practitioner": "Units at their ends pass on hardly any gradient: smaller weights, or gates, give them back their slope.",
        "researcher": "An end is a tenth of the range from -1 to 1 unless set otherwise, so beyond ±0.8; there the slope of the tangent is below 0.36.",
    },
    "constants_plain": {
        "shows": "For every number of steps, the share of modes of the recurrent weights that last longer than that, as if the cell were linear; the slider moves through training.",
        "reading": "A mode is a mixture of units that decays by one factor. Curves that stay above 0 up to the right edge belong to modes that do not decay at all: only squashing bounds them.",
        "caution": "In {layer} at step {step} a tenth of {units} modes last less than {low}, half less than {middle}, a tenth more than {high}; {endless} do not decay, where {endless_before} did not at step {first}. Once units saturate the real memory is shorter than this says.",
        "audience": "For those who ask how far back a network without gates can look.",
        "practitioner": "If modes that do not decay appear while the loss jumps, clip gradients or lower the rate; if all are short, use gated cells for long dependencies.",
        "researcher": "-1 / log |λ| of the eigenvalues at the origin; moduli of 1 and more count as 10 million steps. The recurrence linearised at the states that occur would have smaller moduli.",
    },
    "constants_map": {
        "shows": "The median memory time constant of every recurrent layer over training, as a power of ten of steps.",
        "reading": "Brighter is longer: 0 is one step, 1 is ten steps. Rows that brighten are layers that learn to keep.",
        "caution": "At step {step} the range is from {low_value:.3g} steps in {low} to {high_value:.3g} in {high}, over {n} sequences; {empty}. A median hides the few units with long memories.",
        "audience": "For comparing layers and moments of training at a glance.",
        "practitioner": "A map that stays dark while the loss stalls points at memory as the bottleneck.",
        "researcher": "Quantiles 0.1 and 0.9 are filed beside it; their ratio is the width of the distribution, which tends to grow while the median may not.",
    },
    "spectrum": {
        "shows": "The eigenvalues of the square block of recurrent weights that acts on each gate, in the complex plane, with the unit circle.",
        "reading": "Real dots near 1 stand for something that goes on by itself, pairs off the axis for something that turns. Dots outside the circle would grow if the cell were linear; here squashing holds them back.",
        "caution": "In {layer} at step {step} the {gate} block reaches furthest, {radius} from the centre, where it was {before} at step {first}; {outside} of its {units} eigenvalues lie outside the circle. Eigenvalues say nothing of the size of single steps where the matrix is far from normal.",
        "audience": "For readers who know linear systems.",
        "practitioner": "Of a plain recurrent network all dots well inside mean that gradients vanish, far outside that they may explode. In gated cells the forget gates decide instead, so look there first.",
        "researcher": "Only for plain cells is this the Jacobian at zero (Pascanu, Mikolov and Bengio 2013, section 2.1); for a gate it is its sensitivity to the state before squashing, through the projection where there is one.",
    },
    "likeness": {
        "shows": "The correlation between the hidden states of every two units over all samples and steps, with units that say the same side by side.",
        "reading": "Dark squares on the diagonal are groups of units that do the same, in red, or the opposite, in blue. A pale picture means that every unit says something of its own.",
        "caution": "At step {step} the most alike of {units} units of {layer} are {one} and {other}, with {highest}; a typical pair has {typical}. {clusters} clusters have all correlations above {above}, and {could} units could go if each kept one; {still} units that never move are left out.",
        "audience": "For deciding how wide a layer must be.",
        "practitioner": "If many units could go, try a narrower layer. A few doubles are harmless.",
        "researcher": "Linear likeness on this probe only: on other text two units may part. Complete linkage, so that a chain of likenesses is no cluster; the cluster of each unit is stored.",
    },
    "trace_map": {
        "shows": "The {held} of units {which}, while one sequence is read {direction}; the slider moves through training.",
        "reading": "Look for rows that keep a colour over a stretch and change it at a certain token: a quote, a bracket, the end of a line. Rows that change with every token follow the input alone.",
        "caution": "One sample, {sample}, and {drawn} of its steps; {units} of {all} units are drawn. At step {step} unit {steady} of {layer} is the steadiest and changes its sign {flips}; {full} of all values are beyond ±0.9. A pattern that you see in one sequence is a guess until it is tested over many.",
        "audience": "For a first look at what units may stand for.",
        "practitioner": "Note the rows that seem to follow something, then have the search for interpretable cells test them over all samples.",
        "researcher": "Among the units that move on this sample at the newest step some are chosen evenly by time constant (of plain cells, those that move most); they keep their places at the other steps, so early pictures are not chosen to look well. The whole trace is stored as float16.",
    },
    "trace_lines": {
        "shows": "The {held} of a few units {which}, at the newest step and over the same tokens, and below it the gate that keeps, where the cell has one.",
        "reading": "Where the gate is near 1 a line goes on as it was; where the gate drops, the unit lets go and can take up something new.",
        "caution": "On {drawn} steps of sample {sample} at step {step}: {gate}. Lines go from {longest} to {shortest}; the choice is one of many, and other samples move other units.",
        "audience": "For readers who want to see a memory cell at work.",
        "practitioner": "A long memory that drops at every token holds nothing: its time constant comes from other stretches of the data.",
        "researcher": "τ is taken over all measured samples. A cell state can also be kept by being written anew at each step, which the lower panel does not show.",
    },
}
