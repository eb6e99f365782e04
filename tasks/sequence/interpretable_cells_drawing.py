"""The pictures of interpretable cells: coloured texts, how states lie by a feature's value, scores, and units by features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_number, plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, worded
from stratascope.tasks.sequence.coloured_text import TextPiece, coloured_text
from stratascope.tasks.sequence.found_cells import KINDS, FoundCells, inputs_of
from stratascope.tasks.sequence.interpretable_cells_words import WORDS
from stratascope.tasks.sequence.sequence_samples import names_of, token_words

if TYPE_CHECKING:
    from stratascope.storage.probes import Probe
    from stratascope.tasks.contexts import View

TEXTS = 6
"""So many features get texts, those that are followed best."""
_FRAMES = 6
_EACH = 3
"""Of each feature so many units stand in the map."""
_PANELS = 12


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe the scores and the map of units; for the leading one also profiles and texts."""
    rows = view.metric("tracked_features")
    if not len(rows):
        return
    lead = leading_probe(view, rows["probe"].unique())
    for probe in sorted(rows["probe"].unique(), key=lambda name: (name != lead, name)):
        steps = sorted({int(step) for step in rows[rows["probe"] == probe]["step"]})
        for name in inputs_of(view.store, view.run, steps[-1], probe):
            found = FoundCells(view.store, view.run, steps[-1], probe, name)
            yield _scores(view, found, options, steps[0], headline=probe == lead)
            if probe == lead:
                yield from _texts(view, found, steps, options)
                yield _profiles(view, found)
            yield _map(view, found, options)


def in_order(found: FoundCells) -> list[int]:
    """Rows of the features, the best followed first, those without a score last."""
    return [int(place) for place in np.argsort(-np.nan_to_num(found.numbers["score"], nan=-2), kind="stable")]


def _p(value: float) -> str:
    return plain_number(float(f"{value:.2g}")) if np.isfinite(value) else "unknown"


def _spread(found: FoundCells) -> str:
    """How far the intervals reach, in words."""
    widths = found.numbers["high"] - found.numbers["low"]
    if not np.isfinite(widths).any():
        return "No interval could be computed."
    place = int(np.nanargmax(widths))
    return f"The widest interval is that of “{found.facts['titles'][place]}”: {widths[place]:.2f}."


def _early(early: FoundCells | None, options: Any) -> str:
    """What the first checkpoint says to the same question."""
    if early is None or not early.facts:
        return "Random weights pass this test too: only an earlier checkpoint tells what was learned."
    sure = int((early.numbers["corrected"] < options.level).sum())
    return (
        f"At step {plain_step(early.step)} {sure} of {len(early.facts['features'])} were tracked already, the best with "
        f"r = {np.nanmax(early.numbers['score']):.2f}: any state that depends on the text passes the test, learned or not."
    )


def _scores(view: View, found: FoundCells, options: Any, first: int, headline: bool) -> Figure:
    from stratascope.tasks.report.style import COLOURS, INK, new_axes, to_svg

    order, numbers = in_order(found)[::-1], found.numbers
    early = None if first == found.step else FoundCells(view.store, view.run, first, found.probe, found.name)
    figure, axes = new_axes(6.6, 0.27 * len(order) + 0.9)
    axes.grid(False)
    axes.axvline(0, color=INK, alpha=0.4, linewidth=0.8)
    for height, place in enumerate(order):
        sure = numbers["corrected"][place] < options.level
        colour = COLOURS[0] if sure else COLOURS[8]
        axes.plot([numbers["low"][place], numbers["high"][place]], [height, height], color=colour, linewidth=2)
        axes.plot(
            numbers["score"][place],
            height,
            "o",
            color=colour,
            markersize=6,
            markerfacecolor=colour if sure else "none",
        )
        at = None if early is None else early.place_of(found.facts["features"][place])
        if early is not None and at is not None:
            axes.plot(early.numbers["score"][at], height, "x", color=COLOURS[1], markersize=6, markeredgewidth=1.6)
        axes.annotate(
            f"{found.facts['layers'][place]} {found.facts['kinds'][place]} {int(numbers['unit'][place])}",
            (1.02, height), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(order)), [found.facts["titles"][place] for place in order])
    axes.set(xlim=(min(-0.1, float(np.nanmin(numbers["low"])) - 0.05), 1), ylim=(-0.7, len(order) - 0.3))
    axes.set_xlabel("correlation on samples that did not choose the unit")
    best = order[-1]
    sure = int((numbers["corrected"] < options.level).sum())
    rows = view.metric("cell_feature_score", probe=found.probe)
    words = {
        "probe_line": f"Probe {found.probe}" + (f", input {found.name}." if found.name != "input" else "."),
        "level": options.level, "step": plain_step(found.step), "tracked": sure, "count": len(order),
        "best": found.facts["titles"][best], "best_score": numbers["score"][best], "best_unit": int(numbers["unit"][best]),
        "best_layer": found.facts["layers"][best], "spread": _spread(found), "early": _early(early, options), "samples": int(rows["n"].max()),
    }  # fmt: skip
    table: dict[str, list[Any]] = {"feature": found.facts["features"], "layer": found.facts["layers"], "state": found.facts["kinds"]}  # fmt: skip
    table |= {name: values.tolist() for name, values in numbers.items()}
    return worded(
        WORDS["scores"], words, key=figure_key("scores", found.probe, found.name), svg=to_svg(figure), run=view.run,
        title=f"The best unit for each feature, probe {found.probe}, step {plain_step(found.step)}", probe=found.probe,
        headline=headline, table=table,
    )  # fmt: skip


