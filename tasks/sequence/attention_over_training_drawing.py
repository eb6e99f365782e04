"""The pictures of attention over the training: formation curves and order, moves, maps of scores, weights over steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import figure_key, leading_probe, table_of, worded
from stratascope.tasks.sequence.attention_over_training_words import MAPS, NOTES
from stratascope.tasks.sequence.attention_over_training_words import WORDS as _WORDS
from stratascope.tasks.sequence.head_agreement_drawing import agreement_figures
from stratascope.tasks.sequence.head_weights_drawing import DrawnLayer, final_score, weight_figures
from stratascope.tasks.sequence.importance_note import importance_note

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.tasks.contexts import View

_MOST_ORDERED = 30
_MOST_COLOURED = 6


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe formation curves, order and moves; for the leading one maps of scores and weights too."""
    probes = sorted(view.rows["probe"].unique())
    if not probes:
        return
    lead = leading_probe(view, probes)
    arrays = view.arrays()
    for probe in sorted(probes, key=lambda name: (name != lead, name)):
        layers = _layers(view, probe, arrays)
        if not layers:
            continue
        yield from _formation(view, probe, layers, options, probe == lead)
        yield from _order(view, probe, layers)
        yield from _moves(view, probe, layers)
        yield from agreement_figures(view, probe, {layer.name: layer.title for layer in layers})
        if probe == lead:
            for score in MAPS:
                yield from _map(view, probe, layers, score)
            yield from weight_figures(view, probe, layers, options)


def _layers(view: View, probe: str, arrays: dict[str, np.ndarray]) -> list[DrawnLayer]:
    from stratascope.storage.archive import join_path

    names = [path.removeprefix(f"{probe}/").removesuffix("/scores") for path in arrays if path.startswith(f"{probe}/") and path.endswith("/scores")]  # fmt: skip
    known = {name: number for number, name in enumerate(view.layers("head_formation_step"))}
    names.sort(key=lambda name: (known.get(name, len(known)), name))
    titles = shared_ending_cut(names)
    found = []
    for name in names:
        root = join_path("series", view.run, view.analysis, probe, name)
        about = view.store.array_info(f"{root}/scores")[3]
        weights = arrays.get(f"{probe}/{name}/head_weights")
        if weights is not None:
            about = {**about, **view.store.array_info(f"{root}/head_weights")[3]}
        steps = [int(step) for step in arrays[f"{probe}/{name}/step"]]
        change = arrays.get(f"{probe}/{name}/change")
        scores = arrays[f"{probe}/{name}/scores"]
        found.append(DrawnLayer(name, titles[name], steps, scores, list(about["score"]), change, weights, about))
    return found


def shared_ending_cut(names: Sequence[str]) -> dict[str, str]:
    """A shorter title for each of `names`: without the last dotted parts that all have in common."""
    parts = {name: name.split(".") for name in names}
    if len(parts) < 2:
        return {name: name for name in names}
    cut = 0
    while (
        all(len(item) > cut + 1 for item in parts.values())
        and len({item[-cut - 1] for item in parts.values()}) == 1
    ):
        cut += 1
    return {name: ".".join(item[: len(item) - cut]) for name, item in parts.items()}


def score_title(name: str) -> str:
    """`induction_score` as people say it."""
    return name.removesuffix("_score").replace("_", " ")


def _formation_rows(view: View, probe: str) -> pd.DataFrame:
    """Every row of `head_formation_step`, with columns `head` and `score`; those of heads that did not form too."""
    rows = view.rows[(view.rows["metric"] == "head_formation_step") & (view.rows["probe"] == probe)]
    parts = rows["part"].str.extract(r"^head=(?P<head>\d+);score=(?P<score>.+)$").dropna()
    rows = rows.loc[parts.index]
    return rows.assign(head=parts["head"].astype(int), score=parts["score"])


def _formation(view: View, probe: str, layers: list[DrawnLayer], options: Any, leads: bool) -> Iterator[Figure]:
    rows = _formation_rows(view, probe)
    if not len(rows):
        return
    by_name = {layer.name: layer for layer in layers}
    formed = rows[rows["status"] == "ok"]
    final = {(row.layer, row.head, row.score): final_score(by_name[row.layer], row.score, row.head) for row in rows.itertuples()}  # fmt: skip
    names = sorted(rows["score"].unique(), key=lambda name: -max(v for (_, _, s), v in final.items() if s == name))
    steps = sorted({step for layer in layers for step in layer.steps})
    gaps = np.diff(steps)
    scores = {(layer, head): value for (layer, head, score), value in final.items() if score == names[0]}
    numbers = {
        "formed": len(formed), "lines": len(rows), "least": options.least_gain,
        "best": "None has formed.", "change": "", "shortest": int(gaps.min()), "longest": int(gaps.max()),
        "importance": importance_note(view, probe, scores),
    }  # fmt: skip
    if len(formed):
        best = max(formed.itertuples(), key=lambda row: final[row.layer, row.head, row.score])
        value = final[best.layer, best.head, best.score]
        numbers["best"] = (
            f"The highest is {by_name[best.layer].head(best.head)} with {value:.2f} ({score_title(best.score)}), "
            f"formed between steps {plain_step(int(best.low))} and {plain_step(int(best.high))}."
        )
        numbers["change"] = _change_words(view, probe, best)
    yield worded(
        _WORDS["formation"], numbers, key=figure_key("formation", probe), run=view.run, probe=probe, headline=leads,
        title=f"When heads formed, probe {probe}", svg=_panels(layers, names, formed, steps),
        table=_curves_table(layers, names),
    )  # fmt: skip


