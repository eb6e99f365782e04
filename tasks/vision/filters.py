"""The kernels of the convolutions: pictures of the first ones, numbers of all, and pairs of convolutions taken as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from stratascope.errors import CaptureError, DoesNotApply, did_you_mean
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.vision.filters_drawing import draw

if TYPE_CHECKING:
    from stratascope.tasks.vision.convolution_paths import Between, ConvolutionGraph
    from stratascope.tasks.vision.image_network import ImageNetwork

FILTERS, EXPANDED = "filters", "expanded"
_DIMS = ("channel", "input_channel", "ky", "kx")
_NUMBER_BYTES = 4
_STATISTICS = ("filter_norm", "filter_duplicates", "filter_dead_fraction", "filter_high_frequency_share")


class FiltersOptions(Options):
    """What is kept of the kernels, and which convolutions are taken as one."""

    max_bytes: int = Field(default=8 << 20, ge=1)
    """Of kernels by checkpoint, and as much again of composed ones; where that is too few, channels evenly spread over
    their numbers are kept, the same ones at every checkpoint."""
    linear_steps: int = Field(default=2, ge=0, le=8)
    """Two convolutions are taken as one where at most so many activations and maximum poolings lie between them."""
    pairs: tuple[tuple[str, str], ...] = ()
    """(first, second) by name; each convolution with the nearest one that feeds it where none are given."""


def compute(context: CheckpointContext, options: FiltersOptions) -> Findings:
    """Rows by layer; arrays `filters/<layer>/…` and `expanded/<first> to <second>/…`. Raises DoesNotApply."""
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    network = ImageNetwork.of(context)
    with network.untouched():
        kernels = _kernels(network)
        graph, reason = _graph(network, context)
        order = [*graph.order, *kernels] if graph is not None else list(kernels)
        kernels = {name: kernels[name] for name in dict.fromkeys(order)}
        _file_kernels(kernels, options, findings)
        if graph is None:
            findings.rows.append(Row("expanded_weight_concentration", status="does_not_apply", reason=reason))
        else:
            _file_expanded(network, graph, options, findings)
    return findings


def _kernels(network: ImageNetwork) -> dict[str, np.ndarray]:
    """float32 (channel, input_channel, ky, kx) by name, in the order of registration."""
    import torch

    if not network.hookable:
        raise DoesNotApply("the layers of an exported program cannot be looked at one by one.")
    found = {
        name: module.weight.detach().float().cpu().numpy()
        for name, module in network.network.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }
    if not found:
        raise DoesNotApply("the network has no convolution over pictures (Conv2d).")
    return found


def _graph(network: ImageNetwork, context: CheckpointContext) -> tuple[ConvolutionGraph | None, str]:
    """Which convolution feeds which, by the first probe of pictures; or why that cannot be told."""
    from stratascope.tasks.vision.chosen_samples import SampleOptions, chosen_samples
    from stratascope.tasks.vision.convolution_paths import convolution_graph

    reason = "there is no probe."
    for probe in context.probes.values():
        try:
            return convolution_graph(network, chosen_samples(probe, SampleOptions(samples=1)).inputs), ""
        except (DoesNotApply, CaptureError) as error:
            reason = str(error)
    return None, f"which convolution feeds which cannot be told: {reason}"


def _file_kernels(kernels: dict[str, np.ndarray], options: FiltersOptions, findings: Findings) -> None:
    from stratascope.tasks.vision.layer_maps import kept_channels

    sizes = {name: (len(values), values[0].size * _NUMBER_BYTES) for name, values in kernels.items()}
    kept = kept_channels(sizes, options.max_bytes)
    for place, (name, values) in enumerate(kernels.items()):
        root = f"{FILTERS}/{encode_path_part(name)}"
        facts = {"place": place, "channels": len(values)}
        findings.arrays[f"{root}/weights"] = NamedArray(_DIMS, values[kept[name]], facts)
        findings.arrays[f"{root}/channel"] = NamedArray(("channel",), kept[name])
        findings.rows += kernel_rows(name, values)


def kernel_rows(layer: str, values: np.ndarray) -> list[Row]:
    """The findings about one layer's kernels (channel, input_channel, ky, kx)."""
    from stratascope.tasks.vision.filter_statistics import (
        chance_of_duplicates,
        dead_filters,
        duplicate_filters,
        filter_norms,
        high_frequency_shares,
        white_share,
    )

    count, inputs, height, width = values.shape
    about: dict[str, Any] = {"layer": layer, "n": count, "convention": f"{inputs} × {height} × {width} weights"}
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        reason = f"{wrong:,} of {values.size:,} weights are not finite."
        return [Row(metric, status="failed", reason=reason, **about) for metric in _STATISTICS]
    norms = filter_norms(values)
    rows = [
        Row("filter_norm", float(norms.mean()), estimator="mean over filters", **about),
        Row("filter_norm", float(norms.min()), part="of=smallest", **about),
        Row("filter_norm", float(norms.max()), part="of=largest", **about),
        Row("filter_dead_fraction", float(dead_filters(values).mean()), **about),
    ]
    if values[0].size < 2 or count < 2:
        reason = (
            "the layer has one filter."
            if count < 2
            else "a filter is a single number: all have the same direction."
        )
        rows.append(Row("filter_duplicates", status="does_not_apply", reason=reason, **about))
    else:
        chance = chance_of_duplicates(count, values[0].size)
        rows.append(Row("filter_duplicates", float(duplicate_filters(values).mean()), **about))
        rows.append(Row("filter_duplicates", chance, part="null=chance", **about))
    if height * width == 1:
        reason = "a kernel of 1 × 1 has no frequencies over places."
        rows.append(Row("filter_high_frequency_share", status="does_not_apply", reason=reason, **about))
    elif not norms.any():
        rows.append(
            Row("filter_high_frequency_share", status="does_not_apply", reason="all weights are zero.", **about)
        )
    else:
        shares = high_frequency_shares(values)
        estimator = "mean over filters that are not zero"
        rows.append(Row("filter_high_frequency_share", float(np.nanmean(shares)), estimator=estimator, **about))
        white = white_share((height, width))
        rows.append(Row("filter_high_frequency_share", white, part="null=white", **about))
    return rows


