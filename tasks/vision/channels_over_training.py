"""Which channels are born and which die during training, and whether they stay with what they answered to."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext, SeriesContext
from stratascope.tasks.vision.channels_over_training_drawing import draw

NEVER = -1
"""Stands for a step at which something did not happen, and for no preferred class."""


class ChannelsOverTrainingOptions(Options):
    """What is followed says `channels`."""

    layers: int = Field(default=3, ge=1)
    """Of so many layers, those with the most births and deaths, the single channels are drawn."""


def lives(dead: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
    """Of `dead` (step, channel) at ascending `steps`: `births` and `deaths` int64 (step,), counted from the step before,
    and `born_step`, `died_step` int64 (channel,), the last of each; -1 where it never happened."""
    changed = np.diff(dead.astype(np.int8), axis=0, prepend=dead[:1].astype(np.int8))
    found: dict[str, np.ndarray] = {}
    for name, sign in (("born_step", -1), ("died_step", 1)):
        happened = changed == sign
        last = len(steps) - 1 - happened[::-1].argmax(0)
        found[name] = np.where(happened.any(0), steps[last], NEVER).astype(np.int64)
        found["births" if sign < 0 else "deaths"] = happened.sum(1).astype(np.int64)
    return found


def overlaps(examples: np.ndarray) -> np.ndarray:
    """float32 (step, channel): Jaccard's index of the sets `examples` (step, channel, rank) with those of the step before.

    NaN at the first step.
    """
    from stratascope.tasks.vision.channel_measures import jaccard

    found = np.full(examples.shape[:2], np.nan, np.float32)
    for step in range(1, len(examples)):
        for channel, (now, before) in enumerate(zip(examples[step], examples[step - 1], strict=True)):
            found[step, channel] = jaccard(now.tolist(), before.tolist())
    return found


def preference_changes(preferred: np.ndarray) -> np.ndarray:
    """float64 (step,): share of the channels with a preferred class, now and before, for which it is another one now.

    From `preferred` (step, channel), -1 for none. NaN at the first step, and where no channel has one twice.
    """
    found = np.full(len(preferred), np.nan)
    for step in range(1, len(preferred)):
        both = (preferred[step] >= 0) & (preferred[step - 1] >= 0)
        if both.any():
            found[step] = (preferred[step] != preferred[step - 1])[both].mean()
    return found


def compute(context: SeriesContext, options: ChannelsOverTrainingOptions) -> Findings:
    """Rows by layer and step, and arrays `<probe>/<layer>/…`. Raises DoesNotApply where the run has one checkpoint only."""
    if len(context.steps) < 2:
        raise DoesNotApply("a life needs two checkpoints or more; the run has one.")
    findings = Findings()
    contexts = [context.at(step) for step in sorted(context.steps)]
    for probe in context.probes:
        layers = list(dict.fromkeys(layer for one in contexts for layer in _layers(one, probe)))
        if not layers:
            reason = "`channels` found nothing on this probe"
            findings.rows += [
                Row(metric.name, probe=probe, status="does_not_apply", reason=reason)
                for metric in ANALYSIS.metrics
            ]
        for layer in layers:
            _layer(contexts, probe, layer, findings)
    return findings


def _layers(context: CheckpointContext, probe: str) -> list[str]:
    found = context.found_arrays("channels", probe)
    known = {path.rsplit("/", 1)[0] for path in found if path.endswith("/by_channel")}
    order = context.layers(probe)
    places = {layer: number for number, layer in enumerate(order)}
    return sorted(known, key=lambda layer: (places.get(layer, len(places)), layer))


def _layer(contexts: list[CheckpointContext], probe: str, layer: str, findings: Findings) -> None:
    from stratascope.tasks.vision.channel_findings import BY_CHANNEL

    kept = {}
    for one in contexts:
        found = one.found("channels", probe, layer, "by_channel")
        if found is not None:
            kept[one.step] = (one, dict(zip(BY_CHANNEL, found, strict=True)))
    steps = np.array(sorted(kept), np.int64)
    shared: dict[str, Any] = {"probe": probe, "layer": layer}
    widths = {len(numbers["dead"]) for _, numbers in kept.values()}
    if len(steps) < 2 or len(widths) > 1:
        reason = "the layer changes its width" if len(widths) > 1 else "one checkpoint alone has this layer"
        findings.rows += [Row(metric.name, status="does_not_apply", reason=reason, **shared) for metric in ANALYSIS.metrics]  # fmt: skip
        return
    shared["n"] = widths.pop()
    root = f"{encode_path_part(probe)}/{encode_path_part(layer)}"
    arrays = {"step": NamedArray(("step",), steps)}
    dead = np.stack([kept[step][1]["dead"] for step in steps])
    _file_lives(dead, steps, shared, findings, arrays)
    preferred = np.stack([np.nan_to_num(kept[step][1]["preferred_class"], nan=NEVER) for step in steps]).astype(np.int64)  # fmt: skip
    arrays["preferred_class"] = NamedArray(("step", "channel"), preferred)
    changes = preference_changes(preferred)
    reason = "no channel prefers a class at this step and at the one before"
    findings.rows += [_row("class_preference_change", value, step, reason, shared) for value, step in zip(changes[1:], steps[1:])]  # fmt: skip
    examples = np.stack([_examples(kept[step][0], probe, layer) for step in steps])
    overlap = overlaps(examples)
    arrays["top_overlap"] = NamedArray(("step", "channel"), overlap)
    convention = {"convention": f"the {examples.shape[2]} strongest samples of each channel"}
    for place in range(1, len(steps)):
        value = float(overlap[place].mean(dtype=np.float64))
        findings.rows.append(_row("top_example_stability", value, steps[place], "", {**shared, **convention}))
    findings.arrays |= {f"{root}/{name}": array for name, array in arrays.items()}


def _file_lives(
    dead: np.ndarray, steps: np.ndarray, shared: dict[str, Any], findings: Findings, arrays: dict[str, NamedArray]
) -> None:
    if not np.isfinite(dead).all():
        reason = "no ReLU takes the layer's output alone: none of its channels can be called dead"
        findings.rows += [Row(name, status="does_not_apply", reason=reason, **shared) for name in ("channel_birth", "channel_death")]  # fmt: skip
        return
    found = lives(dead > 0, steps)
    arrays["dead"] = NamedArray(("step", "channel"), (dead > 0).astype(np.uint8))
    for name in ("born_step", "died_step"):
        arrays[name] = NamedArray(("channel",), found[name], {"never": NEVER})
    for metric, name in (("channel_birth", "births"), ("channel_death", "deaths")):
        findings.rows += [Row(metric, float(value), step=int(step), **shared) for value, step in zip(found[name][1:], steps[1:])]  # fmt: skip


def _examples(context: CheckpointContext, probe: str, layer: str) -> np.ndarray:
    """The ids (channel, rank) of the samples that excite each channel most, as texts."""
    index = context.found("channels", probe, layer, "top_index")
    identities = context.found("channels", probe, "sample_id")
    assert index is not None
    assert identities is not None
    return np.asarray(identities).astype(str)[index]


def _row(metric: str, value: float, step: int, reason: str, shared: dict[str, Any]) -> Row:
    if np.isfinite(value):
        return Row(metric, float(value), step=int(step), **shared)
    return Row(metric, step=int(step), status="does_not_apply", reason=reason, **shared)


ANALYSIS = register(
    Analysis(
        name="channels_over_training", version=1, scope="series", title="Channels over training",
        question="Which channels are born, die, or change what they answer to?",
        options=ChannelsOverTrainingOptions, compute=compute, draw=draw, builds_on=("channels",),
        metrics=(
            Metric("channel_birth", "channels", "[0, ∞)", "Channels of a layer that were dead at the checkpoint before (at most 0 after the ReLU that follows, on every sample and position) and are not now.", "", "order of the samples and of the channels"),
            Metric("channel_death", "channels", "[0, ∞)", "Channels of a layer that are dead and were not at the checkpoint before.", "", "order of the samples and of the channels"),
            Metric("class_preference_change", "fraction", "[0, 1]", "Share of a layer's channels whose preferred class, the one with the largest mean of what is above 0, is another than at the checkpoint before.", "", "order of the samples and of the channels; positive rescaling of a channel"),
            Metric("top_example_stability", "1", "[0, 1]", "Jaccard's index of the samples that excite a channel most, now and at the checkpoint before; mean over the layer's channels.", "Jaccard 1912", "order of the samples and of the channels; increasing functions of a channel"),
        ),
    )
)  # fmt: skip