def _change_words(view: View, probe: str, best: Any) -> str:
    """What the change points say about the best head's curve."""
    of = f"of={best.score};head={best.head}"
    rows = view.metric("change_point_size", probe=probe, layer=best.layer)
    sizes = rows[rows["part"].str.startswith(f"{of};")]
    counts = view.rows[(view.rows["metric"] == "change_point_count") & (view.rows["layer"] == best.layer)]
    counts = counts[(counts["part"] == of) & (counts["probe"] == probe)]
    if len(sizes):
        part = sizes.loc[sizes["value"].idxmax(), "part"]
        found = {name: view.metric(name, probe=probe, layer=best.layer, part=part)["value"].iloc[0] for name in ("change_point_step", "change_point_size", "change_point_p_value")}  # fmt: skip
        return (
            f"Its largest change of level is {found['change_point_size']:+.2f} at step "
            f"{plain_step(int(found['change_point_step']))} (p = {found['change_point_p_value']:.3g})."
        )
    if len(counts) and counts["status"].iloc[0] != "ok":
        return f"No change of level is looked for: {counts['reason'].iloc[0]}."
    return "No change of its level is beyond chance."


def _panels(layers: list[DrawnLayer], names: list[str], formed: pd.DataFrame, steps: list[int]) -> str:
    from matplotlib.figure import Figure as Canvas

    from stratascope.tasks.report.style import COLOURS, INK, quiet, step_axis, to_svg

    canvas = Canvas(figsize=(6.4, 1.9 * len(names) + 0.6), dpi=72, layout="constrained")
    panels = np.atleast_1d(canvas.subplots(len(names), 1, sharex=True))
    for axes, name in zip(panels, names, strict=True):
        quiet(axes)
        own = formed[formed["score"] == name]
        every = []
        for layer in layers:
            if name not in layer.names:
                continue
            for head, curve in enumerate(layer.scores[:, layer.names.index(name)].T):
                row = own[(own["layer"] == layer.name) & (own["head"] == head)]
                every.append((float(np.nan_to_num(curve[-1], nan=-1)), layer, head, curve, row))
        every.sort(key=lambda one: -one[0])
        coloured = [one for one in every if len(one[4])][:_MOST_COLOURED]
        for _, layer, _, curve, _ in every:
            axes.plot(layer.steps, curve, color=INK, alpha=0.22, linewidth=0.9)
        for number, (_, layer, head, curve, row) in enumerate(coloured):
            style = ("-", "--", ":", "-.", "-", "--")[number]
            axes.plot(layer.steps, curve, style, color=COLOURS[number], linewidth=1.9, label=layer.head(head))
            step = int(row["value"].iloc[0])
            axes.plot([step], [curve[layer.steps.index(step)]], "o", color=COLOURS[number], markersize=6.5)
        axes.set(ylim=(-0.03, 1.03), ylabel="share of weight")
        axes.set_title(score_title(name), fontsize=10.5, color=INK, loc="left")
        if coloured:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, labelcolor=INK)
        step_axis(axes, steps)
    for axes in panels[:-1]:
        axes.set_xlabel("")
    return to_svg(canvas)


def _curves_table(layers: list[DrawnLayer], names: list[str]) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {name: [] for name in ("layer", "head", "score", "step", "value")}
    for layer in layers:
        for name in (item for item in names if item in layer.names):
            for step, values in zip(layer.steps, layer.scores[:, layer.names.index(name)], strict=True):
                for head, value in enumerate(values.tolist()):
                    for column, item in zip(table, (layer.name, head, name, step, value), strict=True):
                        table[column].append(item)
    return table


def _order(view: View, probe: str, layers: list[DrawnLayer]) -> Iterator[Figure]:
    rows = _formation_rows(view, probe)
    formed = rows[rows["status"] == "ok"].sort_values(["value", "layer", "head", "score"], kind="stable")
    if not len(formed):
        return
    titles = {layer.name: layer for layer in layers}
    first, last = formed.iloc[0], formed.iloc[-1]
    shown = formed.iloc[:_MOST_ORDERED]
    numbers = {
        "heads": len(formed.drop_duplicates(["layer", "head"])), "total": sum(layer.scores.shape[2] for layer in layers),
        "shown": f"{len(shown)} of {len(formed)}" if len(shown) < len(formed) else f"all {len(shown)}",
    }  # fmt: skip
    for name, row in (("first", first), ("last", last)):
        numbers[name] = titles[row["layer"]].head(row["head"])
        numbers[f"{name}_score"] = score_title(row["score"])
        numbers[f"{name}_step"] = plain_step(int(row["value"]))
    yield worded(
        _WORDS["order"], numbers, key=figure_key("order", probe), run=view.run, probe=probe,
        title=f"In which order heads formed, probe {probe}", svg=_ordered(shown, titles),
        table=table_of(formed, ("layer", "head", "score", "value", "low", "high", "convention")),
    )  # fmt: skip


