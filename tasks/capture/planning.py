"""What is captured of a network on a probe: layers, reductions, and whether the output is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from stratascope.errors import ProbeError
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import CaptureRequest
from stratascope.tasks.capture.layers import LAST_LINEAR, OUTPUT, LayerInfo, last_linear, select_layers
from stratascope.tasks.capture.observe import ORDINARY, Observation, observe
from stratascope.tasks.capture.reductions import effective_reduction
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.intake.load import NetworkTraits


@dataclass(frozen=True)
class CapturePlan:
    """What is captured of one network on one probe."""

    layers: tuple[LayerInfo, ...]
    """In the order of execution."""
    keep: Mapping[str, tuple[str, ...]]
    """Reductions by layer; a layer that only tells whether another one is dead has none."""
    aliases: Mapping[str, str]
    rectified_by: Mapping[str, str]
    """Selected layer → the layer whose largest value tells whether its units are dead."""
    selected: frozenset[str]
    wants_output: bool = True
    warnings: tuple[str, ...] = ()
    token_inputs: Mapping[str, str] = field(default_factory=dict)
    """Layer → the input whose mask tells which of its tokens are real."""

    @property
    def last(self) -> LayerInfo | None:
        """The layer after which the forward pass may stop; None where it must run to its end."""
        outputs = [layer for layer in self.layers if layer.side == "output"]
        return outputs[-1] if outputs and not self.wants_output else None


def plan_capture(
    network: nn.Module,
    probe: Probe,
    patterns: Sequence[str] | None,
    requests: Sequence[CaptureRequest],
    spec: CaptureSpec,
    model: ModelSpec,
    folder: Path | None = None,
    traits: NetworkTraits = ORDINARY,
) -> CapturePlan:
    """Look at the network once and settle layers, reductions, aliases and what needs the output.

    Raises ConfigurationError for a pattern that matches nothing, ProbeError for an empty probe, CaptureError.
    """
    if len(probe) == 0:
        raise ProbeError(f"probe {probe.name!r} is empty.")
    seen = observe(network, probe, model, folder, spec.axes, traits)
    chosen = {layer.name: layer for layer in select_layers(patterns, seen.layers)} if seen.layers else {}
    keep: dict[str, tuple[str, ...]] = {name: tuple(dict.fromkeys(spec.keep)) for name in chosen}
    aliases: dict[str, str] = {}
    for request in requests:
        for layer, alias in _requested(request, seen, network):
            chosen[layer.name] = layer
            wanted = request.keep or ("pooled",)
            keep[layer.name] = tuple(dict.fromkeys((*keep.get(layer.name, spec.keep), *wanted)))
            if alias:
                aliases[alias] = layer.name
    selected = frozenset(chosen)
    tellers = {name: teller for name, teller in seen.rectified_by.items() if name in selected}
    if "moments" in spec.statistics:
        chosen |= {layer.name: layer for layer in seen.layers if layer.name in set(tellers.values())}
    keep = {
        name: tuple(dict.fromkeys(effective_reduction(item, chosen[name]) for item in reductions))
        for name, reductions in keep.items()
    }
    wants_output = not requests or any(OUTPUT in request.layers for request in requests)
    return CapturePlan(
        tuple(layer for layer in seen.layers if layer.name in chosen), keep, aliases, tellers, selected,
        wants_output or not chosen, _warnings(seen, chosen, selected, traits), seen.token_inputs,
    )  # fmt: skip


def _requested(
    request: CaptureRequest, seen: Observation, network: nn.Module
) -> Iterator[tuple[LayerInfo, str | None]]:
    """(layer, alias) for everything that an analysis asks for; what this network has not is left out."""
    if not seen.layers:
        return
    for pattern in request.layers:
        if pattern == LAST_LINEAR:
            name = last_linear(network)
            for layer in seen.layers:
                if name is not None and layer.name == f"{name}:input":
                    yield layer, pattern
        elif pattern != OUTPUT:
            for layer in select_layers([pattern], seen.layers):
                yield layer, None


def _warnings(
    seen: Observation, chosen: Mapping[str, LayerInfo], selected: frozenset[str], traits: NetworkTraits
) -> tuple[str, ...]:
    warnings = [
        f"{name}: which axis holds the units is not known, so it is kept full; name its axes with `capture.axes`"
        for name in sorted(selected)
        if chosen[name].unit_axis is None and len(chosen[name].shape) > 1
    ]
    if traits.note:
        warnings.append(traits.note)
    warnings += [f"{name}: its output has no axis of samples, so it is left out" for name in seen.left_out]
    return tuple(warnings)
