"""Mosaics of telling samples behind a slider over the steps, and of samples with their nearest training samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_step, shortened
from stratascope.tasks.representation.drift_mosaics import class_label, probe_rows
from stratascope.tasks.representation.layer_heatmaps import COLUMNS
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, table_of, worded
from stratascope.tasks.vision.telling_samples import KINDS

_FRAMES = 8
_SHOWN = 4
"""So many samples are shown with their nearest training samples."""


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe its telling samples by step; for each pair of probes nearest training samples, and how often they agree."""
    arrays = view.arrays()
    for probe in sorted(name.split("/")[0] for name in arrays if name.endswith("/surely_right")):
        if probe in view.probes:
            yield _telling(view, probe, arrays)
    yield from _agreement(view)
    for place in sorted(name.rpartition("/")[0] for name in arrays if name.endswith("/nearest")):
        probe, train = place.split("/")[0], place.split("/")[-1]
        if probe in view.probes and train in view.probes:
            yield _nearest(view, place, probe, train, arrays)


def _pictures(view: View, probe: str, ids: np.ndarray) -> list[np.ndarray] | None:
    from stratascope.tasks.report.mosaic import pictures_of

    shown = view.probes[probe]
    return pictures_of(shown, probe_rows(shown, ids)) if view.show_inputs else None


def _telling(view: View, probe: str, arrays: dict[str, np.ndarray]) -> Figure:
    steps = arrays[f"{probe}/step"].tolist()
    chosen = even_choice(steps, _FRAMES)
    frames = [(step, _mosaic_at(view, probe, arrays, steps.index(step))) for step in chosen]
    ids, targets = arrays[f"{probe}/sample_id"], arrays[f"{probe}/target"]
    predicted = arrays[f"{probe}/predicted"]
    table: dict[str, list[Any]] = {name: [] for name in ("step", "kind", "rank", "sample_id", "class", "answer", "number")}  # fmt: skip
    for place, step in enumerate(steps):
        for kind in KINDS:
            for rank, sample in enumerate(arrays[f"{probe}/{kind}"][place]):
                if sample >= 0:
                    entry = (step, kind, rank + 1, str(ids[sample]), class_label(view.probes[probe], int(targets[sample])),
                             class_label(view.probes[probe], int(predicted[place, sample])), float(arrays[f"{probe}/{kind}_number"][place, rank]))  # fmt: skip
                    for name, value in zip(table, entry, strict=True):
                        table[name].append(value)
    wrong = int((predicted[-1] != targets).sum())
    surest = arrays[f"{probe}/surely_wrong_number"][-1, 0]
    sure = view.metric("sure_fraction", probe=probe, part="answer=wrong")
    numbers = {
        "n": f"{len(ids):,}", "step": plain_step(steps[-1]), "wrong": f"{wrong:,}",
        "surest": f"the surest wrong answer has a probability of {surest:.3f}" if np.isfinite(surest) else "there is no wrong answer",
        "sure": f"{sure['value'].iloc[-1]:.0%} of the wrong answers were sure at step {plain_step(int(sure['step'].iloc[-1]))}" if len(sure) else "no answer was wrong at any step",
    }  # fmt: skip
    picture: dict[str, Any] = {"frames": tuple(frames)} if len(frames) > 1 else {"svg": frames[0][1]}
    return worded(
        WORDS["telling"], numbers, key=figure_key("telling", probe),
        title=f"Samples that tell most, by step, probe {probe}", run=view.run, probe=probe, table=table, **picture,
    )  # fmt: skip


def _mosaic_at(view: View, probe: str, arrays: dict[str, np.ndarray], place: int) -> str:
    from stratascope.tasks.report.mosaic import Tile, mosaic
    from stratascope.tasks.report.style import COLOURS, INK

    shown = view.probes[probe]
    ids, targets = arrays[f"{probe}/sample_id"], arrays[f"{probe}/target"]
    predicted = arrays[f"{probe}/predicted"][place]
    columns = arrays[f"{probe}/{KINDS[0]}"].shape[1]
    tiles: list[Tile | None] = []
    for kind in KINDS:
        members = arrays[f"{probe}/{kind}"][place]
        numbers = arrays[f"{probe}/{kind}_number"][place]
        known = members[members >= 0]
        if not len(known):
            continue
        pictures = _pictures(view, probe, ids[known])
        for rank, sample in enumerate(known):
            true = class_label(shown, int(targets[sample]))
            head = f"true: {shortened(true, 7)}" if pictures else f"{shortened(str(ids[sample]), 6)}: {shortened(true, 6)}"  # fmt: skip
            right = predicted[sample] == targets[sample]
            answer = f"says {shortened(class_label(shown, int(predicted[sample])), 9)}"
            number = f"moved {numbers[rank]:.2f}" if kind.startswith("changed") else f"p = {numbers[rank]:.2f}"
            name = _SHORT[kind] if rank == 0 else ""
            tiles.append(
                Tile(((head, INK), (answer, COLOURS[2] if right else COLOURS[4]), (number, INK), (name, COLOURS[0])), pictures[rank] if pictures else None)
            )  # fmt: skip
        tiles += [None] * (columns - len(known))
    return mosaic(tiles, columns)


