"""Pictures of how far maps can be trusted: a table of verdicts, curves of taking away and putting in, shuffled weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.pictures import figure_key, grid_of, leading_probe, table_of, worded
from stratascope.tasks.vision.explainers import NULLS
from stratascope.tasks.vision.map_tests import SHARES

_COLUMNS = ("step", "probe", "part", "value", "low", "high", "n", "unit", "estimator", "status", "reason")
_TITLES = {"random": "random order", "edges": "picture's edges"}


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For the leading probe: verdicts over the steps, ranking, curves, shuffled weights, faithfulness and sensitivity."""
    rows = view.metric("road_score")
    if not len(rows):
        return
    probe = leading_probe(view, rows["probe"].unique())
    steps = sorted({int(step) for step in rows.loc[rows["probe"] == probe, "step"]})
    trust = _Trust(view, probe, steps)
    yield trust.ranking()
    yield trust.verdicts()
    for kind in ("deletion", "insertion"):
        yield trust.curves(kind)
    for figure in (trust.shuffled(options), trust.told("infidelity"), trust.told("max_sensitivity")):
        if figure is not None:
            yield figure


def title_of(method: str) -> str:
    """The name of a method for people, whichever analysis it belongs to."""
    if method in _TITLES:
        return _TITLES[method]
    from stratascope.tasks.vision.attribution_methods import attribution_methods
    from stratascope.tasks.vision.class_activation_methods import METHODS

    known = attribution_methods()
    if method in known:
        return known[method].title
    return METHODS[method].title if method in METHODS else method


