"""The pictures of drift: which layers moved when, whose neighbours and answers changed, and in which order samples were learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.drift_mosaics import mosaic_figures
from stratascope.tasks.representation.drift_words import WORDS as _WORDS
from stratascope.tasks.representation.pictures import (
    figure_key,
    grid_of,
    leading_probe,
    lines_by,
    table_of,
    worded,
)

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    "step", "other_step", "probe", "layer", "part", "metric", "value", "low", "high", "n", "convention",
)  # fmt: skip
_LEAST = 1e-6
"""Distances below it are drawn as if they were as large."""
_STRIP = 600
"""So many samples at most have a line in the picture of the learning order."""
_NAMES = {"cka": "1 − CKA", "procrustes": "Procrustes distance"}


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe: movement by layer and step, its order, distances to both ends, churn, learning, and example samples."""
    measure = options.measures[0]
    probes = sorted(name for name in view.rows.loc[view.rows["status"] == "ok", "probe"].unique() if name)
    if not probes:
        return
    leading = leading_probe(view, probes)
    arrays = view.arrays()
    for probe in probes:
        made = (
            _movement(view, probe, measure, probe == leading),
            _ranking(view, probe, measure, probe == leading),
            _ends(view, probe, measure, "first"),
            _ends(view, probe, measure, "last"),
            _churn(view, probe),
            _transitions(view, probe),
            _learning(view, probe),
            _change(view, probe),
            _order(view, probe, arrays),
        )
        yield from (figure for figure in made if figure is not None)
        yield from mosaic_figures(view, probe, arrays, options, probe == leading)


def _layers(view: View, rows: pd.DataFrame) -> list[str]:
    present = set(rows["layer"].unique())
    return [layer for layer in view.layers("layer_movement") if layer in present]


def _movement(view: View, probe: str, measure: str, leads: bool) -> Figure | None:
    from stratascope.tasks.report.marked import marked_heatmap

    rows = view.metric("layer_movement", probe=probe, part=f"measure={measure};against=previous")
    layers = _layers(view, rows)
    if not layers:
        return None
    grid, steps = grid_of(rows, "layer", layers)
    powers = np.log10(np.maximum(grid, _LEAST))
    powers[~np.isfinite(grid)] = np.nan
    marks = {
        f"new level of movement {word}": _marks(view, probe, measure, against, layers, steps)
        for word, against in (("from step to step", "previous"), ("away from the first step", "first"))
    }
    largest = rows.loc[rows["value"].idxmax()]
    floor = view.metric("layer_movement", probe=probe, part=f"measure={measure};against=previous;null=split_half")
    numbers = {
        "measure": _NAMES[measure], "n": int(rows["n"].min()), "layer": largest["layer"],
        "value": f"{largest['value']:.3g}", "step": int(largest["step"]), "before": int(largest["other_step"]),
        "floor": f"{floor['value'].max():.2g}", "marks": _told(view, probe),
        "shortest": min(int(row.step - row.other_step) for row in rows.itertuples()),
        "longest": max(int(row.step - row.other_step) for row in rows.itertuples()),
    }  # fmt: skip
    picture = marked_heatmap(
        powers, layers, [str(step) for step in steps], f"power of ten of {_NAMES[measure]}", marks
    )
    return worded(
        _WORDS["movement"],
        numbers,
        key=figure_key("movement", probe),
        title=f"How far each layer moved, checkpoint by checkpoint, probe {probe}",
        svg=picture,
        run=view.run,
        probe=probe,
        headline=leads,
        table=table_of(view.metric("layer_movement", probe=probe), _COLUMNS),
    )


def _marks(
    view: View, probe: str, measure: str, against: str, layers: list[str], steps: list[int]
) -> list[tuple[int, int]]:
    rows = view.metric("change_point_step", probe=probe)
    rows = rows[rows["part"].str.startswith(f"of=layer_movement;measure={measure};against={against};")]
    return [
        (layers.index(row.layer), steps.index(int(row.value)))
        for row in rows.itertuples()
        if row.layer in layers and int(row.value) in steps
    ]


