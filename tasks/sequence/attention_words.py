"""What the figures of attention say about themselves."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "alignment": {
        "shows": "What {layer} looks at, for {count} samples: the weight of each source token (across) for each token that is said (down){head}. The slider goes over the steps.",
        "reading": "Each row sums to 1; black is 1. A dark line from corner to corner is a translation in order, a jump a change of order, an even grey row a query that looks nowhere.",
        "caution": "In {sample} at step {step} the largest weight of a row is {sharp:.2f} on average, even looks would have {even:.2f}. {cut}{note} {residual}",
        "audience": "For people who ask which source word a target word came from.",
        "practitioner": "Look for rows that are dark in the wrong place: there the network copies from a wrong token, or from its neighbour, whose state holds the word too.",
        "researcher": "Keys are states of an encoder that has read the whole source, so a weight on a token is not a weight on its word alone. Padding is left out of the picture; float16 weights of these samples lie in the archive.",
    },
    "heads": {
        "shows": "The {count} heads of self-attention that do one known thing most, on {sample}: weights of each key (across) for each query (down). The slider goes over the steps.",
        "reading": "A dark line beside the diagonal is a head that looks at a neighbour, a dark column one that looks at one token whatever is asked, dots off the diagonal a head that looks for equal tokens.",
        "caution": "Shown are {count} of {all} heads of {layers} layers, chosen by their scores over all samples, on one sample: {best} leads, and its rows reach {sharp:.2f} on average in this sample. {cut}{note} {residual}",
        "audience": "For people who want to see single heads before they read numbers about them.",
        "practitioner": "Compare with another shown sample before you name a head: one sentence is an anecdote.",
        "researcher": "The choice favours heads that fit a listed pattern; a head with a use that nobody named stands further back, and only the grid of all heads shows it.",
    },
    "grid": {
        "shows": "A thumbnail of the weights of every head at step {step}, by layer and head, on {sample}; queries go down, keys across.",
        "reading": "Each thumbnail has its own scale: black are its largest weights, one in a hundred is beyond it. Stripes, columns, blocks and noise are told apart at a glance; rows of this figure are layers.",
        "caution": "Black stands for a weight of {low:.3g} in one thumbnail and {high:.3g} in another, so two that look alike need not be. It is one sample. {left}{note}",
        "audience": "For a first look at a network, and for finding heads that stand out.",
        "practitioner": "Many heads with one and the same picture are candidates for pruning: then ask what taking them away costs.",
        "researcher": "One sample shows what depends on words; what depends on places alone is clearer in the mean over samples, which is filed as mean_weights where all have one length.",
    },
    "boxes": {
        "shows": "For the heads of each layer at step {step}: the entropy as a share of its largest value{distance}. A dot is a head, a box their quartiles.",
        "reading": "Left is sharp, right is even.{second}",
        "caution": "Over {n} samples the sharpest head is {sharp} with {low:.2f}, the most even {even} with {high:.2f}; layers have {heads} heads, so a box is of few values. {note}",
        "audience": "For people who compare layers, or watch heads collapse.",
        "practitioner": "A layer whose heads all stand at 1 has not learned to look anywhere; one whose heads all stand at 0 may have collapsed, which comes with unstable training.",
        "researcher": "The share divides by ln K of each query, K being the keys that it may look at, so causal rows of all lengths count alike. A sink lowers it without any use: the entropy without the first token is filed beside.",
    },
    "sinks": {
        "shows": "The weight that the first token gets, mean over queries and samples, by layer and head. The slider goes over the steps.",
        "reading": "Yellow heads look at the first token whatever is asked. {expected}",
        "caution": "At step {step} {best} gives it most, {value:.2f}; {over} of {all} heads give it more than half. {note}",
        "audience": "For people who wonder about the column that is dark in every picture.",
        "practitioner": "Such a head often does nothing for this input: it parks its weight. Do not read its picture as a finding about the first word.",
        "researcher": "Softmax must put its weight somewhere; training finds a key with a small value vector. Weight times the size of the value would tell whether anything is moved. Weights on further first keys lie in the array sink.",
    },
    "patterns": {
        "shows": "How much of each head's weight lies where a head of a known kind would look: {names}. The slider goes over the steps.",
        "reading": "1 is a head that does nothing else. Only queries that have such a key count. A head that looks at all its keys alike has {chance}.",
        "caution": "At step {step} the highest is {best} with {value:.2f} ({lowest:.2f} to {highest:.2f} over {n} samples). {note}",
        "audience": "For people who look for heads that copy, match or look back.",
        "practitioner": "A high score tells what a head looks at on these samples; on text of another kind it may do something else.",
        "researcher": "Scores are shares of weight over the queries concerned. On natural text equal tokens are near each other, so a head with a short range scores for matching without matching: use random tokens that are repeated to tell them apart.",
    },
    "lags": {
        "shows": "The mean weight on the key that stands so many tokens before the query, at step {step}: the {count} heads with the sharpest profiles in colour, all others pale.",
        "reading": "A peak at 1 is a head that looks at the token before, a peak at 0 one that looks at its own token, a peak elsewhere a fixed distance. A flat line depends on content, or on nothing. {ahead}",
        "caution": "The highest peak is {best} with {value:.2f} at lag {lag}. Far lags exist for few queries: the last one for {few} of {tokens}. {note}",
        "audience": "For people who ask how far back a network looks.",
        "practitioner": "If no head looks further than a few tokens, a shorter context would do for these samples.",
        "researcher": "Means are over the queries that may look that far, so curves need not sum to 1. On samples with a period the peak at that period is no proof of matching by content.",
    },
    "pictures": {
        "shows": "{queries}, laid over the picture, at several layers; mean over the heads. The slider goes over the steps.",
        "reading": "Bright patches get weight. One scale holds for all samples, layers and steps; it is full at {bound}. An even look would give each of the {patches} patches {even:.3g}.",
        "caution": "At step {step} the brightest patch of {sample} in {layer} gets {peak:.3g}, {times:.1f} times an even share; a patch is {patch} pixels wide, and nothing is known within it. {note} {residual}",
        "audience": "For people who want to see where a vision transformer looks.",
        "practitioner": "If the weight sits on corners and borders that hold nothing, they serve as a sink: trust attribution rather than this.",
        "researcher": "Tokens mix with depth: a patch in a late layer stands for more than its pixels. Rollout takes that into account, and attribution asks for the answer rather than for the look.",
    },
    "picture_heads": {
        "shows": "{queries} in {layer}, head by head, laid over the picture. The slider goes over the steps.",
        "reading": "Columns are heads with a scale in common; a head that lights up at the same place in all rows goes by place, one that follows the object goes by content.",
        "caution": "At step {step} head {head} is the sharpest: it puts {share:.0%} of its weight on its brightest patch of {sample}. Shown are {count} of {all} heads. {note}",
        "audience": "For people who want to tell heads apart.",
        "practitioner": "Heads that look the same on every picture are the first to try without.",
        "researcher": "The mean distance of each head is filed: local heads in early layers are what a convolution would have.",
    },
}
