"""The pictures of head importance: every head, weights beside importance, pruning, and all of it over training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import step_directory
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import counted, plain_number, plain_step, shortened
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, table_of, worded
from stratascope.tasks.sequence.head_importance_words import WORDS as _WORDS

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.tasks.contexts import View

_FRAMES = 16
_LINES = 6
_NAMED = 4
LEAST_HEADS = 3
"""Of fewer no rank correlation is told."""
_COLUMNS = ("step", "probe", "layer", "part", "value", "low", "high", "n")
_ORDERS = {"gradient": "gradient first", "ablation": "ablation first", "random": "random orders"}


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe every head's ablation, agreement with gradient and weights, pruning curves, and lines over steps."""
    rows = view.metric("head_importance_ablation")
    if not len(rows):
        return
    lead = leading_probe(view, rows["probe"].unique())
    for probe in sorted(rows["probe"].unique(), key=lambda name: (name != lead, name)):
        own = rows[rows["probe"] == probe].assign(
            head=lambda table: table["part"].str.removeprefix("head=").astype(int)
        )
        filed = _Filed(view, int(own["step"].max()), probe)
        heads = len(own[own["step"] == filed.step])
        follows = own["step"].nunique() > 1
        if heads > 1 or not follows:
            yield _every_head(view, own, probe, filed, probe == lead)
        if heads >= LEAST_HEADS:
            yield _agreement(view, own, probe, filed)
        yield from _pruning(view, probe, filed, options.tolerance)
        if follows:
            yield _over_training(view, own, probe, filed, probe == lead and heads == 1)


class _Filed:
    """What was filed of one probe at one step."""

    def __init__(self, view: View, step: int, probe: str) -> None:
        self.step = step
        self._view, self._probe = view, probe
        self.arrays = {
            path.partition("/")[2]: values
            for path, values in view.arrays(step).items()
            if path.startswith(f"{probe}/")
        }

    def about(self, path: str) -> Mapping[str, Any]:
        root = ("runs", self._view.run, step_directory(self.step), self._view.analysis, self._probe)
        return self._view.store.array_info(join_path(*root, *path.split("/")))[3]

    def importance(self) -> dict[str, np.ndarray]:
        """(measure, head) by layer."""
        return {
            path.removesuffix("/importance"): values
            for path, values in self.arrays.items()
            if path.endswith("/importance")
        }

    @property
    def loss(self) -> float:
        layer = next(iter(self.importance()), None)
        return float("nan") if layer is None else float(self.about(f"{layer}/importance")["loss"])


def _name(layer: str, head: int) -> str:
    return f"head {head} of {shortened(layer, 28)}"


def _every_head(view: View, rows: pd.DataFrame, probe: str, filed: _Filed, leads: bool) -> Figure:
    from stratascope.tasks.report.style import moving_heatmap

    layers = [layer for layer in view.layers("head_importance_ablation") if layer in set(rows["layer"])]
    steps = even_choice(sorted({int(step) for step in rows["step"]}), _FRAMES)
    grid = np.full((len(steps), len(layers), int(rows["head"].max()) + 1), np.nan)
    for row in rows.itertuples():
        if int(row.step) in steps:
            grid[steps.index(int(row.step)), layers.index(row.layer), row.head] = row.value
    newest = rows[rows["step"] == filed.step]
    best = newest.loc[newest["value"].idxmax()]
    numbers = {
        "probe": probe, "step": plain_step(filed.step), "heads": len(newest), "loss": plain_number(filed.loss),
        "unsure": int(((newest["low"] <= 0) & (newest["high"] >= 0)).sum()),
        "best": _name(best["layer"], best["head"]), "best_value": float(best["value"]),
    }  # fmt: skip
    return worded(
        _WORDS["ablation"], numbers, key=figure_key("ablation", probe),
        title=f"Rise of the loss without each head, probe {probe}",
        frames=moving_heatmap(
            grid, steps, layers, [str(head) for head in range(grid.shape[2])], "rise of the loss", "layer", "head"
        ),
        run=view.run, probe=probe, headline=leads, table=table_of(rows, _COLUMNS),
    )  # fmt: skip