def chosen_ways(graph: ConvolutionGraph, pairs: tuple[tuple[str, str], ...]) -> list[Between]:
    """The `pairs` that are asked for; without any, each convolution with the nearest one that feeds it.

    Raises DoesNotApply that names a pair which is not there.
    """
    ways = {(way.first, way.second): way for way in graph.ways}
    if pairs:
        missing = next((pair for pair in pairs if tuple(pair) not in ways), None)
        if missing is not None:
            first, second = missing
            known = [way.first for way in graph.ways if way.second == second]
            unknown = next((name for name in missing if name not in graph.order), None)
            raise DoesNotApply(
                f"pairs: no convolution {unknown!r} is run.{did_you_mean(unknown, graph.order)}"
                if unknown is not None
                else f"pairs: {first} does not feed {second} directly; {', '.join(known) or 'no convolution'} does."
            )
        return [ways[first, second] for first, second in pairs]
    nearest: dict[str, Between] = {}
    place = {name: number for number, name in enumerate(graph.order)}
    for way in graph.ways:
        known_way = nearest.get(way.second)
        rank = (len(way.steps), way.sums, -place[way.first])
        if known_way is None or rank < (len(known_way.steps), known_way.sums, -place[known_way.first]):
            nearest[way.second] = way
    return [nearest[name] for name in graph.order if name in nearest]