def _told(view: View, probe: str) -> str:
    """What became of the search for change points, in words."""
    every = view.rows[(view.rows["metric"] == "change_point_count") & (view.rows["probe"] == probe)]
    every = every[every["layer"] != ""]
    found = every[every["value"] > 0]
    if len(found):
        worst = view.metric("change_point_p_value", probe=probe)
        worst = worst[worst["layer"] != ""]
        count = found["layer"].nunique()
        return (
            f"New levels were found in {count} of {every['layer'].nunique()} layers, the least sure with p = "
            f"{worst['value'].max():.2g}; a slow slope passes for such changes too"
        )
    refused = every.loc[every["status"] != "ok", "reason"]
    if len(refused) == len(every):
        return f"No mark is drawn: {refused.iloc[0]}" if len(refused) else "No change of level was looked for"
    return f"No mark is drawn: none of the {len(every) - len(refused)} curves has a change of level beyond chance"


def _ranking(view: View, probe: str, measure: str, leads: bool) -> Figure | None:
    from stratascope.tasks.report.marked import values_with_intervals

    every = view.metric("layer_movement", probe=probe)
    last = int(every["step"].max()) if len(every) else -1
    series: dict[str, pd.DataFrame] = {}
    for against, word in (("previous", ""), ("last_audit", ", the last audit")):
        rows = every[(every["part"] == f"measure={measure};against={against}") & (every["step"] == last)]
        if len(rows):
            other = int(rows["other_step"].iloc[0])
            series = {name: item for name, item in series.items() if name != f"since step {other}"}
            series[f"since step {other}{word}"] = rows.set_index("layer")
    if not series:
        return None
    chosen = next(reversed(series.values()))
    layers = [str(name) for name in chosen.sort_values("value", ascending=False).index]
    if len(layers) < 2:
        return None
    bars = {
        name: [tuple(rows.loc[layer, ["value", "low", "high"]]) if layer in rows.index else (np.nan,) * 3 for layer in layers]
        for name, rows in series.items()
    }  # fmt: skip
    top = chosen.loc[layers[0]]
    rivals = [layer for layer in layers[1:] if chosen.loc[layer, "high"] >= top["low"]]
    null = view.metric("layer_movement", probe=probe, part=f"measure={measure};against=previous;null=permuted")
    floor = every[
        (every["part"] == f"measure={measure};against=previous;null=split_half") & (every["step"] == last)
    ]
    numbers = {
        "n": int(chosen["n"].min()), "since": next(reversed(series)), "measure": _NAMES[measure], "last": last,
        "top": layers[0], "value": f"{top['value']:.3g}", "least": layers[-1], "floor": f"{floor['value'].max():.2g}",
        "ceiling": f"{null['value'].max():.2f}" if len(null) else "1",
        "rivals": f"the intervals of {len(rivals)} of the {len(layers) - 1} other layers reach up to its own",
    }  # fmt: skip
    return worded(
        _WORDS["ranking"],
        numbers,
        key=figure_key("ranking", probe),
        title=f"Which layers moved most at the end, probe {probe}",
        svg=values_with_intervals(layers, bars, f"{_NAMES[measure]}, step {last} against before"),
        run=view.run,
        probe=probe,
        headline=leads,
        table=table_of(view.metric("movement_rank", probe=probe), _COLUMNS),
    )


def _ends(view: View, probe: str, measure: str, against: str) -> Figure | None:
    from stratascope.tasks.report.style import lines

    rows = view.metric("layer_movement", probe=probe, part=f"measure={measure};against={against}")
    layers = _layers(view, rows)
    if not layers:
        return None
    series, bands = lines_by(rows, "layer", layers)
    wide = (rows["high"] - rows["low"]).max() / 2
    other = int(rows["other_step"].iloc[0])
    ends = rows.groupby("layer")["value"].last() if against == "first" else rows.groupby("layer")["value"].first()
    numbers = {
        "measure": _NAMES[measure], "n": int(rows["n"].min()), "other": other, "wide": f"{wide:.2g}",
        "far": ends.idxmax(), "far_value": f"{ends.max():.2f}", "near": ends.idxmin(), "near_value": f"{ends.min():.2f}",
    }  # fmt: skip
    titles = {"first": "Distance of each layer to its start", "last": "Distance of each layer to its end"}
    return worded(
        _WORDS[against],
        numbers,
        key=figure_key(f"to-{against}", probe),
        title=f"{titles[against]}, probe {probe}",
        svg=lines(series, f"{_NAMES[measure]} to step {other}", bands=bands),
        run=view.run,
        probe=probe,
        table=table_of(rows, _COLUMNS),
    )


