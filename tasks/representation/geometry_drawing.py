"""The pictures of the geometry: dimensions, lopsidedness, hubs and class clouds by layer and step, and the spectra."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import step_directory
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.features import INPUT
from stratascope.tasks.representation.layer_heatmaps import (
    COLUMNS,
    LayerMap,
    layer_map,
    layers_in_order,
    newest_by_layer,
)
from stratascope.tasks.representation.pictures import (
    even_choice,
    figure_key,
    layer_title,
    leading_probe,
    table_of,
    worded,
)

_SPECTRA = 9
_RANKS = 400
_TWO_NN, _MLE = "estimator=two_nn", "estimator=mle"
_MAPS = (
    LayerMap("effective_rank", "", "Effective rank", "directions, power of ten", "rank", powers=True),
    LayerMap("participation_ratio", "", "Participation ratio", "directions, power of ten", "participation", powers=True),
    LayerMap("intrinsic_dimension", _TWO_NN, "Intrinsic dimension (TwoNN)", "dimension", "two_nn"),
    LayerMap("intrinsic_dimension", _MLE, "Intrinsic dimension (maximum likelihood)", "dimension", "mle"),
    LayerMap("spectrum_decay", "", "Decay of the spectrum", "exponent", "decay"),
    LayerMap("anisotropy", "aspect=mean_cosine", "Mean cosine of all pairs", "cosine", "cosine"),
    LayerMap("anisotropy", "aspect=top_component", "Share of the leading component", "share of the variance", "top"),
    LayerMap("class_manifold_radius", "", "Radius of the classes", "radius by distance of centres", "radius"),
    LayerMap("class_manifold_dimension", "", "Dimension of the classes", "participation ratio", "class_dimension"),
    LayerMap("hubness", "", "Hubness", "skewness", "hubness"),
)  # fmt: skip


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe the dimensions by layer at the newest step, each measure by layer and step; each layer's spectra."""
    for probe in sorted(set(view.rows["probe"].unique()) - {""}):
        yield from _profile(view, probe)
        for kind in _MAPS:
            yield from layer_map(view, kind, probe, _WORDS[kind.words], headline=kind.words == "two_nn")
        for layer in layers_in_order(view, "effective_rank", view.metric("effective_rank", probe=probe)["layer"].unique()):  # fmt: skip
            yield from _spectra(view, probe, layer)


def _profile(view: View, probe: str) -> Iterator[Figure]:
    from stratascope.tasks.report.profiles import layer_profile

    wanted = {
        "effective rank": ("effective_rank", ""), "participation ratio": ("participation_ratio", ""),
        "TwoNN": ("intrinsic_dimension", _TWO_NN), "maximum likelihood": ("intrinsic_dimension", _MLE),
    }  # fmt: skip
    found = newest_by_layer(view, wanted, probe)
    if found is None:
        return
    step, layers, columns, table = found
    bounded = sorted(
        {layer_title(row.layer) for row in table.itertuples() if "at most n-1" in str(row.convention)}
    )
    gaps = {}
    if {"TwoNN", "maximum likelihood"} <= columns.keys():
        pairs = zip(layers, columns["TwoNN"][0], columns["maximum likelihood"][0], strict=True)
        gaps = {layer: abs(one - other) / other for layer, one, other in pairs if np.isfinite(one + other)}
    worst = max(gaps, key=lambda layer: gaps[layer]) if gaps else ""
    numbers = {
        "n": int(table["n"].max()), "step": step,
        "bounded": f"fewer samples than features bound {', '.join(bounded)}" if bounded else "every layer has more samples than features",
        "worst": f"the two estimates of the intrinsic dimension differ most in {layer_title(worst)}, by {gaps[worst]:.0%}" if worst else "no layer has both estimates of the intrinsic dimension",
    }  # fmt: skip
    yield worded(
        _WORDS["profile"],
        numbers,
        key=figure_key("profile", probe),
        title=f"Four kinds of dimension by layer at the newest step, probe {probe}",
        svg=layer_profile([layer_title(layer) for layer in layers], columns, "dimension", logarithmic=True),
        run=view.run,
        probe=probe,
        headline=probe == leading_probe(view, view.metric("effective_rank")["probe"].unique()),
        table=table_of(table, ("metric", *COLUMNS)),
    )


