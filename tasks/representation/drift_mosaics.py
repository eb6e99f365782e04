"""The samples behind drift as pictures: the most forgotten, those newly right and wrong, and those with new neighbours.

Where inputs may not be shown, or are no images, the samples' ids stand in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_step, shortened
from stratascope.tasks.representation.drift_words import MOSAIC_WORDS as _WORDS
from stratascope.tasks.representation.forgetting import transitions
from stratascope.tasks.representation.pictures import figure_key, worded

_SHOWN_NEIGHBOURS = 3
_TITLES = {
    "forgotten": "Samples that were forgotten most", "newly_right": "Samples that became right at the end",
    "newly_wrong": "Samples that became wrong at the end",
}  # fmt: skip


def mosaic_figures(
    view: View, probe: str, arrays: dict[str, np.ndarray], options: Any, leads: bool
) -> Iterator[Figure]:
    """Mosaics of predictions that came and went on `probe`; where it `leads`, for each layer those with new neighbours."""
    shown = view.probes[probe]
    if f"{probe}/@output/target" in arrays:
        here = {
            name: arrays[f"{probe}/@output/{name}"]
            for name in ("step", "sample_id", "predicted", "target", "forgetting_events", "first_learned_step")
        }
        for kind in _TITLES:
            figure = _answers(view, shown, kind, here, options.pictures)
            if figure is not None:
                yield figure
    if not leads:
        return
    for layer in view.layers("neighbour_churn"):
        if f"{probe}/{layer}/churn" in arrays:
            figure = _neighbours(view, shown, layer, arrays, max(1, options.pictures // 3))
            if figure is not None:
                yield figure


def probe_rows(probe: Probe, identities: np.ndarray) -> np.ndarray:
    """int64 (sample,): where in `probe` the samples called `identities` stand."""
    known = {str(name): row for row, name in enumerate(probe.sample_id.tolist())}
    return np.array([known[str(name)] for name in identities.tolist()], np.int64)


def class_label(probe: Probe, value: int) -> str:
    return probe.class_names[value] if 0 <= value < len(probe.class_names) else str(value)


def _pictures(view: View, probe: Probe, rows: np.ndarray) -> list[np.ndarray] | None:
    from stratascope.tasks.report.mosaic import pictures_of

    return pictures_of(probe, rows) if view.show_inputs else None


def chosen_samples(kind: str, here: dict[str, np.ndarray], most: int) -> tuple[np.ndarray, int]:
    """Row numbers of at most `most` samples of one kind, the most telling first, and how many there are.

    Forgotten ones by their number of events; newly wrong ones that had been right at most checkpoints come first, and so
    do newly right ones that had been wrong at most.
    """
    right = here["predicted"] == here["target"]
    often = right[:-1].sum(0)
    if kind == "forgotten":
        weight = here["forgetting_events"]
        members = np.flatnonzero(weight > 0)
    else:
        found = transitions(here["predicted"][-2], here["predicted"][-1], here["target"])
        members = np.flatnonzero(found[kind])
        weight = often if kind == "newly_wrong" else -often
    order = members[np.argsort(-weight[members], kind="stable")]
    return order[:most], len(members)


def _answers(view: View, probe: Probe, kind: str, here: dict[str, np.ndarray], most: int) -> Figure | None:
    from stratascope.tasks.report.mosaic import Tile, mosaic
    from stratascope.tasks.report.style import INK

    chosen, total = chosen_samples(kind, here, most)
    if not len(chosen):
        return None
    pictures = _pictures(view, probe, probe_rows(probe, here["sample_id"][chosen]))
    steps, predicted, targets = here["step"], here["predicted"], here["target"]
    tiles: list[Tile] = []
    cards: list[dict[str, Any]] = []
    for number, sample in enumerate(chosen):
        target = int(targets[sample])
        name, true = str(here["sample_id"][sample]), class_label(probe, target)
        before, after = int(predicted[-2][sample]), int(predicted[-1][sample])
        events = int(here["forgetting_events"][sample])
        cards.append(
            {"sample_id": name, "true": true, "forgetting_events": events,
             "first_learned_step": int(here["first_learned_step"][sample]),
             "step_before": int(steps[-2]), "predicted_before": class_label(probe, before),
             "step_after": int(steps[-1]), "predicted_after": class_label(probe, after)}
        )  # fmt: skip
        head = f"true: {shortened(true, 13)}" if pictures else f"{shortened(name, 9)}: {shortened(true, 9)}"
        lines = [(head, INK)]
        if kind == "forgotten":
            lines.append((f"forgotten {events} ×", INK))
        else:
            lines.append(_answer(probe, steps[-2], before, target))
        lines.append(_answer(probe, steps[-1], after, target))
        tiles.append(Tile(tuple(lines), pictures[number] if pictures else None))
    classes = [str(card["true"]) for card in cards]
    common = max(classes, key=classes.count)
    numbers = {
        "shown": len(chosen), "total": f"{total:,}", "n": f"{len(targets):,}", "what": "picture" if pictures else "id",
        "before": plain_step(steps[-2]), "after": plain_step(steps[-1]), "common": common,
        "count": classes.count(common), "most": max(card["forgetting_events"] for card in cards),
        "checkpoints": len(steps), "still": sum(card["predicted_after"] != card["true"] for card in cards),
        "once": sum(card["forgetting_events"] == 1 for card in cards),
        "fresh": sum(card["first_learned_step"] == steps[-1] for card in cards),
    }  # fmt: skip
    return worded(
        _WORDS[kind], numbers, key=figure_key(kind, probe.name), title=f"{_TITLES[kind]}, probe {probe.name}",
        svg=mosaic(tiles), run=view.run, probe=probe.name,
        table={key: [card[key] for card in cards] for key in cards[0]},
    )  # fmt: skip


def _answer(probe: Probe, step: int, answer: int, target: int) -> tuple[str, str]:
    from stratascope.tasks.report.style import COLOURS

    words = f"step {plain_step(step)}: {shortened(class_label(probe, answer), 9)}"
    return words, COLOURS[2] if answer == target else COLOURS[4]


def _neighbours(view: View, probe: Probe, layer: str, arrays: dict[str, np.ndarray], most: int) -> Figure | None:
    """The samples with most new neighbours: each with its nearest before in one row, and after in the next."""
    from stratascope.tasks.report.mosaic import Tile, mosaic
    from stratascope.tasks.report.style import COLOURS, INK

    place = f"{probe.name}/{layer}"
    churn, identities, steps = (arrays[f"{place}/{name}"] for name in ("churn", "sample_id", "step"))
    before, after = arrays[f"{place}/nearest_before"], arrays[f"{place}/nearest_after"]
    chosen = np.argsort(-churn[-1], kind="stable")[:most]
    if churn[-1][chosen[0]] == 0:
        return None
    rows = probe_rows(probe, identities)
    classes = (
        probe.targets
        if probe.targets is not None and probe.targets.ndim == 1 and probe.targets.dtype.kind in "iub"
        else None
    )
    pictured = _pictures(view, probe, rows[chosen[:1]]) is not None

    def tile(sample: int, second: str, frame: str = "") -> Tile:
        found = _pictures(view, probe, rows[[sample]])
        name = str(identities[sample])
        label = class_label(probe, int(classes[rows[sample]])) if classes is not None else name
        head = (
            shortened(label, 12) if pictured or classes is None else f"{shortened(name, 9)}: {shortened(label, 9)}"
        )
        return Tile(((head, frame or INK), (second, INK)), found[0] if found else None, frame)

    width = min(_SHOWN_NEIGHBOURS, before.shape[1])
    tiles: list[Tile | None] = []
    for sample in chosen:
        for step, mine, others in ((steps[-2], before, after), (steps[-1], after, before)):
            tiles.append(tile(int(sample), f"step {plain_step(step)}"))
            kept = np.isin(mine[sample], others[sample])
            for rank in np.argsort(kept, kind="stable")[:width]:
                frame = "" if kept[rank] else COLOURS[1]
                tiles.append(tile(int(mine[sample, rank]), f"nearest no. {rank + 1}", frame))
    table = _neighbour_table(identities, churn[-1], steps, chosen, before, after)
    whole = int((churn[-1] == 1).sum())
    own = _same_class(classes, rows, chosen, before), _same_class(classes, rows, chosen, after)
    numbers = {
        "layer": layer, "k": before.shape[1], "width": width, "before": plain_step(steps[-2]),
        "after": plain_step(steps[-1]), "n": f"{len(rows):,}", "whole": f"{whole:,}", "shown": len(chosen),
        "mean": f"{churn[-1].mean(dtype=np.float64):.2f}", "classes": own[0] and f"{own[0]} before and {own[1]} after",
        "what": "picture" if pictured else "id",
    }  # fmt: skip
    if not numbers["classes"]:
        numbers["classes"] = "not known, since the probe has no classes"
    return worded(
        _WORDS["churned"], numbers, key=figure_key("churned", probe.name, layer),
        title=f"Samples with new neighbours in {layer}, probe {probe.name}", svg=mosaic(tiles, width + 1), run=view.run,
        layer=layer, probe=probe.name, table=table,
    )  # fmt: skip


def _neighbour_table(
    identities: np.ndarray,
    churn: np.ndarray,
    steps: np.ndarray,
    chosen: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> dict[str, list[Any]]:
    """Every neighbour of the chosen samples at both steps."""
    table: dict[str, list[Any]] = {
        name: [] for name in ("sample_id", "churn", "step", "rank", "neighbour", "at_this_step_only")
    }
    for sample in chosen:
        for step, mine, others in ((steps[-2], before, after), (steps[-1], after, before)):
            count = mine.shape[1]
            table["sample_id"] += [str(identities[sample])] * count
            table["churn"] += [float(churn[sample])] * count
            table["step"] += [int(step)] * count
            table["rank"] += list(range(1, count + 1))
            table["neighbour"] += [str(identities[row]) for row in mine[sample]]
            table["at_this_step_only"] += [bool(value) for value in ~np.isin(mine[sample], others[sample])]
    return table


def _same_class(classes: np.ndarray | None, rows: np.ndarray, chosen: np.ndarray, nearest: np.ndarray) -> str:
    """The share of the chosen samples' neighbours that have their class, in words; empty where there are none."""
    if classes is None:
        return ""
    own = classes[rows]
    return f"{(own[nearest[chosen]] == own[chosen][:, None]).mean():.0%}"