class _Trust:
    def __init__(self, view: View, probe: str, steps: list[int]) -> None:
        self.view, self.probe, self.steps, self.last = view, probe, steps, steps[-1]
        found = view.metric("road_score", probe=probe)
        last = found[found["step"] == self.last]
        self.methods = [
            part.removeprefix("method=") for part in last.sort_values("value", ascending=False)["part"]
        ]
        verdicts = view.rows[(view.rows["metric"] == "attribution_trusted") & (view.rows["probe"] == probe)]
        self.judged = verdicts[(verdicts["status"] == "ok")]
        now = self.judged[self.judged["step"] == self.last]
        self.failed = {
            part.removeprefix("method="): reason
            for part, value, reason in zip(now["part"], now["value"], now["reason"], strict=True)
            if value == 0
        }
        self.counted = [name for name in self.methods if name not in NULLS]

    def name(self, method: str) -> str:
        return (
            f"{title_of(method)} (failed)" if method in self.failed and method not in NULLS else title_of(method)
        )

    def numbers(self, **more: Any) -> dict[str, Any]:
        failed = [name for name in self.counted if name in self.failed]
        last = self.view.metric("road_score", probe=self.probe)
        last = last[last["step"] == self.last]
        said = "; ".join(f"{title_of(name)}: {self.failed[name]}" for name in failed[:4])
        return {
            "last": f"{self.last:,}", "n": int(last["n"].min()), "count": len(self.counted), "failed": len(failed),
            "said": f" {said}." if said else "", **more,
        }  # fmt: skip

    def _values(self, metric: str) -> dict[str, tuple[float, float, float]]:
        rows = self.view.metric(metric, probe=self.probe)
        rows = rows[rows["step"] == self.last]
        return {row.part.removeprefix("method="): (row.value, row.low, row.high) for row in rows.itertuples()}

    def ranking(self) -> Figure:
        from stratascope.tasks.report.marked import values_with_intervals

        values = self._values("road_score")
        best = self.methods[0]
        numbers = self.numbers(best=title_of(best), value=f"{values[best][0]:.2f}", random=f"{round(values['random'][0], 2) + 0.0:.2f}" if "random" in values else "not known")  # fmt: skip
        names = [self.name(name) for name in self.methods]
        return worded(
            _WORDS["ranking"], numbers, key=figure_key("ranking", self.probe),
            title=f"Which maps find what the network uses, step {self.last:,}, probe {self.probe}",
            svg=values_with_intervals(names, {"": [values[name] for name in self.methods]}, "ROAD score: half the difference of probabilities"),
            run=self.view.run, probe=self.probe, headline=True, table=table_of(self._table("road_score"), _COLUMNS),
        )  # fmt: skip

    def _table(self, metric: str) -> Any:
        rows = self.view.rows
        return rows[(rows["metric"] == metric) & (rows["probe"] == self.probe)]

    def verdicts(self) -> Figure:
        from stratascope.tasks.report.style import heatmap

        rows = self.view.metric("road_score", probe=self.probe).copy()
        rows["method"] = rows["part"].str.removeprefix("method=")
        grid, steps = grid_of(rows, "method", self.methods)
        return worded(
            _WORDS["verdicts"], self.numbers(first=f"{steps[0]:,}"), key=figure_key("verdicts", self.probe),
            title=f"ROAD score of each method over training, probe {self.probe}",
            svg=heatmap(grid, [self.name(name) for name in self.methods], [str(step) for step in steps], "ROAD score", "method", "training step"),
            run=self.view.run, probe=self.probe, table=table_of(self._table("attribution_trusted"), _COLUMNS),
        )  # fmt: skip

    def curves(self, kind: str) -> Figure:
        arrays = self.view.arrays(self.last)
        curves = {name: arrays[f"{self.probe}/{name}/{kind}"].mean(0) for name in self.methods if f"{self.probe}/{name}/{kind}" in arrays}  # fmt: skip
        middle = {name: float(values[len(SHARES) // 2]) for name, values in curves.items()}
        best = (min if kind == "deletion" else max)(middle, key=lambda name: middle[name])
        table: dict[str, list[Any]] = {"method": [], "share": [], "probability": []}
        for name, values in curves.items():
            table["method"] += [name] * len(values)
            table["share"] += list(SHARES)
            table["probability"] += [float(value) for value in values]
        numbers = self.numbers(best=title_of(best), value=f"{middle[best]:.2f}", start=f"{next(iter(curves.values()))[0]:.2f}")  # fmt: skip
        return worded(
            _WORDS[kind], numbers, key=figure_key(kind, self.probe),
            title=f"{'Blurring' if kind == 'deletion' else 'Sharpening'} the most important pixels first, step {self.last:,}, probe {self.probe}",
            svg=_share_lines(SHARES, curves, self.name, f"share of the pixels {'blurred' if kind == 'deletion' else 'made sharp'}", "probability of the answer"),
            run=self.view.run, probe=self.probe, table=table,
        )  # fmt: skip

    def shuffled(self, options: Any) -> Figure | None:
        rows = self.view.metric("shuffled_weights_similarity", probe=self.probe)
        rows = rows[rows["step"] == self.last]
        if not len(rows):
            return None
        shares = sorted({float(part.partition("shuffled=")[2]) for part in rows["part"].unique()})
        curves: dict[str, np.ndarray] = {}
        for name in self.methods:
            own = rows[rows["part"].str.startswith(f"method={name};")].set_index("part")["value"]
            if len(own) == len(shares):
                values = [float(own[f"method={name};shuffled={share:g}"]) for share in shares]
                curves[name] = np.array([1.0, *values])
        if not curves:
            return None
        ends = {name: values[-1] for name, values in curves.items() if name not in NULLS}
        most = max(ends, key=lambda name: ends[name]) if ends else next(iter(curves))
        bound = options.most_alike
        numbers = self.numbers(most=title_of(most), value=f"{curves[most][-1]:.2f}", bound=f"{bound:g}")
        labels = ["none", *("last layer" if share == 0 else f"{share:.0%}" for share in shares)]
        return worded(
            _WORDS["shuffled"], numbers, key=figure_key("shuffled", self.probe),
            title=f"What is left of the maps when weights are shuffled, step {self.last:,}, probe {self.probe}",
            svg=_share_lines(range(len(labels)), curves, self.name, "layers shuffled, from the last one on", "rank correlation", labels),
            run=self.view.run, probe=self.probe, table=table_of(rows, _COLUMNS),
        )  # fmt: skip

    def told(self, metric: str) -> Figure | None:
        from stratascope.tasks.report.marked import values_with_intervals

        values = self._values(metric)
        names = sorted(values, key=lambda name: values[name][0])
        if not names:
            return None
        told = [name for name in names if name not in NULLS] or names
        numbers = self.numbers(best=title_of(told[0]), value=f"{values[told[0]][0]:.2f}", worst=title_of(told[-1]), worst_value=f"{values[told[-1]][0]:.2f}")  # fmt: skip
        titles = {"infidelity": "What the maps do not tell of changes of the score", "max_sensitivity": "How much the maps move under tiny changes of the picture"}  # fmt: skip
        labels = {"infidelity": "share of the changes that is not told", "max_sensitivity": "largest change, as a share of the map"}  # fmt: skip
        return worded(
            _WORDS[metric], numbers, key=figure_key(metric, self.probe),
            title=f"{titles[metric]}, step {self.last:,}, probe {self.probe}",
            svg=values_with_intervals([self.name(name) for name in names], {"": [values[name] for name in names]}, labels[metric]),
            run=self.view.run, probe=self.probe, table=table_of(self._table(metric), _COLUMNS),
        )  # fmt: skip


def _share_lines(
    places: Sequence[float], curves: dict[str, np.ndarray], name: Any, label: str, value: str, ticks: Sequence[str] = ()
) -> str:  # fmt: skip
    """Lines over shares, named below; maps that know nothing are grey."""
    from stratascope.tasks.report.style import COLOURS, INK, new_axes, to_svg

    figure, axes = new_axes(height=3.9)
    markers = "os^DvPX*"
    number = 0
    for method, values in curves.items():
        null = method in NULLS
        look: dict[str, Any] = {"color": COLOURS[8], "linestyle": ":" if method == "random" else "--"} if null else {"color": COLOURS[number % 8], "marker": markers[number % 8], "linestyle": "-" if number < 8 else "-."}  # fmt: skip
        axes.plot(list(places), values, label=name(method), linewidth=1.6, markersize=3.4, **look)
        number += not null
    axes.set(xlabel=label, ylabel=value)
    if ticks:
        axes.set_xticks(list(places), list(ticks))
    figure.legend(
        loc="outside lower left", ncols=2, frameon=False, fontsize=9.5, labelcolor=INK, handletextpad=0.5,
        borderaxespad=0.0,
    )  # fmt: skip
    return to_svg(figure)


_CAUTION = "Of {count} methods {failed} failed on this network at step {last}, over {n} samples.{said}"
_WORDS: dict[str, dict[str, str]] = {
    "ranking": {
        "shows": "For every method how much more the answer suffers when the pixels that its map ranks first are removed than when those ranked last are, with 95 % intervals.",
        "reading": "0 is what a random order of the pixels gives. Whatever does not stand to the right of the random order and of the picture's edges finds nothing that those do not.",
        "caution": _CAUTION + " The best, {best}, reaches {value}; the random order {random}.",
        "audience": "For everyone who is about to believe a map.",
        "practitioner": "Use the methods on top, on this network; a method that is fine elsewhere can fail here.",
        "researcher": "ROAD: removed pixels are filled from their neighbours, which leaks less of the mask's shape than a flat colour. (least relevant first − most relevant first) / 2, mean over 20, 40, 60 and 80 %. Gradients by pixels are ranked by size, the others by sign and size.",
    },
    "verdicts": {
        "shows": "The same score of each method at every checkpoint, from step {first} to {last}.",
        "reading": "Bright cells are maps that find what the network uses there and then. At the first steps nothing is to be found, since the network knows nothing.",
        "caution": _CAUTION
        + " Cells are means over the same samples; a difference of two cells below the intervals of the ranking says nothing.",
        "audience": "For those who compare maps of different checkpoints.",
        "practitioner": "Do not read maps of steps whose column is dark.",
        "researcher": "The score is bounded by how far probabilities can fall, so it grows with the network's confidence alone; compare methods within a column.",
    },
    "deletion": {
        "shows": "The probability of the answer while a growing share of the pixels is blurred, the most important first, by each map; means over samples.",
        "reading": "A line that falls at once belongs to a map that knew where the answer came from. Grey lines are maps that know nothing.",
        "caution": _CAUTION
        + " Half blurred, {best} has the lowest probability, {value}, from {start} with the whole picture. Blurred pictures are none that the network was trained on.",
        "audience": "For readers who want to see what is taken away rather than a number.",
        "practitioner": "If all lines fall alike, the answer rests on the whole picture or on nothing in particular.",
        "researcher": "Petsiuk et al. 2018; the area below is the metric deletion_area. Gaussian blur of an eighth of the shorter side stands for nothing.",
    },
    "insertion": {
        "shows": "The probability of the answer while a growing share of a blurred picture's pixels is made sharp, the most important first; means over samples.",
        "reading": "A line that rises at once belongs to a map whose first pixels are enough for the answer.",
        "caution": _CAUTION
        + " Half sharp, {best} has the highest probability, {value}; all start at {start}, the blurred picture.",
        "audience": "For readers who want to see the test rather than its result.",
        "practitioner": "A few sharp pixels that suffice are the evidence to look at in the maps themselves.",
        "researcher": "Petsiuk et al. 2018; the area below is the metric insertion_area. A blurred start that already has the answer makes the test blunt.",
    },
    "shuffled": {
        "shows": "How alike the maps are to the real ones (Spearman correlation of what is ranked) when the weights of more and more layers are shuffled, from the last layer on.",
        "reading": "A line that stays up belongs to a method that redraws the picture whatever the network has learned. The picture's edges, which know no network, stay at 1.",
        "caution": _CAUTION
        + " {most} keeps most: {value} with all weights shuffled; above {bound} a method has failed.",
        "audience": "For those who want to know whether a map depends on the network at all.",
        "practitioner": "Do not explain a network by a method that does not notice when the network is broken.",
        "researcher": "Adebayo et al. 2018, cascading; each tensor is permuted, so scales stay. Signs count where a method has them: sizes alone follow the picture's outlines under any weights where inputs multiply them, as the paper shows.",
    },
    "infidelity": {
        "shows": "The share of the score's changes under noise on the picture that the map does not tell, up to one factor, with 95 % intervals.",
        "reading": "0 would be a map that tells every change, 1 one that tells none.",
        "caution": _CAUTION
        + " {best} leaves least untold, {value}, {worst} most, {worst_value}. Noise asks about small changes everywhere at once; the removal tests ask about large ones in some places.",
        "audience": "For people who use maps to predict what a change would do.",
        "practitioner": "Where all values are near 1, no map tells what small changes do.",
        "researcher": "Yeh et al. 2019 with Gaussian perturbations and the optimal scale: one less the uncentred squared correlation. The gradient is optimal for small noise by construction.",
    },
    "max_sensitivity": {
        "shows": "The largest change of a map when the picture changes by hardly anything, as a share of the map's size, with 95 % intervals.",
        "reading": "0 is a map that stays. Above 1 the map of a picture that looks the same is another one.",
        "caution": _CAUTION
        + " {best} moves least, {value}, {worst} most, {worst_value}. A map that knows nothing can be perfectly stable.",
        "audience": "For those who show single maps to others.",
        "practitioner": "Show the average over several slightly changed pictures where this is high.",
        "researcher": "Largest over a few uniform draws, so a lower bound of definition 3.1 of Yeh et al. 2019.",
    },
}