def _agreement(view: View, rows: pd.DataFrame, probe: str, filed: _Filed) -> Figure:
    table: dict[str, list[Any]] = {
        name: [] for name in ("layer", "head", "gradient", "ablation", "low", "high", "focus")
    }
    for layer, values in filed.importance().items():
        for head in range(values.shape[1]):
            line = (layer, head, *(float(values[place, head]) for place in (0, 3, 4, 5, 6)))
            for name, entry in zip(table, line, strict=True):
                table[name].append(entry)
    found = view.metric("head_importance_agreement", probe=probe)
    found = found[found["step"] == filed.step].set_index("part")["value"]
    ranks = {name: found.get(f"beside={name}", np.nan) for name in ("gradient", "focus")}
    numbers = {
        "step": plain_step(filed.step), "heads": int(np.isfinite(table["ablation"]).sum()),
        **{name: "not told" if np.isnan(rank) else f"{rank:.2f}" for name, rank in ranks.items()},
        "verdict": _verdict(ranks["focus"]),
    }  # fmt: skip
    return worded(
        _WORDS["agreement"], numbers, key=figure_key("agreement", probe),
        title=f"What heads are worth beside what they look like, probe {probe}",
        svg=_clouds(table), run=view.run, probe=probe, table=table,
    )  # fmt: skip


def _verdict(rank: float) -> str:
    if np.isnan(rank):
        return "Too few heads to say whether weights and importance go together."
    if rank > 0.5:
        return "In this network pointed heads tend to be the important ones; that need not hold in the next."
    if rank < -0.5:
        return "In this network the pointed heads tend to be the idle ones: do not explain answers by them."
    return "In this network how pointed a head's weights are says little about what it is worth."


def _clouds(table: Mapping[str, list[Any]]) -> str:
    from matplotlib.figure import Figure as Sheet

    from stratascope.tasks.report.style import COLOURS, INK, quiet, to_svg

    sheet = Sheet(figsize=(5.9, 3.3), dpi=72, layout="constrained")
    panels = sheet.subplots(1, 2, sharey=True)
    layers = list(dict.fromkeys(table["layer"]))
    values = {name: np.array(table[name], float) for name in ("gradient", "ablation", "low", "high", "focus")}
    best = np.argsort(-np.nan_to_num(values["ablation"], nan=-np.inf))[:_NAMED]
    for axes, name, label in (
        (panels[0], "gradient", "size of gradient"),
        (panels[1], "focus", "pointed weights"),
    ):
        quiet(axes)
        axes.axhline(0, color=INK, alpha=0.5, linewidth=0.8)
        for place, layer in enumerate(layers):
            mine = np.array([item == layer for item in table["layer"]])
            errors = np.abs(np.stack([values[end][mine] for end in ("low", "high")]) - values["ablation"][mine])
            axes.errorbar(
                values[name][mine], values["ablation"][mine], np.nan_to_num(errors), fmt="os^DvPX*"[place % 8],
                color=COLOURS[place % len(COLOURS)], markersize=4.5, linewidth=0.9, label=shortened(layer, 24),
            )  # fmt: skip
        for place in best:
            if np.isfinite(values[name][place]):
                axes.annotate(
                    str(table["head"][place]), (values[name][place], values["ablation"][place]), xytext=(5, 3),
                    textcoords="offset points", fontsize=9, color=INK,
                )  # fmt: skip
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=4)
    panels[0].set_ylabel("rise of the loss without")
    if len(layers) <= 8:
        sheet.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(3, len(layers)), frameon=False, fontsize=9, labelcolor=INK)  # fmt: skip
    return to_svg(sheet)