def _file_expanded(
    network: ImageNetwork, graph: ConvolutionGraph, options: FiltersOptions, findings: Findings
) -> None:
    metric = "expanded_weight_concentration"
    try:
        ways = chosen_ways(graph, options.pairs)
        if not ways:
            raise DoesNotApply("no convolution feeds another one.")
    except DoesNotApply as reason:
        findings.rows.append(Row(metric, status="does_not_apply", reason=str(reason)))
        return
    for place, way in enumerate(ways):
        about: dict[str, Any] = {"layer": way.second, "other_layer": way.first}
        try:
            if len(way.steps) > options.linear_steps and not options.pairs:
                raise DoesNotApply(
                    f"{len(way.steps)} steps lie between ({', '.join(way.steps)}), more than `linear_steps` "
                    f"({options.linear_steps})."
                )
            _file_pair(network, way, place, options.max_bytes // len(ways), about, findings)
        except DoesNotApply as reason:
            findings.rows.append(Row(metric, status="does_not_apply", reason=str(reason), **about))


def way_words(way: Between) -> str:
    """What lies between two convolutions, in words."""
    linear = [f"{kind} over {kernel[0]} × {kernel[1]}" for kind, kernel, _ in way.pools if kind == "mean"]
    windows = [f"maximum over {kernel[0]} × {kernel[1]}" for kind, kernel, _ in way.pools if kind == "max"][::-1]
    steps = [windows.pop() if step.startswith("MaxPool2D") else _STEP_NAMES.get(step, step) for step in way.steps]
    words = ", ".join([*way.norms, *steps, *linear]) or "nothing"
    return (
        f"{words}; {way.sums} sum{'s' if way.sums > 1 else ''} whose other branches are left out"
        if way.sums
        else words
    )


_STEP_NAMES = {"Relu": "ReLU", "LeakyRelu": "leaky ReLU", "Gelu": "GELU", "Silu": "SiLU", "Hardtanh": "hard tanh"}


def _file_pair(
    network: ImageNetwork, way: Between, place: int, budget: int, about: dict[str, Any], findings: Findings
) -> None:
    from stratascope.tasks.vision.expanded_weights import (
        channel_shares,
        composed_channels,
        dominant_factors,
        expanded_weights,
    )
    from stratascope.tasks.vision.layer_maps import kept_channels

    metric = "expanded_weight_concentration"
    # One channel tells how large the composed kernels are.
    one = expanded_weights(network.network, way, np.array([0]))
    outputs = int(network.network.get_submodule(way.second).out_channels)  # type: ignore[arg-type]
    channels = composed_channels(outputs, one.shape[1], one[0, 0].size)
    weights = expanded_weights(network.network, way, channels)
    kept = kept_channels({"pair": (len(channels), weights[0].nbytes)}, budget)["pair"]
    root = f"{EXPANDED}/{encode_path_part(f'{way.first} to {way.second}')}"
    facts = {
        "place": place, "first": way.first, "second": way.second, "between": way_words(way), "steps": list(way.steps),
        "norms": list(way.norms), "sums": way.sums, "channels": outputs,
    }  # fmt: skip
    findings.arrays[f"{root}/weights"] = NamedArray(_DIMS, weights[kept], facts)
    findings.arrays[f"{root}/channel"] = NamedArray(("channel",), channels[kept])
    about = about | {
        "n": len(channels),
        "convention": f"{weights.shape[1]} input channels; between: {way_words(way)}",
    }
    if not np.isfinite(weights).all():
        findings.rows.append(Row(metric, status="failed", reason="the composed weights are not finite.", **about))
        return
    if not weights.any():
        findings.rows.append(
            Row(metric, status="does_not_apply", reason="the composed weights are zero.", **about)
        )
        return
    if weights.shape[1] < 2:
        reason = f"{way.first} reads one channel: there is nothing to share."
        findings.rows.append(Row(metric, status="does_not_apply", reason=reason, **about))
        return
    *_, factor = dominant_factors(weights)
    findings.rows.append(Row(metric, float(np.nanmean(factor)), part="over=factors", **about))
    shares = (channel_shares(weights) ** 2).sum(1)
    findings.rows.append(Row(metric, float(np.nanmean(shares)), part="over=channels", **about))


_ORDER = "order of the filters and of the input channels"
ANALYSIS = register(
    Analysis(
        name="filters", version=1, scope="checkpoint", title="Filters",
        question="What do the first filters look for, and how do convolutions work together?",
        options=FiltersOptions, compute=compute, draw=draw, needs=frozenset({"weights", "network"}),
        metrics=(
            Metric("filter_norm", "weight", "[0, ∞)", "Frobenius norm of a convolution's filters: the mean, the smallest (`of=smallest`) and the largest (`of=largest`).", "", _ORDER),
            Metric("filter_duplicates", "fraction", "[0, 1]", "Share of a convolution's filters that have a cosine above 0.95 with another one; `null=chance` is what filters of random directions give on average.", "null: Li 2011, area of a spherical cap", f"{_ORDER}; scaling of single filters"),
            Metric("filter_dead_fraction", "fraction", "[0, 1]", "Share of a convolution's filters whose norm is below a hundredth of the layer's largest.", "", f"{_ORDER}; one scale for the layer"),
            Metric("filter_high_frequency_share", "fraction", "[0, 1]", "Share of a filter's power at a quarter of a cycle per pixel and above, in any direction: 0 for what is smooth; mean over filters. `null=white` is what independent random weights give.", "", f"{_ORDER}; scaling, mirroring and turning by 90° of single filters"),
            Metric("expanded_weight_concentration", "fraction", "(0, 1]", "Of two convolutions taken as one (`other_layer` first, `layer` second): the sum over input channels of their squared share of an output channel's squared weights, from 1 by the number of channels to 1 for a single one (`over=channels`); and the share that the best product of one picture and one list of channels holds (`over=factors`). Mean over output channels.", "kernels: Voss et al. 2021; share: Hirschman 1964", f"{_ORDER}; scaling of single output channels"),
        ),
    )
)  # fmt: skip
