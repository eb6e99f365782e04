"""All layers' flat maps of one probe side by side, to point at samples and to loop groups of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.embedding_words import TITLES, words
from stratascope.tasks.representation.pictures import even_choice, figure_key, layer_title, worded

if TYPE_CHECKING:
    from stratascope.tasks.representation.embedding_drawing import LayerView

_POINTS = 1000
_FRAMES = 40
_FEWEST_FRAMES = 8
_MOST_PLACES = 480_000
"""Points over all maps and steps that a page can hold: about 2.5 MB."""


def explorer_figure(view: View, probe: str, layers: Sequence[LayerView]) -> Figure | None:
    """The figure over `layers` of one probe; None where they have no flat map in common."""
    from stratascope.tasks.report.explorer import explorer_data, sample_pictures

    first = layers[0]
    names = [name for name in TITLES if name.endswith("_2d") and all(name in here.names for here in layers)]
    # What one sees first is what keeps neighbours best.
    names.sort(key=lambda name: name.startswith("pca"))
    steps = sorted(set.intersection(*(set(here.steps) for here in layers)))
    if not names or not steps:
        return None
    points = min(_POINTS, len(first.arrays["sample_id"]))
    room = max(1, _MOST_PLACES // (points * len(names) * len(layers)))
    shown = even_choice(steps, max(_FEWEST_FRAMES, min(_FRAMES, room)))
    points = min(points, max(100, _MOST_PLACES // (len(shown) * len(names) * len(layers))))
    maps = [
        [here.drawn(name, [here.steps.index(step) for step in shown])[:, :points] for name in names]
        for here in layers
    ]
    groups, kinds = first.groups
    groups = None if groups is None else groups[:points]
    identities = first.arrays["sample_id"][:points]
    pictures = sample_pictures(view.probes[probe], _rows(view, probe, identities)) if view.show_inputs else None
    data = explorer_data(
        shown, [layer_title(here.layer) for here in layers], [TITLES[name] for name in names], maps, identities.tolist(), groups,
        kinds, pictures,
    )  # fmt: skip
    trust = view.metric("trustworthiness", probe=probe)
    trust = trust[trust["part"].isin([f"map={name}" for name in names])]
    worst = trust.loc[trust["value"].idxmin()]
    told = f"The least trustworthy of these maps is {TITLES[worst['part'].removeprefix('map=')]} of {layer_title(worst['layer'])} at step {int(worst['step']):,}."
    numbers = {
        "drawn": points, "n": len(first.arrays["sample_id"]), "frames": len(shown), "steps": len(steps),
        "worst": told, "trust": worst["value"], "pictures": " and picture" if pictures is not None else "",
    }  # fmt: skip
    table = {"sample_id": identities.tolist()}
    if groups is not None:
        table["class"] = [kinds[int(group)] for group in groups]
    return worded(
        words("explorer"), numbers, key=figure_key("explorer", probe), title=f"Maps of probe {probe} to explore",
        run=view.run, probe=probe, explorer=data, table=table,
    )  # fmt: skip


def _rows(view: View, probe: str, identities: np.ndarray) -> np.ndarray:
    """Where in the probe the samples called `identities` stand."""
    every = view.probes[probe].sample_id
    order = np.argsort(every, kind="stable")
    found: np.ndarray = order[np.searchsorted(every[order], identities)]
    return found
