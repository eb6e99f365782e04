"""The words below the figures of memory over training."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "constants": {
        "shows": "Memory time constants of the units of each recurrent layer over the training, in steps: the line is the median unit, the dark band holds half of the units, the pale one nine tenths. {source}",
        "reading": "A band that opens upwards is units that learn to hold for longer while others stay quick: the layer comes to work on several time scales. All of it rising alike is the whole layer getting slower.",
        "caution": "{widening} {long}",
        "audience": "For everybody who asks whether a recurrent network remembers, and since when.",
        "practitioner": "If no unit's time constant comes near the distances that your task needs, the state cannot carry them on its own: raise the forget bias at the start, or train on longer sequences.",
        "researcher": "These are constants of the direct path, from the mean logarithm of the gate; see the Jacobians for what other paths add. Intervals are over units, which are not independent. With a unit forget bias at the start the band begins narrow for that reason alone.",
    },
    "lags": {
        "shows": "Power of ten of the gradient of the loss by the {state} of {layer}, by how many steps before the loss (line) and over the training (column), each column by its own value at lag 0.",
        "reading": "Read a column downwards: the longer it stays bright, the further back the loss reaches at that checkpoint. Brightness that grows downwards from left to right is memory in the making.",
        "caution": "Half of the gradient lay within {first:.1f} steps at step {start} and within {last:.1f} at step {end}; the longest was {most:.1f}, at step {when}. The window is {window} steps: nothing is known below it. Values below a millionth are drawn as that.",
        "audience": "For those who ask when the gradient begins to reach back.",
        "practitioner": "A network whose columns never reach the distance of the task has not begun to learn it, whatever the loss says: it learns the short part.",
        "researcher": "Columns are shares of lag 0, so the fall of the gradient with the loss itself is taken out. The profile is a mean of norms over samples and chosen loss steps.",
    },
    "length": {
        "shows": "Effective memory length over the training: within so many steps, the loss step counted first, half of the gradient by each state lies. Layers by colour, cell and hidden state apart.",
        "reading": "Steps up are moments at which training found something further back. A curve that falls again trades reach for what is near.",
        "caution": "From step {start} to {end} it changes most in {layer}: {first:.1f} to {last:.1f} steps, of a window of {window}. {limit}",
        "audience": "For those who follow a training and want one number for its memory.",
        "practitioner": "Watch this beside the loss: a plateau of the loss with this still rising is often worth waiting for.",
        "researcher": "A length of the gradient is one of what could be learned now, not of what is stored; the context curves of the experiments tell what is used.",
    },
    "saturation": {
        "shows": "Share of real steps at which the gates of {layer} are saturated, over the training: above {right:g} of their range (solid) and below {left:g} (dashed), mean over units.",
        "reading": "A forget or update gate that is saturated on the right holds what it has, one on the left erases it. Gates that leave the middle decide; gates that stay there blend.",
        "caution": "At step {step} the most saturated is the {gate} gate, {share:.0%} of the steps on the {side}; at step {start} that was {before:.0%}. {still}",
        "audience": "For those who read gates.",
        "practitioner": "Gates that are nearly always saturated on one side do no work and pass no gradient: a smaller learning rate or weight decay keeps them movable.",
        "researcher": "The bounds are conventions of Karpathy, Johnson and Fei-Fei (2015); histograms that allow any others are in recurrent_state. Means over units hide units that are always left beside others that are always right.",
    },
    "radius": {
        "shows": "Largest modulus of the eigenvalues of the blocks of recurrent weights of {layer}, by gate, over the training.",
        "reading": "In a plain network a radius below 1 forgets whatever the input, one above 1 can amplify. In a gated one the block of the candidate tells most; the others drive gates.",
        "caution": "At step {step} the largest is {value:.2f}, of the {gate} block; at step {start} it was {before:.2f}. Squashing keeps states bounded whatever the radius: above 1 need not explode.",
        "audience": "For those who think of a recurrent layer as a dynamical system.",
        "practitioner": "A radius that grows without end is an early sign of exploding gradients: clip, or decay the weights.",
        "researcher": "The radius of a block is no bound on the Jacobian of a step: gates scale it, and it need not be normal. The Jacobians of gradient_through_time are the numbers to trust.",
    },
}