def _spectra(view: View, probe: str, layer: str) -> Iterator[Figure]:
    """Singular values over their rank at an even choice of the steps; those of the raw inputs at the newest only."""
    from stratascope.tasks.report.profiles import spectra

    steps = sorted({int(step) for step in view.metric("effective_rank", probe=probe, layer=layer)["step"]})
    found = {}
    for step in steps[-1:] if layer == INPUT else even_choice(steps, _SPECTRA):
        path = join_path("runs", view.run, step_directory(step), "geometry", probe, layer, "variance")
        if view.store.has_array(path):
            found[step] = np.sqrt(view.store.array(path))
    if not found:
        return
    last, values = list(found.items())[-1]
    share = np.cumsum(values**2) / (values**2).sum()
    decay = view.rows[
        (view.rows["metric"] == "spectrum_decay") & (view.rows["layer"] == layer) & (view.rows["probe"] == probe)
    ]
    newest = decay[decay["step"] == last]
    ranks = {step: np.unique(np.geomspace(1, len(item), _RANKS).astype(int)) for step, item in found.items()}
    numbers = {
        "layer": layer_title(layer), "step": last, "half": int((share < 0.5).sum()) + 1, "most": int((share < 0.95).sum()) + 1,
        "count": len(values), "law": _law(newest),
    }  # fmt: skip
    yield worded(
        _WORDS["spectra"],
        numbers,
        key=figure_key("spectra", probe, layer),
        title=f"Singular values of {layer_title(layer)}, probe {probe}",
        svg=spectra(found, "standard deviation"),
        run=view.run,
        layer=layer,
        probe=probe,
        table={
            "step": [step for step, chosen in ranks.items() for _ in chosen],
            "rank": [int(rank) for chosen in ranks.values() for rank in chosen],
            "standard_deviation": [
                float(found[step][rank - 1]) for step, chosen in ranks.items() for rank in chosen
            ],
        },
    )


def _law(rows: Any) -> str:
    if not len(rows):
        return "no power law was fitted"
    row = rows.iloc[0]
    if row["status"] == "ok":
        return f"a power law fits with exponent {row['value']:.2f}"
    return f"there is no exponent to trust: {row['reason']}"