_SHORT = {
    "surely_right": "▲ surely right", "surely_wrong": "▲ surely wrong", "undecided": "▲ undecided",
    "changed_since_previous": "▲ since previous", "changed_since_first": "▲ since first",
}  # fmt: skip


def _agreement(view: View) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    rows = view.metric("nearest_same_class_fraction")
    if not len(rows):
        return
    series, bands = {}, {}
    for (probe, part), own in rows.groupby(["probe", "part"]):
        name = f"{probe} in {str(part).removeprefix('train=')}"
        series[name] = (list(own["step"]), list(own["value"]))
        bands[name] = (list(own["low"]), list(own["high"]))
    probe = leading_probe(view, rows["probe"].unique())
    own = rows[rows["probe"] == probe]
    last = own.iloc[-1]
    numbers = {
        "layer": last["layer"], "n": int(last["n"]), "first": own["value"].iloc[0], "last": last["value"],
        "step": plain_step(int(last["step"])), "low": last["low"], "high": last["high"], "how": last["convention"].replace(";", ", "),
    }  # fmt: skip
    yield worded(
        WORDS["agreement"], numbers, key="nearest-same-class", title="Are the nearest training samples of the same class?",
        svg=lines(series, "share of the class", bands=bands), run=view.run, table=table_of(rows, COLUMNS),
    )  # fmt: skip


def _nearest(view: View, place: str, probe: str, train: str, arrays: dict[str, np.ndarray]) -> Figure:
    """For surely wrong and undecided samples of the last step, their nearest training samples at each of a few steps."""
    steps = arrays[f"{place}/step"].tolist()
    nearest, far = arrays[f"{place}/nearest"], arrays[f"{place}/distance"]
    ids, train_ids = arrays[f"{place}/sample_id"], arrays[f"{place}/train_sample_id"]
    members: list[int] = []
    for kind in ("surely_wrong", "undecided"):
        found = arrays.get(f"{probe}/{kind}")
        members += [] if found is None else [int(item) for item in found[-1] if item >= 0 and item not in members]
    members = list(dict.fromkeys(members))[:_SHOWN] or list(range(min(_SHOWN, len(ids))))
    chosen = even_choice(steps, _FRAMES)
    frames = [
        (step, _neighbours_at(view, probe, train, (ids, train_ids), members, nearest[steps.index(step)], far[steps.index(step)]))
        for step in chosen
    ]  # fmt: skip
    shown, from_train = view.probes[probe], view.probes[train]
    layer = place.split("/", 1)[1].rpartition("/")[0]
    table: dict[str, list[Any]] = {
        name: [] for name in ("step", "sample_id", "rank", "train_sample_id", "distance")
    }
    for number, step in enumerate(steps):
        for sample in members:
            for rank, other in enumerate(nearest[number, sample]):
                entry = (step, str(ids[sample]), rank + 1, str(train_ids[other]), float(far[number, sample, rank]))
                for name, value in zip(table, entry, strict=True):
                    table[name].append(value)
    same = _same(shown, from_train, ids[members], train_ids, nearest[-1][members])
    numbers = {
        "layer": layer, "shown": len(members), "n": f"{len(train_ids):,}", "k": nearest.shape[2], "step": plain_step(steps[-1]),
        "same": f"{same:.0%}" if same is not None else "an unknown share",
        "near": float(np.median(far[-1][:, 0])), "mine": float(np.median(far[-1][members, 0])),
    }  # fmt: skip
    picture: dict[str, Any] = {"frames": tuple(frames)} if len(frames) > 1 else {"svg": frames[0][1]}
    return worded(
        WORDS["nearest"], numbers, key=figure_key("nearest", probe, train),
        title=f"Nearest in {train} to samples of {probe} that are wrong or undecided", run=view.run, probe=probe, layer=layer,
        table=table, **picture,
    )  # fmt: skip


def _classes(probe: Any, ids: np.ndarray) -> np.ndarray | None:
    targets = probe.targets
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
        return None
    found: np.ndarray = targets[probe_rows(probe, ids)]
    return found


