"""What the figures of an embedding say."""

from __future__ import annotations

TITLES = {
    "pca_2d": "PCA in 2-D", "pca_3d": "PCA in 3-D", "tsne_2d": "t-SNE in 2-D", "tsne_3d": "t-SNE in 3-D",
    "umap_2d": "UMAP in 2-D", "umap_3d": "UMAP in 3-D", "pacmap_2d": "PaCMAP in 2-D", "pacmap_3d": "PaCMAP in 3-D",
}  # fmt: skip

STARTS = {
    "consensus": "all steps leave one map of the mean affinities",
    "chain": "each step leaves the map of the step before",
    "last": "all steps leave the last step's map",
    "independent": "each step has a start of its own, so places mean nothing from step to step",
    "procrustes": "each step has a start of its own and is turned onto the last step's map",
}
"""What each way of keeping maps alike does, in words."""

_WORDS: dict[str, dict[str, str]] = {
    "pca_2d": {
        "shows": "The samples in the plane in which this layer's features vary most, coloured by class; the slider moves through training.",
        "reading": "Distances within the plane are true ones. Classes that lie apart here can be told apart by a straight line.",
        "caution": "The plane holds {number:.0%} of the variance at the last step ({first:.0%} at the first): what overlaps here may be apart in the rest. Trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}. {warnings} {drawn} of {n} samples are drawn.{kept}",
        "audience": "For a first, honest look.",
        "practitioner": "When classes separate here already, a linear model on these features will do.",
        "researcher": "Each step has its own plane, found by PCA ({estimator}); within it the picture is turned by orthogonal Procrustes, without scaling, onto the plane of one step that was kept at the first audit, so that old pictures stay where they are. {scale}",
    },
    "pca_3d": {
        "shows": "The same principal directions with the third one added; drag to turn, slide to change the step.",
        "reading": "Turn it until two classes part: if no view parts them, three directions are not enough.",
        "caution": "Three directions hold {number:.0%} of the variance at the last step over {n} samples, of which {drawn} are drawn; perspective hides the rest. Trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}. {warnings}{kept}",
        "audience": "For readers who want to see whether overlap is real or a matter of the view.",
        "practitioner": "Use it when the flat map shows two classes on top of each other.",
        "researcher": "One scale on all three axes. {scale}",
    },
    "tsne_2d": {
        "shows": "A map that keeps near samples near, coloured by class, for every step.",
        "reading": "Islands are groups that the layer treats alike. Watch when an island parts from the others.",
        "caution": "Sizes of islands and gaps between them are no distances. Trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}. {warnings} The divergence is {number:.2f} nat at the end, over {n} samples, of which {drawn} are drawn.{kept}",
        "audience": "For everyone who wants to see classes form.",
        "practitioner": "Samples of one colour inside another's island are good candidates for wrong labels.",
        "researcher": "How steps are kept alike: {starts}; 150 iterations under exaggeration 4 let groups change places. Part of the calm between steps is owed to that, and what it costs in divergence is drawn below. A start is kept with the run: later checkpoints join without moving the old maps, until `audit --rebase`.",
    },
    "tsne_3d": {
        "shows": "The map that keeps neighbourhoods, with a third dimension; drag to turn, slide to change the step.",
        "reading": "Groups that touch in the flat map often come apart here; turn before you conclude.",
        "caution": "Depth makes gaps look larger than they are. {n} samples, {drawn} of them drawn; trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}; divergence {number:.2f} nat at the end. {warnings}{kept}",
        "audience": "For exploring groups that the flat map squeezes together.",
        "practitioner": "If a class stays split from every angle, look for two kinds of samples under one label.",
        "researcher": "Same affinities, perplexity and kind of start as in two dimensions, so its divergence can be set beside that map's; gradients are Barnes–Hut's with angle 0.8, over 2,000 samples at most.",
    },
    "umap_2d": {
        "shows": "UMAP's picture of the layer: the graph of near neighbours laid flat, coloured by class, for every step.",
        "reading": "Compare with t-SNE: a group that both show is likelier to be there than one that only one of them shows.",
        "caution": "Distances between groups depend on the start and on chance. Trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}. {warnings} {drawn} of {n} samples are drawn.{kept}",
        "audience": "For readers used to UMAP's pictures.",
        "practitioner": "A bridge between two islands often consists of the samples that the network confuses.",
        "researcher": "Seeded, on one thread, and turned onto its start ({starts}); its loss is no Kullback–Leibler divergence, hence no price is given in nats, only movement and neighbours kept.",
    },
    "umap_3d": {
        "shows": "UMAP's graph of neighbours in space; drag to turn, slide to change the step.",
        "reading": "Look for arms that leave a group: they are gradual change, which flat maps fold up.",
        "caution": "{drawn} of {n} samples are drawn. Trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}. {warnings}{kept}",
        "audience": "For exploring shapes that a plane cannot hold.",
        "practitioner": "Turn it to find samples that lie between two classes from every side.",
        "researcher": "Same graph and neighbours as the flat map ({starts}); compare their trustworthiness before reading more into this one.",
    },
    "pacmap_2d": {
        "shows": "PaCMAP's compromise between near pairs, middling pairs and far pairs, coloured by class, for every step.",
        "reading": "It keeps the large shape better than t-SNE does and small neighbourhoods less well: use it for how groups lie to each other.",
        "caution": "Trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}. {warnings} {drawn} of {n} samples are drawn.{kept}",
        "audience": "For a second opinion on the arrangement of groups.",
        "practitioner": "Trust an arrangement of classes only where PCA or this map agrees with t-SNE's.",
        "researcher": "Weights of the three kinds of pairs change over three phases (Wang et al. 2021); seeded, one thread, no PCA of its own, turned onto its start ({starts}).",
    },
    "pacmap_3d": {
        "shows": "PaCMAP's near, middling and far pairs in space; drag to turn, slide to change the step.",
        "reading": "Groups keep their large arrangement while you turn; judge overlap from several sides.",
        "caution": "Its authors have tested two dimensions. Here {drawn} of {n} samples are drawn, trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}. {warnings}{kept}",
        "audience": "For completeness beside the flat map.",
        "practitioner": "Prefer the flat map unless two groups hide each other there.",
        "researcher": "Settings as in two dimensions ({starts}).",
    },
    "quality": {
        "shows": "How often a sample's nearest neighbours vote for its class: among the layer's features and in each map.",
        "reading": "The features' line is what the layer knows. A map below it has lost something on the way to the picture.",
        "caution": "At the last step {poorest} loses most against the features, {lost:.3f}, over {n} samples ({used}); always answering the commonest class would score {chance:.3f}.",
        "audience": "For judging whether a pretty map may be believed.",
        "practitioner": "Trust the pictures where the lines run together; otherwise go by the features' line.",
        "researcher": "Leave one out, the same k in all spaces; intervals are bootstraps of the samples with their neighbourhoods fixed. A map above its features means that t-SNE smoothed locally, not that information was added.",
    },
    "faithfulness": {
        "shows": "What each map keeps of the features, step by step: whether its neighbours are true ones (trustworthiness), whether true neighbours stay (continuity), how many of the nearest 15 stay, and whether distances keep their order.",
        "reading": "Read a row from left to right. Bright means kept. t-SNE is bright in the upper rows of its block and dark in distances; PCA the other way round.",
        "caution": "The weakest of all is {measure} of {poorest} at step {step} with {value:.2f}, over {n} samples. Chance alone keeps {chance:.3f} of the nearest neighbours.",
        "audience": "For choosing which picture to argue with.",
        "practitioner": "Argue about neighbours only with a map whose neighbours are kept, about distances only with one whose distances are.",
        "researcher": "Trustworthiness and continuity after Venna and Kaski 2001; distances by Spearman's correlation over the pairs of 500 samples at most. The ledger has intervals, and the correlation of distances between class means.",
    },
    "price": {
        "shows": "t-SNE's divergence at every step from the common start, and from a start of its own at some steps.",
        "reading": "Where the points of its own start lie on the line, keeping steps alike costs nothing. A point below the line is a better map that would not be comparable.",
        "caution": "At {count} steps and maps that were tried, the common start costs {most:+.1%} at most ({where}) and {mean:+.1%} on average. {judgement}",
        "audience": "For whoever suspects that calm over training is made by the method.",
        "practitioner": "Below 5 % the pictures would look the same without the common start, apart from where things lie.",
        "researcher": "Own starts: principal components of spread 1e-4, 250 iterations under exaggeration 12, then 500. Kept alike: {starts}. Divergences are comparable within one number of dimensions, n and perplexity only.",
    },
    "movement": {
        "shows": "How far the middle sample moves from one step's map to the next, in units of the map's radius.",
        "reading": "High where the layer rearranges its samples, low where it has settled. A map made afresh at every step would move by about 1.",
        "caution": "The largest move is {most:.2f} radii in {where}, into step {step}; the last one there is {last:.2f}. {judgement} Steps are not evenly apart, so a long way may only be a long time. {n} samples.",
        "audience": "For finding the steps worth looking at.",
        "practitioner": "Go to the peaks with the slider and look which classes change places.",
        "researcher": "Median Euclidean displacement over the root mean square radius of both maps. PCA moves when the network scales or turns its axes within the plane's own Procrustes fit; t-SNE moves when neighbourhoods do. A common start lowers it; the ledger's `stability_cost` says at which price.",
    },
    "explorer": {
        "shows": "All layers' flat maps side by side, at the step that you choose. Point at a sample for its class{pictures}; draw a loop around samples to list them and to find them again in every map.",
        "reading": "A group that you loop in a late layer is marked in the earlier ones too: see where it comes together. The class names choose a whole class.",
        "caution": "{drawn} of {n} samples and {frames} of {steps} steps can be shown. {worst} A loop around an island finds what the map put there, which at its lowest trustworthiness ({trust:.2f}) is not always what the layer does.",
        "audience": "For asking who is in that island.",
        "practitioner": "Loop the strays of one colour in another's island: those are the samples to relabel or to collect more of.",
        "researcher": "The same positions as in the single figures, rounded to 1/65,535 of the width. Keys: arrows go from sample to sample, Enter marks one, Escape clears.",
    },
}


def words(name: str) -> dict[str, str]:
    """The six texts of the figure `name`."""
    return _WORDS[name]
