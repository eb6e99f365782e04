"""The texts of the figures of rollout and flow; numbers of the run at hand are put into them."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "pictures": {
        "shows": "Where in the picture {whose} gets its content from, by attention alone, after each number of layers: attention multiplied up with the residual connection counted in, for {shown} samples.",
        "reading": "Bright patches hand on more. Compare a row from left to right: what is still uneven at the last depth has come through all layers.",
        "caution": "With {depth} layers at step {step}, the quarter of the patches that have most hold {top:.0%} on average (25 % if all {patches} had the same), the largest share is {strongest:.3f} against {alike:.3f}. The captured weights reproduce the layers' outputs {residual}. {importance}",
        "audience": "For those who want one picture of what a vision transformer's attention passes on.",
        "practitioner": "Use it to spot attention that never reaches the object. As an explanation of the answer, attribution with its tests is the better tool.",
        "researcher": "Values, output projections and perceptrons take no part; half of each token is taken to pass unchanged. The same samples and one colour scale at all steps.",
    },
    "tokens": {
        "shows": "For sample {sample}, how much of each input token (column) each token of a layer (row) holds by attention alone, after growing numbers of layers, the residual connection counted in.",
        "reading": "A bright diagonal is a token that mostly kept itself. A bright column is a token that all others took in.",
        "caution": "After {depth} layers at step {step} a token holds {own:.2f} of itself and {first:.2f} of the first token on average; spread evenly over {tokens} tokens it would be {alike:.2f}. The captured weights reproduce the layers' outputs {residual}. {importance}",
        "audience": "For readers who want all layers in one picture.",
        "practitioner": "Where all rows look alike, do not read single rows: the mixture has lost them.",
        "researcher": "Products of row-stochastic matrices converge to rank one; values and perceptrons take no part. Causal attention keeps the upper triangle at 0.",
    },
    "flow": {
        "shows": "For sample {sample}, the largest amount of each input token that could reach each token through {depth} layers, every weight taken as the width of a pipe; beside it the rollout of the same layers.",
        "reading": "Flow is nowhere below rollout, which is one of the flows that are possible. Rows that are all alike mean that the pipes no longer set the limit.",
        "caution": "At step {step} the spread of the flow's rows is {spread:.4f} over {n} samples, that of the rollout {beside:.4f}. {verdict}; the smallest difference of flow and rollout is {gap:.1e}.",
        "audience": "For people who know attention flow from papers and want to see it with its limits.",
        "practitioner": "Prefer rollout, and shallow depths of it; flow is here to be checked against.",
        "researcher": "Maximum flow of Abnar and Zuidema 2020 on capacities in 2⁻³⁰. With dense attention from about four layers on F_ij = min(1, column sum of the first layer), whatever the query.",
    },
    "spread": {
        "shows": "How far the rollout still tells queries apart, by the number of layers that are multiplied up.",
        "reading": "The lower a line, the more alike are all rows, and the less a picture of the rollout says about any single token.",
        "caution": "At step {step} the spread falls from {first:.3f} after one layer to {last:.3f} after {depth}: {left} of it is left, over {n} samples ({convention}). It would fall with random weights too.",
        "audience": "For whoever is about to read a rollout of many layers.",
        "practitioner": "Read the pictures up to the depth at which some spread is left.",
        "researcher": "Standard deviation over real queries, mean over keys. With half of the weight on the residual, a share of 0.5 to the power of the depth stays on the diagonal.",
    },
}
