"""The channels that a class is made of, layer by layer, and which of them feed which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.vision.chosen_samples import SampleOptions, chosen_samples
from stratascope.tasks.vision.class_graph_drawing import draw

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stratascope.storage.probes import Probe
    from stratascope.tasks.vision.channel_places import ChannelPlace
    from stratascope.tasks.vision.chosen_samples import ImageSamples
    from stratascope.tasks.vision.image_network import ImageNetwork


class ClassGraphOptions(SampleOptions):
    """Of which convolutions, and how few of their channels stand for a class."""

    samples: int = Field(default=200, ge=2)
    layers: tuple[str, ...] = Field(default=("@convolutions",), min_length=1)
    """Convolutions; all others are as if they were opaque."""
    mass_share: float = Field(default=0.25, gt=0, le=1)
    """A sample counts for the fewest channels of a layer that hold this share of its mass."""
    predecessors: int = Field(default=5, ge=1)
    """So many inputs of each channel count as its predecessors on a sample."""
    least_share: float = Field(default=0.1, ge=0, lt=1)
    """An edge is kept where it counted for more than this share of a class's samples."""
    alpha: float = Field(default=0.85, gt=0, lt=1)
    """How likely the walk goes on."""
    node_share: float = Field(default=0.3, gt=0, le=1)
    """A class has the fewest channels of a layer that hold this share of the walk's mass there."""
    classes: tuple[int, ...] = ()
    """Those that are drawn; by default the first three that the probe has."""