def _pruning(view: View, probe: str, filed: _Filed, tolerance: float) -> Iterator[Figure]:
    curves = {name: filed.arrays[f"pruning/{name}"] for name in _ORDERS if f"pruning/{name}" in filed.arrays}
    if not curves:
        return
    about = filed.about("pruning/gradient")
    shares = view.metric("prunable_head_share", probe=probe)
    shares = shares[shares["step"] == filed.step].set_index("part")["value"]
    order = "ablation" if "ablation" in curves else "gradient"
    numbers = {
        "probe": probe, "step": plain_step(filed.step), "draws": len(curves["random"]), "order": order,
        "share": float(shares[f"order={order}"]), "random": float(shares["order=random"]), "heads": about["removed"][-1],
        "tolerance": tolerance, "n": about["samples"],
        "harm": "accuracy falls" if np.isfinite(curves["random"][:, 1]).all() else "the loss rises",
    }  # fmt: skip
    for place, measure in enumerate(about["measure"]):
        drawn = {name: values[:, place] for name, values in curves.items()}
        if not all(np.isfinite(values).all() for values in drawn.values()):
            continue
        table: dict[str, list[Any]] = {name: [] for name in ("order", "draw", "removed", measure)}
        for name, values in drawn.items():
            for draw_number, line in enumerate(values):
                for count, value in zip(about["removed"], line, strict=True):
                    for column, entry in zip(table, (name, draw_number, count, float(value)), strict=True):
                        table[column].append(entry)
        yield worded(
            _WORDS["pruning"], {**numbers, "what": measure.capitalize()}, key=figure_key("pruning", measure, probe),
            title=f"{measure.capitalize()} when heads are taken away, probe {probe}",
            svg=_pruning_curves(drawn, about["removed"], measure), run=view.run, probe=probe, table=table,
        )  # fmt: skip


def _pruning_curves(curves: Mapping[str, np.ndarray], removed: list[int], measure: str) -> str:
    from stratascope.tasks.report.style import COLOURS, INK, new_axes, to_svg

    figure, axes = new_axes(height=3.1)
    for place, (name, values) in enumerate(curves.items()):
        single = len(values) == 1
        for number, line in enumerate(values):
            axes.plot(
                removed, line, "o-" if single else "-", color=COLOURS[place] if single else INK, markersize=3.5,
                alpha=1.0 if single else 0.35, linewidth=1.8 if single else 1.0,
                label=_ORDERS[name] if number == 0 else None,
            )  # fmt: skip
    axes.set_xlabel("heads taken away")
    axes.set_ylabel(measure)
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    return to_svg(figure)


def _over_training(view: View, rows: pd.DataFrame, probe: str, filed: _Filed, leads: bool) -> Figure:
    from stratascope.tasks.report.style import lines

    tops = rows.groupby(["layer", "head"])["value"].max().sort_values(ascending=False)
    shown = list(tops.index[:_LINES])
    series, bands = {}, {}
    for layer, head in shown:
        own = rows[(rows["layer"] == layer) & (rows["head"] == head)].sort_values("step")
        name = f"{shortened(layer, 20)}: {head}"
        series[name] = (own["step"].tolist(), own["value"].tolist())
        bands[name] = (own["low"].tolist(), own["high"].tolist())
    newest = rows[rows["step"] == filed.step]
    best = newest.loc[newest["value"].idxmax()]
    numbers = {
        "probe": probe, "shown": counted(len(shown), "head"), "best": _name(best["layer"], best["head"]), "value": float(best["value"]),
        "loss": plain_number(filed.loss), "rest": f"{len(tops) - len(shown)} other heads are not drawn." if len(tops) > len(shown) else "All heads are drawn.",
    }  # fmt: skip
    return worded(
        _WORDS["over_training"], numbers, key=figure_key("over-training", probe),
        title=f"When heads came to matter, probe {probe}", svg=lines(series, "rise of the loss", bands=bands),
        run=view.run, probe=probe, headline=leads, table=table_of(rows, _COLUMNS),
    )  # fmt: skip
