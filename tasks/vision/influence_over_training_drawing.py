"""The pictures of influence over a training: test samples with their proponents and opponents, and what was learned alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_step, shortened
from stratascope.tasks.representation.drift_mosaics import class_label, probe_rows
from stratascope.tasks.representation.pictures import figure_key, worded

_EACH = 3
"""So many proponents and opponents are shown of each test sample."""


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each pair of probes test samples with proponents and opponents, for each training probe self-influence."""
    arrays = view.arrays()
    for place in sorted(name for name in arrays if name.endswith("/influence")):
        probe, train = place.split("/")[:2]
        if probe in view.probes and train in view.probes:
            yield _mosaic(view, arrays, probe, train, options.pictures)
    for place in sorted(name for name in arrays if name.endswith("/self_influence")):
        train = place.split("/")[0]
        if train in view.probes:
            yield from _own(view, arrays, train, options.pictures)


def _picture(view: View, probe: Probe, identity: Any) -> np.ndarray | None:
    from stratascope.tasks.report.mosaic import pictures_of

    if not view.show_inputs:
        return None
    found = pictures_of(probe, probe_rows(probe, np.array([identity])))
    return found[0] if found else None


def _label(probe: Probe, classes: np.ndarray | None, place: int, identity: Any, pictured: bool) -> str:
    if classes is None:
        return shortened(str(identity), 12)
    name = class_label(probe, int(classes[place]))
    return shortened(name, 12) if pictured else f"{shortened(str(identity), 8)}: {shortened(name, 8)}"


def _said(view: View) -> str:
    rows = view.rows[view.rows["convention"].str.startswith("rate=")]
    convention = str(rows["convention"].iloc[0]) if len(rows) else "rate=1"
    said = "step sizes are those of the trace" if "rate=trace" in convention else "each checkpoint counts alike, with a step size of 1"  # fmt: skip
    return said + (", times the steps to the next checkpoint" if "times=" in convention else "")