@dataclass
class ClassGraph:
    """What is counted on one probe."""

    layers: list[str]
    widths: list[int]
    sizes: np.ndarray
    """int64 (class,): samples of each class."""
    activation: np.ndarray
    """int32 (class, node): in how many samples the channel is among the strongest; nodes layer by layer."""
    edge: np.ndarray
    """int32 (edge, 4): class, number of the layer, its channel, its input channel."""
    weight: np.ndarray
    """float32 (edge,): the share of the class's samples."""
    sources: dict[int, np.ndarray]
    """By number of the layer, int64 (in, 2): which layer and channel arrives there."""

    @property
    def offsets(self) -> np.ndarray:
        """int64 (layer,): the first node of each layer."""
        return np.concatenate([[0], np.cumsum(self.widths)[:-1]]).astype(np.int64)

    def walk_edges(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(edge, 2) of nodes, from a channel back to the one that feeds it, and the weights, of one class."""
        mine = self.edge[:, 0] == number
        pairs, weights = [], []
        for (_, layer, out, into), weight in zip(
            self.edge[mine].tolist(), self.weight[mine].tolist(), strict=True
        ):
            source = self.sources[layer][into]
            if source[0] >= 0:
                pairs.append((self.offsets[layer] + out, self.offsets[source[0]] + source[1]))
                weights.append(weight)
        return np.array(pairs, np.int64).reshape(-1, 2), np.array(weights, np.float64)


def compute(context: CheckpointContext, options: ClassGraphOptions) -> Findings:
    """Rows by layer, and arrays `<probe>/…`; what does not apply says why."""
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    network = ImageNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                _probe(options, network, probe, findings)
            except DoesNotApply as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
    return findings


def _probe(options: ClassGraphOptions, network: ImageNetwork, probe: Probe, findings: Findings) -> None:
    import torch

    from stratascope.tasks.vision.channel_influence import channel_sources
    from stratascope.tasks.vision.channel_places import channel_places
    from stratascope.tasks.vision.spatial_layers import CONVOLUTIONS, chosen_spatial_layers, observed

    samples = chosen_samples(probe, options)
    if samples.classes is None or samples.classes.min() < 0:
        raise DoesNotApply(f"the targets of probe {probe.name!r} are no classes.")
    observation = observed(network, probe)
    picture = samples.inputs.shape[2], samples.inputs.shape[3]
    every = chosen_spatial_layers((CONVOLUTIONS,), observation.layers, picture)
    calls = [layer.info.module for layer in every]
    usable = [layer for layer in every if layer.info.kind == "Conv2d" and calls.count(layer.info.module) == 1]
    wanted = {layer.name for layer in chosen_spatial_layers(options.layers, observation.layers, picture)}
    for layer in every:
        if layer.name in wanted and layer not in usable:
            reason = "the convolution is called more than once, or is transposed: its channels cannot be followed"
            findings.rows += [Row(metric.name, probe=probe.name, layer=layer.name, status="does_not_apply", reason=reason) for metric in ANALYSIS.metrics]  # fmt: skip
    places = [place for place in channel_places(usable, observation, picture) if place.layer.name in wanted]
    if len(places) < 2:
        raise DoesNotApply("a graph needs two convolutions or more that are called once.")
    sources = channel_sources(network, torch.from_numpy(samples.inputs[0]), usable, options.batch_size, every)
    kept = [number for number, layer in enumerate(usable) if layer.name in wanted]
    graph = _counted(options, network, samples, places, sources, {old: new for new, old in enumerate(kept)})
    _file(options, samples, graph, findings)


def _counted(
    options: ClassGraphOptions,
    network: ImageNetwork,
    samples: ImageSamples,
    places: list[ChannelPlace],
    sources: dict[str, np.ndarray],
    renumbered: dict[int, int],
) -> ClassGraph:
    """One pass over the samples; `renumbered` turns the layers that `sources` speak of into places of `places`."""
    from stratascope.tasks.vision.channel_measures import class_counts, strongest_by_mass

    classes = samples.classes
    assert classes is not None
    sizes = np.bincount(classes, minlength=len(samples.class_names))
    convolutions = _convolutions(network, places)
    peaks: list[list[np.ndarray]] = [[] for _ in places]
    influence: list[Any] = [0 for _ in places]
    size = network.fixed_batch_size or options.batch_size
    for start in range(0, len(samples), size):
        rows = slice(start, min(start + size, len(samples)))
        for number, (peak, chosen) in enumerate(
            _batch(options, network, samples.inputs[rows], places, convolutions)
        ):
            peaks[number].append(peak)
            counts = np.zeros((len(sizes), *chosen.shape[1:]), np.int32)
            np.add.at(counts, classes[rows], chosen.astype(np.int32))
            influence[number] = influence[number] + counts
    strongest = [strongest_by_mass(np.concatenate(parts), options.mass_share) for parts in peaks]
    edges = [
        _edges(number, counts, sizes, convolutions[number].groups, options.least_share)
        for number, counts in enumerate(influence)
    ]
    found = {}
    for number, place in enumerate(places):
        source = sources.get(place.layer.name, np.full((convolutions[number].in_channels, 2), -1)).copy()
        source[:, 0] = [renumbered.get(int(old), -1) for old in source[:, 0]]
        found[number] = source
    return ClassGraph(
        [place.layer.name for place in places], [place.channels for place in places], sizes,
        np.concatenate([class_counts(members, classes, len(sizes)) for members in strongest], 1),
        np.concatenate([edge for edge, _ in edges]), np.concatenate([weight for _, weight in edges]), found,
    )  # fmt: skip


def _convolutions(network: ImageNetwork, places: list[ChannelPlace]) -> list[nn.Conv2d]:
    modules: dict[str, Any] = dict(network.network.named_modules())
    return [modules[place.layer.info.module] for place in places]


def _batch(
    options: ClassGraphOptions,
    network: ImageNetwork,
    inputs: np.ndarray,
    places: list[ChannelPlace],
    convolutions: list[nn.Conv2d],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each place the peaks (sample, channel), and bool (sample, out, in of its group): its strongest predecessors."""
    import torch

    from stratascope.tasks.capture.extract import watched
    from stratascope.tasks.capture.layers import LayerInfo
    from stratascope.tasks.vision.channel_influence import single_channel_peaks, strongest_predecessors

    kept: dict[str, Tensor] = {}

    def receive(info: LayerInfo, values: Tensor) -> None:
        # What enters a convolution may be overwritten later on.
        kept[info.name] = values.clone() if info.side == "input" else values.flatten(2).amax(2)

    entering = [LayerInfo(f"{place.layer.name}:input", place.layer.info.module, "", (), (), side="input") for place in places]  # fmt: skip
    with watched(network.network, [*(place.at.info for place in places), *entering], receive), torch.no_grad():
        network.outputs(torch.from_numpy(inputs))
        for place, info, convolution in zip(places, entering, convolutions, strict=True):
            found = single_channel_peaks(convolution, kept.pop(info.name)[: len(inputs)])
            chosen = strongest_predecessors(found, options.predecessors)
            yield kept[place.at.name][: len(inputs)].cpu().numpy(), chosen.cpu().numpy()


def _edges(
    number: int, counts: np.ndarray, sizes: np.ndarray, groups: int, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """(edge, 4) and (edge,) of the `counts` (class, out, in of its group) that reach more than `least` of a class."""
    shares = counts / np.maximum(sizes, 1)[:, None, None]
    label, out, into = np.nonzero(shares > least)
    each = counts.shape[1] // groups
    absolute = into + out // each * counts.shape[2]
    edge = np.stack([label, np.full_like(label, number), out, absolute], 1).astype(np.int32)
    return edge, shares[label, out, into].astype(np.float32)


def _file(options: ClassGraphOptions, samples: ImageSamples, graph: ClassGraph, findings: Findings) -> None:
    from stratascope.tasks.vision.channel_influence import personalised_pagerank
    from stratascope.tasks.vision.channel_measures import jaccard, strongest_by_mass

    present = np.flatnonzero(graph.sizes).tolist()
    rank = np.zeros(graph.activation.shape)
    for number in present:
        if graph.activation[number].any():
            rank[number] = personalised_pagerank(
                *graph.walk_edges(number), graph.activation[number], options.alpha
            )
    root = encode_path_part(samples.probe)
    told = {"layers": graph.layers, "node_share": options.node_share}
    node = np.stack([np.repeat(np.arange(len(graph.widths)), graph.widths), np.concatenate([np.arange(width) for width in graph.widths])], 1)  # fmt: skip
    arrays = {
        "edge": NamedArray(("edge", "edge_column"), graph.edge, {"edge_column": ["class", "layer", "out", "in"], **told}),
        "weight": NamedArray(("edge",), graph.weight, {"of": "share of the class's samples"}),
        "node": NamedArray(("node", "node_column"), node.astype(np.int32), {"node_column": ["layer", "channel"], **told}),
        "activation": NamedArray(("class", "node"), graph.activation, {"mass_share": options.mass_share}),
        "pagerank": NamedArray(("class", "node"), rank.astype(np.float32), {"alpha": options.alpha}),
        "class_size": NamedArray(("class",), graph.sizes.astype(np.int64)),
    }  # fmt: skip
    for number, source in graph.sources.items():
        name = encode_path_part(graph.layers[number])
        arrays[f"{name}/source"] = NamedArray(("in", "node_column"), source, {"node_column": ["layer", "channel"]})
    findings.arrays |= {f"{root}/{name}": array for name, array in arrays.items()}
    for number, (layer, start, width) in enumerate(
        zip(graph.layers, graph.offsets.tolist(), graph.widths, strict=True)
    ):
        about: dict[str, Any] = {"probe": samples.probe, "layer": layer, "n": len(present)}
        members = strongest_by_mass(rank[present, start : start + width], options.node_share)
        known = [set(np.flatnonzero(row).tolist()) for row in members if row.any()]
        pairs = [jaccard(list(one), list(other)) for one, other in combinations(known, 2)]
        followed = float((graph.sources[number][:, 0] >= 0).mean())
        reason = "no channel of the layer is above 0"
        findings.rows.append(Row("class_channels", float(np.mean([len(one) for one in known])), **about) if known else Row("class_channels", status="does_not_apply", reason=reason, **about))  # fmt: skip
        reason = "two classes with active channels are needed"
        findings.rows.append(Row("class_channel_overlap", float(np.mean(pairs)), **about) if pairs else Row("class_channel_overlap", status="does_not_apply", reason=reason, **about))  # fmt: skip
        findings.rows.append(Row("followed_inputs", followed, **{**about, "n": len(graph.sources[number])}))


_ORDER = "order of the samples and of the channels"

ANALYSIS = register(
    Analysis(
        name="class_graph", version=1, scope="checkpoint", title="Class graph", question="Which channels is a class made of, and which feed which?",
        options=ClassGraphOptions, compute=compute, draw=draw, needs=frozenset({"network"}),
        metrics=(
            Metric("class_channel_overlap", "1", "[0, 1]", "Jaccard's index of the channels of a layer that stand for two classes, mean over the pairs of classes: the fewest that hold a share of the mass of a personalised PageRank over the class's graph.", "Hohman et al. 2019, section 6.3; Page et al. 1999", _ORDER),
            Metric("class_channels", "channels", "[0, ∞)", "How many channels of a layer stand for a class in that sense, mean over the classes.", "Hohman et al. 2019", _ORDER),
            Metric("followed_inputs", "fraction", "[0, 1]", "Share of a convolution's input channels at which a single channel of an earlier convolution arrives; 0 for the first.", "", _ORDER),
        ),
    )
)  # fmt: skip