def texts_of(view: View, found: FoundCells, place: int, probe: Probe, name: str) -> list[TextPiece]:
    """The coloured texts of the feature at `place`, as `coloured_text` draws them."""
    tokens, states, values, real, ids = (
        found.array(key) for key in ("tokens", "states", "values", "real", "sample_id")
    )
    if tokens is None or states is None or values is None or real is None or ids is None or not view.show_inputs:
        return []
    names = names_of(probe, "" if name == "input" else name)
    strip = strip_of(values[place])
    pieces = []
    for example in range(states.shape[1]):
        kept = np.flatnonzero(real[place, example])
        words = token_words(tokens[place, example], names)
        pieces.append(TextPiece(
            f"sample {ids[place, example]}", [words[token] for token in kept],
            states[place, example, kept].astype(np.float64), strip[example, kept],
        ))  # fmt: skip
    return pieces


def strip_of(values: np.ndarray) -> np.ndarray:
    """`values` (sample, token) from 0 to 1; where they are not known NaN."""
    low, high = (float(np.nanmin(values)), float(np.nanmax(values))) if np.isfinite(values).any() else (0.0, 0.0)
    return (values - min(low, 0.0)) / max(high - min(low, 0.0), 1e-9)


def _texts(view: View, found: FoundCells, steps: Sequence[int], options: Any) -> Iterator[Figure]:
    probe = view.probes[found.probe]
    for place in in_order(found)[:TEXTS]:
        feature, title = found.facts["features"][place], found.facts["titles"][place]
        frames: list[tuple[int, str]] = []
        early = "there is no earlier checkpoint to hold this against"
        for step in even_choice(steps, _FRAMES):
            other = (
                found if step == found.step else FoundCells(view.store, view.run, step, found.probe, found.name)
            )
            at = other.place_of(feature)
            pieces = [] if at is None else texts_of(view, other, at, probe, found.name)
            if at is None or not pieces:
                continue
            if not frames and step != found.step:
                early = f"at step {plain_step(step)} the best unit had r = {other.numbers['score'][at]:.2f}"
            legend = f"{other.facts['kinds'][at]} {int(other.numbers['unit'][at])} of {other.facts['layers'][at]}, r = {other.numbers['score'][at]:.2f}"
            frames.append((step, coloured_text(pieces, legend, title)))
        if not frames:
            return
        numbers = {name: float(values[place]) for name, values in found.numbers.items()}
        words = {
            "unit": int(numbers["unit"]), "layer": found.facts["layers"][place], "kind": KINDS[found.facts["kinds"][place]],
            "title": title, "step": plain_step(found.step), "p_value": _p(numbers["corrected"]), "early": early,
            "secondary_name": "area under the curve" if found.facts["boolean"][place] else "rank correlation",
            **{key: numbers[key] for key in ("score", "low", "high", "secondary")},
        }  # fmt: skip
        yield worded(
            WORDS["texts"], words, key=figure_key("text", found.probe, found.name, feature), frames=tuple(frames),
            title=f"“{title}”, probe {found.probe}: {found.unit_title(place)}", run=view.run, probe=found.probe,
            layer=found.facts["layers"][place], table={name: [value] for name, value in numbers.items()},
        )  # fmt: skip


def _profiles(view: View, found: FoundCells) -> Figure:
    from matplotlib.figure import Figure as Sheet

    from stratascope.tasks.report.style import quiet, to_svg

    profile, edges = found.array("profile"), found.array("profile_edges")
    assert profile is not None
    assert edges is not None
    order = in_order(found)[:_PANELS]
    rows = -(-len(order) // 3)
    figure = Sheet(figsize=(7.0, 1.95 * rows + 0.2), dpi=72, layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, 3, squeeze=False)).ravel()
    apart = 0
    for axes in grid[len(order) :]:
        axes.axis("off")
    for axes, place in zip(grid, order):
        quiet(axes)
        known = np.flatnonzero(np.isfinite(profile[place]).all(1))
        _ranges(axes, profile[place][known], edges[place][known], bool(found.facts["boolean"][place]))
        first, last = profile[place][known[0]], profile[place][known[-1]]
        apart += bool(first[1] > last[3] or last[1] > first[3])
        axes.set_title(found.facts["titles"][place], fontsize=8.5, loc="left")
    figure.supylabel("state of the best unit", fontsize=10)
    words = {"count": len(order), "step": plain_step(found.step), "apart": apart}
    flat = [(found.facts["features"][place], group) for place in order for group in range(profile.shape[1])]
    table: dict[str, list[Any]] = {"feature": [name for name, _ in flat], "group": [group for _, group in flat]}
    table |= {f"quantile_{level:g}": [float(profile[place, group, number]) for place in order for group in range(profile.shape[1])] for number, level in enumerate(found.facts["quantiles"])}  # fmt: skip
    return worded(
        WORDS["profile"], words, key=figure_key("profile", found.probe, found.name), svg=to_svg(figure), run=view.run,
        title=f"States by the value of the feature, probe {found.probe}, step {plain_step(found.step)}", probe=found.probe,
        table=table,
    )  # fmt: skip