def _mosaic(view: View, arrays: dict[str, np.ndarray], probe: str, train: str, most: int) -> Figure:
    from stratascope.tasks.report.mosaic import Tile, mosaic
    from stratascope.tasks.report.style import COLOURS, INK

    influence, strength = arrays[f"{probe}/{train}/influence"], arrays[f"{probe}/{train}/strength"]
    ids, train_ids = arrays[f"{probe}/sample_id"], arrays[f"{train}/train_sample_id"]
    classes, train_classes = arrays.get(f"{probe}/target"), arrays.get(f"{train}/train_target")
    shown, from_train = view.probes[probe], view.probes[train]
    tiles: list[Tile | None] = []
    table: dict[str, list[Any]] = {
        name: [] for name in ("sample_id", "kind", "rank", "train_sample_id", "influence")
    }
    each = min(_EACH, influence.shape[1] // 2)
    places = np.unique(np.round(np.linspace(0, len(ids) - 1, min(most, len(ids)))).astype(int))
    for place in places:
        picture = _picture(view, shown, ids[place])
        label = _label(shown, classes, int(place), ids[place], picture is not None)
        tiles.append(Tile(((label, INK), ("test sample", INK)), picture))
        order = np.argsort(-influence[place], kind="stable")
        for kind, members, colour in (("proponent", order[:each], COLOURS[0]), ("opponent", order[::-1][:each], COLOURS[4])):  # fmt: skip
            for rank, member in enumerate(members, 1):
                value = float(influence[place, member])
                picture = _picture(view, from_train, train_ids[member])
                label = _label(from_train, train_classes, int(member), train_ids[member], picture is not None)
                tiles.append(Tile(((label, colour), (f"{value:+.2g}", INK)), picture, colour))
                for name, item in zip(table, (str(ids[place]), kind, rank, str(train_ids[member]), value), strict=True):  # fmt: skip
                    table[name].append(item)
    steps = arrays["step"]
    parts = strength.sum(1) / max(float(strength.sum()), 1e-300)
    own = view.metric("summed_proponent_same_class_fraction", probe=probe, part=f"train={train}")
    numbers = {
        "n": f"{influence.shape[1]:,}", "shown": len(places), "all": len(ids), "each": each, "said": _said(view),
        "heaviest": plain_step(steps[int(parts.argmax())]), "share": f"{parts.max():.0%}", "steps": len(steps),
        "same": f"{own['value'].iloc[0]:.0%}" if len(own) else "an unknown share",
        "weights": "given by `influence`", "what": "picture" if any(tile and tile.picture is not None for tile in tiles) else "id",
    }  # fmt: skip
    return worded(
        WORDS["mosaic"], numbers, key=figure_key("influence", probe, train),
        title=f"Proponents and opponents in {train} of samples of {probe}", svg=mosaic(tiles, 1 + 2 * each), run=view.run,
        probe=probe, table=table,
    )  # fmt: skip


def _own(view: View, arrays: dict[str, np.ndarray], train: str, most: int) -> Iterator[Figure]:
    from stratascope.tasks.report.mosaic import Tile, mosaic
    from stratascope.tasks.report.style import COLOURS, INK

    own, ids = arrays[f"{train}/self_influence"], arrays[f"{train}/train_sample_id"]
    classes, predicted = arrays.get(f"{train}/train_target"), arrays.get(f"{train}/train_predicted")
    probe = view.probes[train]
    order = np.argsort(-own, kind="stable")
    tiles = []
    for rank, place in enumerate(order[:most], 1):
        picture = _picture(view, probe, ids[place])
        label = _label(probe, classes, int(place), ids[place], picture is not None)
        lines = [(label, INK), (f"no. {rank}: {own[place]:.3g}", INK)]
        frame = ""
        if predicted is not None and classes is not None:
            right = predicted[place] == classes[place]
            colour = COLOURS[2] if right else COLOURS[4]
            lines.append((f"answer: {shortened(class_label(probe, int(predicted[place])), 11)}", colour))
            frame = "" if right else colour
        tiles.append(Tile(tuple(lines), picture, frame))
    total = float(own.sum())
    tenth = max(1, len(own) // 10)
    wrong = view.metric("wrong_among_self_influential", probe=train)
    numbers: dict[str, Any] = {
        "n": f"{len(own):,}", "shown": len(tiles), "said": _said(view),
        "share": f"{own[order[:tenth]].sum() / total:.0%}" if total > 0 else "none", "tenth": tenth,
        "wrong": "what the last checkpoint answers is not known", "times": f"{own[order[0]] / max(float(np.median(own)), 1e-300):.3g}",
    }  # fmt: skip
    if len(wrong):
        top, every = wrong[wrong["part"] == ""].iloc[0], wrong[wrong["part"] != ""].iloc[0]
        numbers["wrong"] = f"of the {top['n']} highest the last checkpoint gets {top['value']:.0%} wrong, of all {every['value']:.1%}"  # fmt: skip
    table = {"train_sample_id": [str(item) for item in ids[order]], "self_influence": own[order].astype(float).tolist()}  # fmt: skip
    if classes is not None:
        table["class"] = [class_label(probe, int(value)) for value in classes[order]]
    if predicted is not None:
        table["last_answer"] = [class_label(probe, int(value)) for value in predicted[order]]
    yield worded(
        WORDS["own"], numbers, key=figure_key("self-influence", train),
        title=f"Training samples that the network learned most on its own, probe {train}", svg=mosaic(tiles),
        run=view.run, probe=train, table=table,
    )  # fmt: skip


WORDS: dict[str, dict[str, str]] = {
    "mosaic": {
        "shows": "Test samples at the left; beside each the {each} training samples whose steps lowered its loss most (proponents, blue frames), then the {each} that raised it most (opponents, orange frames). The {what} of each stands with its class and its summed influence.",
        "reading": "Proponents that look like the test sample and share its class are a good sign. Opponents of another class that look alike are where the boundary was fought over; opponents of the same class may be labelled wrongly.",
        "caution": "{shown} of {all} test samples, held against {n} training samples of the probe, not the whole training set. Over {steps} checkpoints; {said}. The checkpoint at step {heaviest} alone makes {share} of all that is summed. Of the highest proponents {same} have the test sample's class.",
        "audience": "For asking where an answer came from in the training data.",
        "practitioner": "For a wrong answer look at its proponents: if they are right but unlike it, data of its kind is missing; if they are mislabelled, mend them and train again.",
        "researcher": "A first-order sum over saved checkpoints, by the weights that the analysis influence was asked for; momentum, batches and augmentation are not in it. Samples with a large gradient norm turn up for every test sample: compare with the self-influence.",
    },
    "own": {
        "shows": "The training samples with the highest self-influence, summed over the training: those that had to lower their own loss by themselves. A frame marks what the last checkpoint still gets wrong.",
        "reading": "Wrong labels, rare kinds and outliers gather here, since nothing else in the data helps to learn them.",
        "caution": "The {shown} highest of {n} training samples; {said}. The {tenth} highest make {share} of the sum, and the first is {times} times the median. As for wrong labels: {wrong}.",
        "audience": "For cleaning the training data.",
        "practitioner": "Look through the table from the top and check labels until they look right: this finds most wrong ones early.",
        "researcher": "A hint, not a test: hard but correct samples score as high. Checkpoints early in training, where all samples have large gradients, blur the order; leave them out with the key select to sharpen it.",
    },
}