def _same(
    shown: Any, from_train: Any, ids: np.ndarray, train_ids: np.ndarray, nearest: np.ndarray
) -> float | None:
    own, others = _classes(shown, ids), _classes(from_train, train_ids)
    return None if own is None or others is None else float((others[nearest] == own[:, None]).mean())


def _neighbours_at(
    view: View, probe: str, train: str, names: tuple[np.ndarray, np.ndarray], members: list[int], nearest: np.ndarray, far: np.ndarray
) -> str:  # fmt: skip
    from stratascope.tasks.report.mosaic import Tile, mosaic
    from stratascope.tasks.report.style import COLOURS, INK

    ids, train_ids = names
    own, others = _classes(view.probes[probe], ids), _classes(view.probes[train], train_ids)
    tiles: list[Tile | None] = []
    for sample in members:
        picture = _pictures(view, probe, ids[[sample]])
        label = class_label(view.probes[probe], int(own[sample])) if own is not None else str(ids[sample])
        head = shortened(label, 9) if picture or own is None else f"{shortened(str(ids[sample]), 6)}: {shortened(label, 5)}"  # fmt: skip
        tiles.append(Tile(((head, INK), ("sample", INK)), picture[0] if picture else None))
        for rank, other in enumerate(nearest[sample]):
            picture = _pictures(view, train, train_ids[[other]])
            label = class_label(view.probes[train], int(others[other])) if others is not None else str(train_ids[other])  # fmt: skip
            alike = own is None or others is None or own[sample] == others[other]
            colour = COLOURS[2] if alike else COLOURS[4]
            head = shortened(label, 9) if picture or others is None else f"{shortened(str(train_ids[other]), 6)}: {shortened(label, 5)}"  # fmt: skip
            tiles.append(Tile(((head, colour), (f"{far[sample, rank]:.2g}", INK)), picture[0] if picture else None, colour))  # fmt: skip
    return mosaic(tiles, 1 + nearest.shape[1])


WORDS: dict[str, dict[str, str]] = {
    "telling": {
        "shows": "Five rows of samples at the step of the slider: surely right, surely wrong, undecided, and those whose answers changed most since the step before and since the first step; each with its class, the answer, and its probability or the share of probability that moved.",
        "reading": "Surely right ones are what the network takes for typical. Surely wrong ones are mislabelled, rare, or a flaw of the network: look which. Undecided ones lie at the boundary.",
        "caution": "Of {n} samples {wrong} are wrong at step {step}; {surest}, and {sure}. The rows show extremes, not what is common.",
        "audience": "For everyone: pictures before numbers.",
        "practitioner": "Check the labels of the surely wrong ones first; then ask what the undecided ones have in common.",
        "researcher": "By the highest softmax probability, which is not calibrated: compare ranks, not values. Changes are in total variation; a row is missing where nothing can have changed, or nothing is wrong.",
    },
    "agreement": {
        "shows": "Of the nearest training samples in the layer {layer}, the share that has the sample's class, over training; the band is a 95 % interval of the mean.",
        "reading": "It rises as the layer draws classes together. Its gap to 1 is where a sample lies among training samples of another class.",
        "caution": "From {first:.3f} to {last:.3f} at step {step} ({low:.3f} to {high:.3f}), over {n} samples ({how}). Samples of the training probe are taken for the training set: with few of them the nearest may be far.",
        "audience": "For those who judge answers by what they resemble.",
        "practitioner": "If it stays well below the accuracy, the layer tells classes apart by directions that distance does not see; use another layer for look-ups.",
        "researcher": "A soft vote of nearest neighbours without weights. With a cosine distance the length of features is left out, which for the last layer carries confidence.",
    },
    "nearest": {
        "shows": "Samples that are surely wrong or undecided at the last step, each followed by its {k} nearest training samples in the layer {layer} at the step of the slider, with class and distance.",
        "reading": "Green frames share the sample's class, orange ones do not. If all are of one other class, the layer takes the sample for that class; if they are mixed, it lies between.",
        "caution": "{shown} samples, among {n} training samples of the probe. At step {step} {same} of their neighbours have their class; the median distance to the nearest is {mine:.3g} for them and {near:.3g} for all samples.",
        "audience": "For explaining an answer by examples.",
        "practitioner": "Neighbours that look alike but have another label point at labels to check; none that look alike point at missing data.",
        "researcher": "Chosen by their answers at the last step, so at early steps they are no extremes. Neighbours in a layer show what it treats alike, not what caused the answer: for that see the influence.",
    },
}