def _ranges(axes: Any, profile: np.ndarray, edges: np.ndarray, boolean: bool) -> None:
    from stratascope.tasks.report.style import COLOURS

    for group, values in enumerate(profile):
        colour = COLOURS[2] if boolean and group else COLOURS[0]
        axes.plot([group, group], values[[0, 4]], color=colour, linewidth=1.2)
        axes.plot([group, group], values[[1, 3]], color=colour, linewidth=6, solid_capstyle="butt", alpha=0.6)
        axes.plot(group, values[2], "_", color=colour, markersize=11, markeredgewidth=2.2)
    names = ["no", "yes"] if boolean else [_span(low, high) for low, high in edges]
    shown = range(len(profile)) if len(profile) <= 4 else range(0, len(profile), 2)
    axes.set_xticks(list(shown), [names[group] for group in shown])
    axes.tick_params(labelsize=8.5)
    axes.set(ylim=(-1.05, 1.05), xlim=(-0.6, len(profile) - 0.4))


def _short_names(layers: Sequence[str]) -> dict[str, str]:
    """Layers by their last part, where that tells them apart."""
    ends = {layer: layer.rsplit(".", 1)[-1] for layer in layers}
    return ends if len(set(ends.values())) == len(ends) else {layer: layer for layer in layers}


def _span(low: float, high: float) -> str:
    return plain_number(low) if low == high else f"{plain_number(low)}–{plain_number(high)}"


def _map(view: View, found: FoundCells, options: Any) -> Figure:
    from stratascope.tasks.report.style import cells, to_svg
    from stratascope.tasks.sequence.cell_association import normal_bound

    matrices, z = found.matrices("correlation"), found.matrices("z")
    features = next(iter(matrices.values()))[1]
    titles = dict(zip(found.facts["features"], found.facts["titles"]))
    sizes = np.abs(np.concatenate([values for values, _ in matrices.values()]))
    short = _short_names([layer for layer, _ in matrices])
    names = [
        f"{short[layer]} {kind[0]}{unit}"
        for (layer, kind), (values, _) in matrices.items()
        for unit in range(len(values))
    ]
    every_z = np.abs(np.concatenate([z[place][0] for place in matrices]))
    bound = normal_bound(int(np.isfinite(every_z).sum()), options.level)
    shown = np.unique(np.argsort(-np.nan_to_num(sizes), axis=0, kind="stable")[:_EACH])
    drawn = np.where(every_z[shown] >= bound, sizes[shown], np.nan)
    label = [names[unit] for unit in shown]
    between = (
        np.ma.corrcoef(np.ma.masked_invalid(sizes), rowvar=False).filled(0)
        if len(features) > 1
        else np.zeros((1, 1))
    )
    np.fill_diagonal(between, 0)
    one, two = np.unravel_index(int(np.nan_to_num(between).argmax()), between.shape)
    overlap = f"the units that follow “{titles.get(features[one], features[one])}” are most like those that follow “{titles.get(features[two], features[two])}”, r = {between[one, two]:.2f} over all units"
    words = {
        "units": len(shown), "step": plain_step(found.step), "sure": int((every_z >= bound).sum()), "bound": bound,
        "pairs": f"{int(np.isfinite(every_z).sum()):,}", "level": options.level, "overlap": overlap,
    }  # fmt: skip
    rows = [titles.get(name, name) for name in features]
    figure, picture = cells(
        drawn.T, rows, label, "size of the correlation", "", "unit (c: cell state, h: hidden state)"
    )
    picture.axes.set_xticks(range(len(label)), label, rotation=90)
    picture.axes.set_yticks(range(len(rows)), rows)
    picture.axes.tick_params(labelsize=8.5)
    table: dict[str, list[Any]] = {"unit": label}
    table |= {name: sizes[shown][:, number].tolist() for number, name in enumerate(features)}
    return worded(
        WORDS["map"], words, key=figure_key("map", found.probe, found.name), svg=to_svg(figure), run=view.run, probe=found.probe,
        title=f"Units by features, probe {found.probe}, step {plain_step(found.step)}", table=table,
    )  # fmt: skip
