"""Maps of the probe's samples in two and three dimensions, comparable over all checkpoints of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.representation.embedding_drawing import draw
from stratascope.tasks.representation.features import FeatureOptions, chosen_rows, layer_names, request_of
from stratascope.tasks.representation.kept_maps import BOUNDS, MEASURES
from stratascope.tasks.representation.map_quality import movement, neighbours_for
from stratascope.tasks.representation.maps_over_steps import FEATURES, LayerMaps
from stratascope.tasks.representation.principal_components import Solver
from stratascope.tasks.representation.umap_and_pacmap import PACKAGES, require


class EmbeddingOptions(FeatureOptions):
    """Which layers to map, and how. t-SNE in three dimensions costs most."""

    layers: tuple[str, ...] = ("@last_linear:input",)
    """Names, globs, `re:…` or `type:…`; `@last_linear:input` is what enters the last linear layer, `@input` the inputs."""
    methods: tuple[Literal["pca", "tsne", "umap", "pacmap"], ...] = ("pca", "tsne")
    """`umap` and `pacmap` are extras: `pip install 'stratascope[umap]'`, `pip install 'stratascope[pacmap]'`."""
    dimensions: tuple[Literal[2, 3], ...] = (2, 3)
    max_samples: int = Field(default=2000, ge=10, le=10_000)
    """In three dimensions at most 2,000 of them are mapped."""
    max_steps: int = Field(default=60, ge=2)
    """Of more checkpoints than these an even choice is mapped, the first and the last among them."""
    comparable: Literal["consensus", "chain", "last", "independent", "procrustes"] = "consensus"
    """How maps of different steps are kept alike: all from the map of the mean affinities; each from the one before;
    all from the last one's; not at all; or made apart and turned onto the last one's."""
    solver: Solver = "exact"
    """Of principal components."""
    perplexity: float | tuple[float, ...] = 30.0
    """Several are mixed."""
    iterations: int = Field(default=275, ge=50)
    """Of t-SNE at each step from a common start, after 150 under exaggeration 4."""
    exaggeration: float = Field(default=1.0, ge=1.0, le=12.0)
    """Of t-SNE in its main phase."""
    angle: float = Field(default=0.8, gt=0, le=1)
    """Of the tree that t-SNE's forces are found with, for 2,000 samples or fewer and in three dimensions."""
    neighbours: int = Field(default=15, ge=2)
    """Of UMAP and PaCMAP."""
    priced_steps: int = Field(default=2, ge=1)
    """At so many steps, the last among them, t-SNE is made from a start of its own too, to tell what a common one costs."""
    stability_seeds: int = Field(default=1, ge=0)
    """So many maps from random starts are held against the last step's."""

    @field_validator("perplexity")
    @classmethod
    def _perplexity_is_above_one(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        every = value if isinstance(value, tuple) else (value,)
        if not every or min(every) <= 1:
            raise ValueError("a perplexity must be above 1")
        return value

    @property
    def perplexities(self) -> tuple[float, ...]:
        return self.perplexity if isinstance(self.perplexity, tuple) else (self.perplexity,)


def compute(context: SeriesContext, options: EmbeddingOptions) -> Findings:
    """Arrays `<probe>/<layer>/<method>_<2|3>d` (step, embedding_sample, component), and the quality of each map.

    Beside each map lies `quality_<map>` (step, measure, bound), and where maps share one `start_<map>`
    (embedding_sample, component). What was filed of them the last time is kept bit for bit where the same options are
    asked for the same samples, at each step whose features are the same: new steps join from the old start. In space
    the third dimension is called `component_3d`, and samples `embedding_sample_3d` where they are fewer.

    A step whose layer is not stored, or whose features cannot be mapped, is left out with a row that says why.
    Raises DoesNotApply where nothing at all can be mapped.
    """
    from threadpoolctl import threadpool_limits

    findings = Findings()
    reasons: list[str] = []
    names = _map_names(options, findings)
    # Sums in BLAS depend on the number of threads: with one, every worker files the same bytes.
    with threadpool_limits(limits=1):
        for name, probe in context.probes.items():
            try:
                layers = list(_layers(context, options, name))
            except DoesNotApply as reason:
                reasons.append(str(reason))
                continue
            rows = chosen_rows(probe, options.max_samples, options.seed)
            for layer in layers if names else ():
                made = LayerMaps(context, options, probe, layer, rows, names)
                made.make()
                findings.rows += [
                    Row("trustworthiness", layer=layer, probe=name, step=step, status="does_not_apply", reason=reason)
                    for step, reason in made.skipped
                ]  # fmt: skip
                if made.steps:
                    _keep_arrays(made, findings)
                    findings.rows += _rows(made)
                else:
                    reasons.append(f"layer {layer!r} on probe {name!r}: {made.skipped[-1][1]}.")
    if not findings.arrays:
        reasons += [row.reason for row in findings.rows if not row.layer]
        raise DoesNotApply(" ".join(dict.fromkeys(reasons)) or "no layer was chosen.")
    return findings


def _map_names(options: EmbeddingOptions, findings: Findings) -> tuple[str, ...]:
    """The maps that can be made; a row says why one cannot."""
    names = []
    for method in dict.fromkeys(options.methods):
        try:
            if method in PACKAGES:
                require(method)
        except DoesNotApply as reason:
            refused = Row("trustworthiness", part=f"method={method}", status="does_not_apply", reason=str(reason))
            findings.rows.append(refused)
            continue
        names += [f"{method}_{dimensions}d" for dimensions in dict.fromkeys(options.dimensions)]
    return tuple(names)


def _layers(context: SeriesContext, options: EmbeddingOptions, probe: str) -> Iterator[str]:
    """The layers that the options' patterns mean, by the newest checkpoint whose layers are stored."""
    newest = next((item for step in reversed(context.steps) if (item := context.at(step)).layers(probe)), None)
    if newest is None:
        raise DoesNotApply(f"no layer of any checkpoint is stored for probe {probe!r}.")
    yield from layer_names(newest, probe, options.layers)


# -- what is filed ---------------------------------------------------------------------------------------


def _keep_arrays(made: LayerMaps, findings: Findings) -> None:
    place = f"{encode_path_part(made.probe.name)}/{encode_path_part(made.layer)}"
    about = {"layer": made.layer, "probe": made.probe.name}
    identities = made.probe.sample_id[made.rows]
    findings.arrays[f"{place}/sample_id"] = NamedArray(("embedding_sample",), identities, about)
    if not made.solid.all():
        few = NamedArray(("embedding_sample_3d",), identities[made.solid], about)
        findings.arrays[f"{place}/sample_id_3d"] = few
    weights = [str(made.context.facts.get(step, {}).get("weights_digest") or "") for step in made.steps]
    steps = np.asarray(made.steps, np.int64)
    findings.arrays[f"{place}/step"] = NamedArray(("step",), steps, about | {"weights_digests": weights})
    targets = made.probe.targets
    if targets is not None and targets.ndim == 1:
        names = {"class_names": list(made.probe.class_names)}
        findings.arrays[f"{place}/target"] = NamedArray(("embedding_sample",), targets[made.rows], names)
    digests = [made.digests[step] for step in made.steps]
    for name in (FEATURES, *made.names):
        kept = made.maps[name]
        quality = np.stack([kept.quality[step] for step in made.steps])
        facts = {"recipe": made.recipe(name), "digests": digests, "measure": list(MEASURES), "bound": list(BOUNDS)}
        findings.arrays[f"{place}/quality_{name}"] = NamedArray(("step", "measure", "bound"), quality, facts)
        if name == FEATURES:
            continue
        dims = _sample_dimensions(made, name)
        method = {**about, "method": name.partition("_")[0]}
        placed = np.stack([kept.positions[step] for step in made.steps])
        findings.arrays[f"{place}/{name}"] = NamedArray(("step", *dims), placed, method)
        if kept.start is not None:
            findings.arrays[f"{place}/start_{name}"] = NamedArray(dims, kept.start, {**method, **kept.start_facts})


def _sample_dimensions(made: LayerMaps, name: str) -> tuple[str, str]:
    """The names of a map's dimensions: in one group xarray wants one length for each."""
    if name.endswith("_2d"):
        return "embedding_sample", "component"
    return "embedding_sample" if made.solid.all() else "embedding_sample_3d", "component_3d"


def _rows(made: LayerMaps) -> Iterator[Row]:
    perplexity = "+".join(f"{item:g}" for item in made.options.perplexities)
    for name in (FEATURES, *made.names):
        neighbours = f"k={neighbours_for(made.count_of(name))}"
        told = {
            "trustworthiness": (neighbours, "mean over samples"),
            "continuity": (neighbours, "mean over samples"),
            "knn_preservation": (neighbours, "mean over samples"),
            "knn_accuracy": (neighbours, "leave one out"),
            "distance_correlation": ("500 samples at most", "Spearman"),
            "centroid_distance_correlation": ("class means", "Spearman"),
            "explained_variance": ("", f"{made.options.solver} PCA"),
            "kl_divergence": (f"perplexity={perplexity}", ""),
            "seed_stability": (f"{neighbours};starts={made.options.stability_seeds}", "mean over samples"),
        }
        for step in made.steps:
            row = partial(_row, made, name, step)
            quality = made.maps[name].quality[step]
            for measure, (value, low, high) in zip(MEASURES, quality.tolist(), strict=True):
                if np.isfinite(value) and measure in told:
                    convention, estimator = told[measure]
                    yield row(measure, value, convention, estimator=estimator, low=low, high=high)
            yield from _prices(quality, row, f"perplexity={perplexity}")
            yield from _chances(made, name, row)
        yield from _movements(made, name)


def _row(
    made: LayerMaps, name: str, step: int, metric: str, value: float, convention: str = "", *,
    part: str | None = None, more: str = "", **others: Any,
) -> Row:  # fmt: skip
    """A finding about a map, or about the features themselves; `more` is added to the part that names it."""
    width = made.maps[FEATURES].quality[step][MEASURES.index("feature_count"), 0]
    mine = "space=features" if name == FEATURES else f"map={name}"
    return Row(
        metric, float(value), layer=made.layer, probe=made.probe.name, step=step, n=made.count_of(name),
        part=f"{mine}{more}" if part is None else part,
        convention=";".join(filter(None, (f"d={width:.0f}", convention))), **others,
    )  # fmt: skip


def _prices(quality: np.ndarray, row: Callable[..., Row], convention: str) -> Iterator[Row]:
    drawn, own = (quality[MEASURES.index(name), 0] for name in ("kl_divergence", "kl_divergence_of_own_start"))
    if np.isfinite(own):
        yield row("kl_divergence", own, convention, more=";start=own")
        yield row("stability_cost", drawn / own - 1.0, convention)


def _chances(made: LayerMaps, name: str, row: Callable[..., Row]) -> Iterator[Row]:
    """What chance alone would give."""
    count = made.count_of(name)
    neighbours = neighbours_for(count)
    if name != FEATURES:
        yield row("knn_preservation", neighbours / (count - 1), f"k={neighbours}", more=";null=chance")
    elif made.classes is not None:
        _, sizes = np.unique(made.classes, return_counts=True)
        share = sizes.max() / sizes.sum()
        yield row("knn_accuracy", share, "always the commonest class", part="null=commonest_class")


def _movements(made: LayerMaps, name: str) -> Iterator[Row]:
    placed = made.maps[name].positions
    for before, step in zip(made.steps[:-1], made.steps[1:], strict=True) if name != FEATURES else ():
        convention = f"comparable={made.options.comparable}"
        value = movement(placed[before], placed[step])
        yield _row(made, name, step, "map_movement", value, convention, estimator="median over samples", other_step=before)  # fmt: skip


ANALYSIS = register(
    Analysis(
        name="embedding", version=2, scope="series", title="Embedding", question="Which classes does it tell apart, and since when?",
        options=EmbeddingOptions, compute=compute, draw=draw, needs=frozenset({"activations"}), default=True,
        keeps_reference=True, request=request_of,
        metrics=(
            Metric("trustworthiness", "1", "[0, 1]", "How far the nearest neighbours in a map (`part`) are neighbours in the layer's features too; about 0.5 for a random map.", "Venna and Kaski 2001", "rotation, reflection, translation and uniform scaling of features and map; order of the samples"),
            Metric("continuity", "1", "[0, 1]", "How far neighbours in the layer's features stay neighbours in a map; about 0.5 for a random map.", "Venna and Kaski 2001", "rotation, reflection, translation and uniform scaling of features and map; order of the samples"),
            Metric("knn_preservation", "fraction", "[0, 1]", "Share of each sample's 15 nearest neighbours among the features that are among its 15 nearest in a map; chance gives 15 of all others (`null=chance`).", "Lee and Verleysen 2009", "rotation, reflection, translation and uniform scaling of features and map; order of the samples"),
            Metric("knn_accuracy", "fraction", "[0, 1]", "Share of samples whose class most of their nearest neighbours have, in a map or in the layer's features (`part`); each sample is left out of its own vote.", "Cover and Hart 1967", "rotation, reflection, translation and uniform scaling"),
            Metric("kl_divergence", "nat", "[0, ∞)", "What t-SNE minimises: the divergence of the map's affinities from the features'. Comparable between maps of equal n and perplexity. `start=own` is that of a map which shares no start with other steps.", "van der Maaten and Hinton 2008, eq. 2", "rotation, reflection, translation and uniform scaling of the features"),
            Metric("stability_cost", "1", "(-1, ∞)", "What keeping maps of different steps alike costs: by which share a map's divergence exceeds that of a map from a start of its own.", "", "rotation, reflection, translation and uniform scaling of the features"),
            Metric("map_movement", "1", "[0, ∞)", "Median way of a sample from its place in the map of the step before, in units of both maps' root mean square radius.", "", "rotation, reflection, translation and uniform scaling of both maps together"),
            Metric("seed_stability", "fraction", "[0, 1]", "Share of each sample's 15 nearest in a map that are its nearest in maps of the same features from random starts too; at the last step.", "", "rotation, reflection, translation and uniform scaling of the maps"),
            Metric("distance_correlation", "1", "[-1, 1]", "Spearman's correlation of distances between pairs of samples in features and map: whether what lies far apart in a map is far apart.", "Spearman 1904", "rotation, reflection, translation and uniform scaling of features and map"),
            Metric("centroid_distance_correlation", "1", "[-1, 1]", "The same of distances between class means, where there are four classes or more.", "Spearman 1904", "rotation, reflection, translation and uniform scaling of features and map"),
            Metric("explained_variance", "fraction", "[0, 1]", "Share of the features' variance that lies along the drawn principal components.", "Hotelling 1933", "rotation, reflection, translation and uniform scaling of the features"),
        ),
    )
)  # fmt: skip
