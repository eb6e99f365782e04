"""How far an embedding's maps may be believed: votes, neighbours, distances, the price of a common start, movement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.embedding_words import STARTS, TITLES, words
from stratascope.tasks.representation.pictures import figure_key, layer_title, table_of, worded

if TYPE_CHECKING:
    import pandas as pd

_KEPT = {
    "trustworthiness": "trustworthiness", "continuity": "continuity", "knn_preservation": "15 nearest kept",
    "distance_correlation": "distances",
}  # fmt: skip
_COLUMNS = ("metric", "step", "probe", "layer", "part", "value", "low", "high", "n", "convention")


def belief_figures(view: View, probe: str, layer: str, comparable: str) -> Iterator[Figure]:
    """The figures of one layer on one probe that say how far its maps may be believed."""
    where = {"probe": probe, "layer": layer}
    for make in (_quality, _faithfulness, _price, _movement):
        yield from make(view, where, comparable)


def _figure(
    view: View, kind: str, where: dict[str, str], title: str, numbers: dict[str, Any], rows: pd.DataFrame, svg: str
) -> Figure:
    return worded(
        words(kind), numbers, key=figure_key(kind, where["probe"], where["layer"]),
        title=f"{title}: {layer_title(where['layer'])}, probe {where['probe']}", svg=svg, run=view.run,
        layer=where["layer"], probe=where["probe"], table=table_of(rows, _COLUMNS),
    )  # fmt: skip


def _title(part: str) -> str:
    name = part.removeprefix("map=").partition(";")[0]
    return TITLES.get(name, name)


def _by_part(rows: pd.DataFrame) -> dict[str, tuple[list[int], list[float]]]:
    return {str(part): (list(group["step"]), list(group["value"])) for part, group in rows.groupby("part")}


def _quality(view: View, where: dict[str, str], comparable: str) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    rows = view.metric("knn_accuracy", **where)
    chance = rows[rows["part"] == "null=commonest_class"]
    rows = rows[rows["part"] != "null=commonest_class"]
    if not len(rows):
        return
    series = {
        "features" if part == "space=features" else _title(part): value for part, value in _by_part(rows).items()
    }
    last = {name: values[1][-1] for name, values in series.items()}
    maps = {name: value for name, value in last.items() if name != "features"}
    poorest = min(maps, key=lambda name: maps[name])
    numbers = {
        "poorest": poorest, "lost": last["features"] - maps[poorest], "n": int(rows["n"].min()),
        "used": rows["convention"].iloc[0].replace(";", ", ").replace("=", " = "), "chance": chance["value"].iloc[-1],
    }  # fmt: skip
    title = "How well neighbours predict the class"
    yield _figure(view, "quality", where, title, numbers, rows, lines(series, "fraction right"))


def _faithfulness(view: View, where: dict[str, str], comparable: str) -> Iterator[Figure]:
    import pandas as pd

    from stratascope.tasks.report.style import heatmap

    tables = {metric: view.metric(metric, **where) for metric in _KEPT}
    rows = pd.concat(list(tables.values()))
    rows = rows[~rows["part"].str.contains(";")]
    steps = sorted({int(step) for step in rows["step"]})
    parts = sorted(set(rows["part"]), key=lambda part: list(TITLES).index(part.removeprefix("map=")))
    grid = np.full((len(parts) * len(_KEPT), len(steps)), np.nan)
    names: list[str] = []
    for part in parts:
        for metric, short in _KEPT.items():
            mine = tables[metric][tables[metric]["part"] == part]
            grid[len(names), [steps.index(step) for step in mine["step"]]] = mine["value"]
            names.append(f"{_title(part)}: {short}")
    low = rows.iloc[int(rows["value"].argmin())]
    kept = tables["knn_preservation"]
    numbers = {
        "measure": _KEPT[low["metric"]], "poorest": _title(low["part"]), "step": plain_step(int(low["step"])),
        "value": low["value"], "n": int(rows["n"].min()),
        "chance": kept[kept["part"].str.endswith(";null=chance")]["value"].iloc[-1],
    }  # fmt: skip
    svg = heatmap(
        grid, names, [plain_step(step) for step in steps], "1 is all", "map and measure", "training step"
    )
    yield _figure(view, "faithfulness", where, "What the maps keep of the features", numbers, rows, svg)


def _price(view: View, where: dict[str, str], comparable: str) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    rows, costs = view.metric("kl_divergence", **where), view.metric("stability_cost", **where)
    if not len(costs) or comparable == "independent":
        return
    series = {
        _title(part) + (", own start" if part.endswith("start=own") else ""): value
        for part, value in _by_part(rows).items()
    }
    most = costs.loc[costs["value"].idxmax()]
    judgement = (
        "Above 5 % the maps are bent to look alike: believe the ones of their own start there."
        if most["value"] > 0.05
        else "That is small: the maps are about as good as maps made for each step alone."
    )
    numbers = {
        "count": len(costs), "most": most["value"], "mean": costs["value"].mean(), "judgement": judgement,
        "where": f"{_title(most['part'])}, step {plain_step(int(most['step']))}", "starts": STARTS[comparable],
    }  # fmt: skip
    title = "What keeping the steps alike costs"
    yield _figure(view, "price", where, title, numbers, rows, lines(series, "divergence (nat)"))


def _movement(view: View, where: dict[str, str], comparable: str) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    rows = view.metric("map_movement", **where)
    if not len(rows):
        return
    series = {_title(part): value for part, value in _by_part(rows).items()}
    most = rows.loc[rows["value"].idxmax()]
    settled = series[_title(most["part"])][1][-1]
    judgement = (
        "It has not settled." if settled > 0.5 * most["value"] else "It moves much less at the end than there."
    )
    numbers = {
        "most": most["value"], "where": _title(most["part"]), "step": plain_step(int(most["step"])), "last": settled,
        "judgement": judgement, "n": int(rows["n"].min()),
    }  # fmt: skip
    title = "How far samples move from step to step"
    yield _figure(view, "movement", where, title, numbers, rows, lines(series, "median way (radii)"))