def _churn(view: View, probe: str) -> Figure | None:
    from stratascope.tasks.report.style import lines

    rows = view.metric("neighbour_churn", probe=probe, part="")
    layers = _layers(view, rows)
    answers = view.metric("prediction_churn", probe=probe, part="")
    series, bands = lines_by(rows, "layer", layers)
    if len(answers):
        series["predictions"] = (list(answers["step"]), list(answers["value"]))
        bands["predictions"] = (list(answers["low"]), list(answers["high"]))
    if not series:
        return None
    chance = view.metric("neighbour_churn", probe=probe, part="null=chance")
    by_chance = view.metric("prediction_churn", probe=probe, part="null=chance")
    last = {name: values[-1] for name, (_, values) in series.items()}
    most = max(last, key=lambda name: last[name])
    numbers = {
        "chance": f"{chance['value'].mean():.3f}" if len(chance) else "not known",
        "prediction_chance": f"{by_chance['value'].iloc[-1]:.3f}" if len(by_chance) else "not known",
        "n": int(rows["n"].min() if len(rows) else answers["n"].min()),
        "k": rows["convention"].iloc[0].rpartition("k=")[2] if len(rows) else "0",
        "step": int(max(steps[-1] for steps, _ in series.values())), "most": most, "value": f"{last[most]:.3f}",
        "answers": f"{answers['value'].iloc[-1]:.1%} of the predictions" if len(answers) else "",
    }  # fmt: skip
    both = [item for item in (rows, answers) if len(item)]
    import pandas as pd

    return worded(
        _WORDS["churn" if len(answers) else "neighbours"],
        numbers,
        key=figure_key("churn", probe),
        title=f"{'Neighbours and predictions' if len(answers) else 'Neighbours'} that changed, probe {probe}",
        svg=lines(series, "fraction changed", bands=bands),
        run=view.run,
        probe=probe,
        table=table_of(pd.concat(both), _COLUMNS),
    )


def _together(
    view: View, probe: str, labels: dict[str, str]
) -> tuple[pd.DataFrame, dict[str, Any], dict[str, Any]]:
    """The rows of several metrics without a part, their lines, and their bands."""
    import pandas as pd

    found = {metric: view.metric(metric, probe=probe, part="") for metric in labels}
    rows = pd.concat([item for item in found.values() if len(item)] or [view.rows[:0]])
    series = {labels[name]: (list(item["step"]), list(item["value"])) for name, item in found.items() if len(item)}
    bands = {labels[name]: (list(item["low"]), list(item["high"])) for name, item in found.items() if len(item)}
    return rows, series, bands


def _transitions(view: View, probe: str) -> Figure | None:
    from stratascope.tasks.report.style import lines

    labels = {
        "newly_right_fraction": "newly right", "newly_wrong_fraction": "newly wrong",
        "changed_wrong_fraction": "wrong otherwise",
    }  # fmt: skip
    rows, series, bands = _together(view, probe, labels)
    if not series:
        return None
    last = {name: values[-1] for name, (_, values) in series.items()}
    end = rows[rows["step"] == rows["step"].max()]
    numbers = {
        "n": int(rows["n"].min()), "step": int(end["step"].iloc[0]), "before": int(end["other_step"].iloc[0]),
        **{name.split("_fraction")[0]: round(last[label] * int(rows["n"].min())) for name, label in labels.items()},
    }  # fmt: skip
    return worded(
        _WORDS["transitions"],
        numbers,
        key=figure_key("transitions", probe),
        title=f"Samples that became right and wrong, probe {probe}",
        svg=lines(series, "fraction of samples", bands=bands),
        run=view.run,
        probe=probe,
        table=table_of(rows, _COLUMNS),
    )