def _ordered(rows: pd.DataFrame, titles: dict[str, DrawnLayer]) -> str:
    from stratascope.tasks.report.style import COLOURS, INK, new_axes, step_axis, to_svg
    from stratascope.tasks.report.text import shortened

    figure, axes = new_axes(width=6.4, height=0.22 * len(rows) + 1.25)
    kinds = sorted(rows["score"].unique())
    for place, row in enumerate(rows.itertuples()):
        number = kinds.index(row.score) % len(COLOURS)
        axes.plot([row.low, row.high], [place, place], color=COLOURS[number], linewidth=3, alpha=0.45)
        axes.plot([row.value], [place], "osD^v"[number % 5], color=COLOURS[number], markersize=6)
    axes.set_yticks(
        range(len(rows)), [shortened(titles[row.layer].head(row.head), 28) for row in rows.itertuples()]
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    step_axis(axes, sorted({step for layer in titles.values() for step in layer.steps}))
    for number, kind in enumerate(kinds):
        axes.plot([], [], "osD^v"[number % 5], color=COLOURS[number % len(COLOURS)], label=score_title(kind))
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9.5, labelcolor=INK)
    return to_svg(figure)


def _head_grid(layers: list[DrawnLayer], values: Any) -> tuple[np.ndarray, list[str], list[int]]:
    """(head of a layer, step) with NaN where a layer has no number at a step, the names of the rows, and the steps."""
    steps = sorted({step for layer in layers for step in layer.steps})
    lines, names = [], []
    for layer in layers:
        found = values(layer)
        if found is None:
            continue
        for head, curve in enumerate(found.T):
            line = np.full(len(steps), np.nan)
            line[[steps.index(step) for step in layer.steps]] = curve
            lines.append(line)
            names.append(layer.head(head))
    return np.array(lines), names, steps


def _moves(view: View, probe: str, layers: list[DrawnLayer]) -> Iterator[Figure]:
    from stratascope.tasks.report.style import heatmap

    grid, names, steps = _head_grid(layers, lambda layer: layer.change)
    if not len(grid) or not np.isfinite(grid).any():
        return
    grid, shown = grid[:, 1:], steps[1:]
    rows = view.metric("head_change", probe=probe)
    head, place = np.unravel_index(int(np.nan_to_num(grid, nan=-1).argmax()), grid.shape)
    at = rows[(rows["step"] == shown[place])]
    numbers = {
        "value": float(grid[head, place]), "most": names[head], "step": plain_step(shown[place]),
        "before": plain_step(int(at["other_step"].iloc[0])), "still": int((grid[:, -1] < 0.05).sum()),
        "heads": len(names), "samples": int(rows["n"].max()),
    }  # fmt: skip
    yield worded(
        _WORDS["change"], numbers, key=figure_key("change", probe), run=view.run, probe=probe,
        title=f"How far heads moved since the checkpoint before, probe {probe}",
        svg=heatmap(grid, names, [plain_step(step) for step in shown], "Jensen–Shannon distance", "head", "training step"),
        table=table_of(rows, ("layer", "part", "step", "other_step", "value", "low", "high", "n")),
    )  # fmt: skip


def _map(view: View, probe: str, layers: list[DrawnLayer], score: str) -> Iterator[Figure]:
    from stratascope.tasks.report.style import heatmap

    grid, names, steps = _head_grid(
        layers, lambda layer: layer.scores[:, layer.names.index(score)] if score in layer.names else None
    )
    sound = np.isfinite(grid).all(1) if len(grid) else np.zeros(0, bool)
    if not sound.any():
        return
    title, label, what, how = MAPS[score]
    last = np.where(sound, grid[:, -1], np.nan)
    high, low = int(np.nanargmax(last)), int(np.nanargmin(last))
    ranges = np.where(sound, np.ptp(np.nan_to_num(grid), axis=1), -1.0)
    moved = int(ranges.argmax())
    numbers = {
        "what": what, "how": how, "note": NOTES[score], "step": plain_step(steps[-1]), "high": names[high],
        "high_value": float(last[high]), "low": names[low], "low_value": float(last[low]), "gain": float(ranges[moved]),
        "moved": names[moved],
    }  # fmt: skip
    table = {"head": names, **{f"step {step}": grid[:, place].tolist() for place, step in enumerate(steps)}}
    yield worded(
        _WORDS["map"], numbers, key=figure_key(score, probe), run=view.run, probe=probe,
        title=f"{title} over training, probe {probe}", table=table,
        svg=heatmap(grid, names, [plain_step(step) for step in steps], label, "head", "training step"),
    )  # fmt: skip