_WORDS: dict[str, dict[str, str]] = {
    "profile": {
        "shows": "For every layer, at the newest step, how many directions its features use and how many numbers its manifold needs; bars are 95 % intervals.",
        "reading": "A large rank with a small intrinsic dimension means a thin, strongly curved sheet. Layers near the output usually narrow down.",
        "caution": "Measured over {n} samples at step {step}; {bounded}; {worst}.",
        "audience": "For everyone who wonders whether a layer is wider than it needs to be.",
        "practitioner": "Where all four lie far below the layer's width, the layer can be made narrower at little cost.",
        "researcher": "The upper two see the linear span, the lower two the local scale of neighbours; the scale shrinks as n grows, so compare at equal n only.",
    },
    "rank": {
        "shows": "exp of the entropy of the singular values' shares: how many directions a layer uses, as a power of ten.",
        "reading": "Falling along a row means that training concentrates the layer on fewer directions.",
        "caution": "At step {step} it runs from {low_value:.3g} ({low}) to {high_value:.3g} ({high}); {raw}. {n} samples bound it too; margins {margin}; {empty}.",
        "audience": "For watching rank collapse during training.",
        "practitioner": "After a sudden drop in all layers at once, look at the loss and the learning rate at that step.",
        "researcher": "Shares of singular values as in the paper: with shares of variances, as some do, the numbers are smaller.",
    },
    "participation": {
        "shows": "The number of directions that carry the variance, as a power of ten.",
        "reading": "It answers the same question as the effective rank but lets large directions count for more.",
        "caution": "Least at step {step} is {low} with {low_value:.3g}, most {high} with {high_value:.3g}; {raw}. Over {n} samples, margins {margin}; {empty}.",
        "audience": "For comparison with work on neural recordings.",
        "practitioner": "A value near the number of classes less one says that the layer keeps little beyond the class.",
        "researcher": "Plug-in estimate: for features as many as samples it is biased down, for isotropic ones to about nd / (n + d).",
    },
    "two_nn": {
        "shows": "The dimension of the manifold on which samples lie, from the ratio of distances to the two nearest neighbours.",
        "reading": "In trained networks it often rises in the first layers and falls towards the last.",
        "caution": "At step {step} between {low_value:.3g} in {low} and {high_value:.3g} in {high}; {raw}. {n} different samples at most, margins {margin}; {empty}.",
        "audience": "For researchers of representations and their capacity.",
        "practitioner": "Compare runs on one probe rather than trusting the number itself.",
        "researcher": "Above about 10 dimensions a few thousand samples cannot show the local scale: the estimate is then a lower bound. Equal samples are removed.",
    },
    "mle": {
        "shows": "The dimension of the manifold from the distances to several neighbours, inverses averaged.",
        "reading": "It should tell the same story as the estimate from two neighbours on a somewhat larger scale.",
        "caution": "Smallest at step {step} is {low_value:.3g} ({low}), largest {high_value:.3g} ({high}); {raw}. At most {n} different samples; margins {margin}; {empty}.",
        "audience": "For checking the other estimate of intrinsic dimension.",
        "practitioner": "If both estimates disagree by more than a fifth, quote neither without the number of neighbours.",
        "researcher": "With k neighbours the scale is larger, so curvature raises and edges lower it; noise raises the estimate from two neighbours first.",
    },
    "decay": {
        "shows": "The exponent of a power law through the spectrum's last well-estimated decade; empty where no power law fits.",
        "reading": "Large exponents are smooth codes with few directions, small ones rough codes with many.",
        "caution": "At step {step} exponents go from {low_value:.2f} in {low} to {high_value:.2f} in {high}; {raw}. From {n} samples, margins {margin}; {empty}.",
        "audience": "For comparing networks with spectra of visual cortex.",
        "practitioner": "Read the spectra themselves first; an exponent is a summary of one decade only.",
        "researcher": "Sample eigenvalues, not cross-validated ones: noise flattens the tail, hence only a tenth as many ranks as samples are used.",
    },
    "cosine": {
        "shows": "The mean cosine between the features of two samples, seen from the origin.",
        "reading": "Near 1 all samples point the same way, which a shared offset or a ReLU is enough to cause; 0 is even.",
        "caution": "{high} is highest at step {step} with {high_value:.3f}, {low} lowest with {low_value:.3f}; {raw}. {n} samples, margins {margin}; {empty}.",
        "audience": "For users of cosine similarity between features.",
        "practitioner": "Before ranking by cosine in a layer with a high value, subtract the mean.",
        "researcher": "All pairs exactly, from the norm of the summed directions. It changes with translation, unlike the other measures here.",
    },
    "top": {
        "shows": "The share of a layer's variance that lies along its first principal component.",
        "reading": "Near 1 a single direction rules the layer; look at which samples lie at its ends.",
        "caution": "At step {step} {high} leads with {high_value:.3f}, {low} has least with {low_value:.3f}; {raw}. Margins {margin} over {n} samples; {empty}.",
        "audience": "For those who look for outlier directions.",
        "practitioner": "If it jumps at a step, compare the largest activations before and after: one unit may have run away.",
        "researcher": "Chance alone gives about (1 + √(d / n))² / d for isotropic features.",
    },
    "radius": {
        "shows": "How wide the classes are relative to the distance of their centres from the middle; the mean over classes.",
        "reading": "Below 1 a class lies mostly on its own side. Falling rows are layers in which classes shrink.",
        "caution": "Tightest at step {step} is {low} with {low_value:.3g}, widest {high} with {high_value:.3g}; {raw}. {n} samples in all; margins {margin}; {empty}.",
        "audience": "For readers of the theory of manifold capacity.",
        "practitioner": "Find the class with the largest radius in the findings: it is the one the network is least sure of.",
        "researcher": "Second moments about centres, not anchor points: it leaves out which part of a manifold touches the separating plane.",
    },
    "class_dimension": {
        "shows": "The participation ratio of the features within one class, averaged over classes.",
        "reading": "Few dimensions and a small radius together make classes easy to part with a plane.",
        "caution": "At step {step} from {low_value:.3g} ({low}) to {high_value:.3g} ({high}); {raw}. All classes have {n} samples together, and no class can have more dimensions than its own samples less one; margins {margin}; {empty}.",
        "audience": "For those who ask what variation inside a class survives.",
        "practitioner": "Very few dimensions per class in the last layer leave little for transfer to finer classes.",
        "researcher": "Biased down when a class has few samples: compare classes of equal size, or runs on one probe.",
    },
    "hubness": {
        "shows": "The skewness of how often a sample is among the nearest neighbours of others.",
        "reading": "Near 0 all are neighbours alike often; above 1 a few hubs are near to everything, and votes of neighbours suffer.",
        "caution": "Most hubs at step {step} has {high} with {high_value:.2f}, fewest {low} with {low_value:.2f}; {raw}. n is {n}, margins {margin}; {empty}.",
        "audience": "For users of nearest neighbours, retrieval and maps.",
        "practitioner": "Look at the samples with the highest occurrence: a blank or broken input shows there.",
        "researcher": "It grows with intrinsic dimension and with n; shares of hubs and of samples that are no one's neighbour are filed beside it.",
    },
    "spectra": {
        "shows": "The singular values of the centred features, as standard deviations along each principal component; dark lines are early steps, light ones late.",
        "reading": "A knee after the number of classes less one means that classes rule the layer. A straight line is a power law.",
        "caution": "In {layer} at step {step} {half} of {count} components hold half of the variance and {most} hold 95 %; {law}.",
        "audience": "For anyone who wants to see what a dimension summarises.",
        "practitioner": "Components far down the line can be cut off: project to the number that holds 95 %.",
        "researcher": "Values below 1e-7 of the first are rounding and left out. Eigenvalues of a sample spread wider than the population's; the more so the fewer samples.",
    },
}