def _learning(view: View, probe: str) -> Figure | None:
    from stratascope.tasks.report.style import lines

    labels = {
        "forgotten_fraction": "forgotten at least once", "never_learned_fraction": "never right so far",
        "unforgettable_fraction": "learned, never forgotten",
    }  # fmt: skip
    rows, series, bands = _together(view, probe, labels)
    if not series:
        return None
    last = {name: values[-1] for name, (_, values) in series.items()}
    events = view.metric("forgetting_events", probe=probe, part="")["value"].iloc[-1]
    numbers = {
        "n": int(rows["n"].min()), "checkpoints": rows["step"].nunique(), "events": f"{events:.2f}",
        "forgotten": f"{last[labels['forgotten_fraction']]:.1%}", "never": f"{last[labels['never_learned_fraction']]:.1%}",
    }  # fmt: skip
    return worded(
        _WORDS["learning"],
        numbers,
        key=figure_key("learning", probe),
        title=f"What was learned, forgotten and never known, probe {probe}",
        svg=lines(series, "fraction of samples", bands=bands),
        run=view.run,
        probe=probe,
        table=table_of(rows, _COLUMNS),
    )


def _change(view: View, probe: str) -> Figure | None:
    from stratascope.tasks.report.style import lines

    rows = view.metric("prediction_change", probe=probe, part="")
    if not len(rows):
        return None
    series = {"change": (list(rows["step"]), list(rows["value"]))}
    largest, last = rows.loc[rows["value"].idxmax()], rows.iloc[-1]
    numbers = {
        "n": int(last["n"]), "value": f"{last['value']:.3g}", "low": f"{last['low']:.3g}", "high": f"{last['high']:.3g}",
        "step": int(largest["step"]), "largest": f"{largest['value']:.3g}",
    }  # fmt: skip
    return worded(
        _WORDS["change"],
        numbers,
        key=figure_key("change", probe),
        title=f"How far the predictions moved, probe {probe}",
        svg=lines(
            series, "standard deviations of the targets", bands={"change": (list(rows["low"]), list(rows["high"]))}
        ),
        run=view.run,
        probe=probe,
        table=table_of(rows, _COLUMNS),
    )


def _order(view: View, probe: str, arrays: dict[str, np.ndarray]) -> Figure | None:
    from stratascope.tasks.report.marked import learning_order

    place = f"{probe}/@output"
    if f"{place}/target" not in arrays:
        return None
    steps, events = arrays[f"{place}/step"], arrays[f"{place}/forgetting_events"]
    first = arrays[f"{place}/first_learned_step"]
    right = (arrays[f"{place}/predicted"] == arrays[f"{place}/target"]).T
    kind = np.where(first < 0, 2, np.where(events > 0, 1, 0))
    order = np.lexsort((np.arange(len(kind)), -right.sum(1), events, first, kind))
    thin = order[:: -(-len(order) // _STRIP)]
    names = ("learned and kept", "forgotten at least once", "never right")
    kinds = [(name, int((kind[thin] == number).sum())) for number, name in enumerate(names)]
    counts = [int((kind == number).sum()) for number in range(3)]
    numbers = {
        "n": len(order), "drawn": len(thin), "checkpoints": len(steps), "kept": counts[0], "forgotten": counts[1],
        "never": counts[2], "most": int(events.max()),
    }  # fmt: skip
    identities = arrays[f"{place}/sample_id"][order]
    table = {
        "sample_id": identities.tolist(), "target": arrays[f"{place}/target"][order].tolist(),
        "first_learned_step": first[order].tolist(), "settled_step": arrays[f"{place}/settled_step"][order].tolist(),
        "forgetting_events": events[order].tolist(),
    }  # fmt: skip
    return worded(
        _WORDS["order"],
        numbers,
        key=figure_key("order", probe),
        title=f"In which order samples were learned, probe {probe}",
        svg=learning_order(right[thin], [str(step) for step in steps], kinds),
        run=view.run,
        probe=probe,
        table=table,
    )
