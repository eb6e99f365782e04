"""The charts of class activation maps: what the score is made of, confidence kept, agreement, steadiness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, grid_of, lines_by, table_of, worded
from stratascope.tasks.vision.class_activation_methods import METHODS, REFERENCE
from stratascope.tasks.vision.class_activation_views import ProbeView
from stratascope.tasks.vision.class_activation_words import WORDS
from stratascope.tasks.vision.map_similarity import rank_correlations

_COLUMNS = ("step", "probe", "layer", "part", "value", "n", "convention")
_NULLS = ("random_cam", "edges")
_MOST_STEPS = 12


def method_title(method: str) -> str:
    """The name of a method for people."""
    return METHODS[method].title if method in METHODS else method


def terms_of_scores(shown: ProbeView) -> Iterator[Figure]:
    """Which share of the sizes of FullGrad's terms the picture and each layer's biases have, by step."""
    from stratascope.tasks.report.style import heatmap

    found = shown.stacked("@full_grad/terms", even_choice(shown.all_steps, _MOST_STEPS))
    if found is None:
        return
    steps, values = found
    names = shown.texts(steps[-1], "@full_grad/term")
    sizes = np.abs(values).mean(1, dtype=np.float64)
    shares = (sizes / np.where(sizes.sum(1, keepdims=True) > 0, sizes.sum(1, keepdims=True), 1)).T
    gaps = shown.view.metric("cam_completeness_gap", probe=shown.probe)
    titles = ["picture" if name == "@input" else name for name in names]
    largest = int(shares[:, -1].argmax())
    numbers = {
        "step": plain_step(steps[-1]), "start": plain_step(steps[0]), "n": values.shape[1], "largest": titles[largest],
        "share": f"{shares[largest, -1]:.0%}", "picture": f"{shares[0, -1]:.0%}", "picture_start": f"{shares[0, 0]:.0%}",
        "gap": f"{float(gaps['value'].max()):.2g}" if len(gaps) else "not known",
    }  # fmt: skip
    yield worded(
        WORDS["terms"], numbers, key=figure_key("terms", shown.probe),
        title=f"What the score is made of, probe {shown.probe}", run=shown.view.run, probe=shown.probe,
        svg=heatmap(shares, titles, [plain_step(step) for step in steps], "share of all sizes", "picture and biases", "training step"),
        table={"step": np.repeat(steps, len(names)).tolist(), "term": names * len(steps), "share": shares.T.ravel().tolist(), "mean_size": sizes.ravel().tolist()},
    )  # fmt: skip


def _by_method_rows(view: View, metric: str, probe: str, layer: str) -> tuple[Any, dict[str, str]]:
    """Rows of one metric with a column `method`, and the titles of the methods in the order of the table of methods."""
    rows = view.metric(metric, probe=probe, layer=layer)
    rows = rows.assign(method=[method_title(part.removeprefix("method=")) for part in rows["part"]])
    present = set(rows["method"])
    return rows, {name: method_title(name) for name in METHODS if method_title(name) in present}


def confidence_lines(view: View, probe: str, layer: str) -> Iterator[Figure]:
    """Confidence lost under each method's maps of one layer over the steps, beside the two nulls."""
    from stratascope.tasks.report.style import lines

    rows, titles = _by_method_rows(view, "cam_confidence_drop", probe, layer)
    if not len(rows):
        return
    newest = rows[rows["step"] == rows["step"].max()].set_index("method")["value"]
    null = {name: float(newest[name]) for name in map(method_title, _NULLS) if name in newest.index}
    real = newest.drop(list(null))
    if not len(real):
        return
    nulls = [f"{name} {value:.2f}" for name, value in null.items()]
    best_null = min(null.values(), default=np.inf)
    worse = [str(name) for name in real.index if real[name] >= best_null]
    numbers = {
        "layer": layer, "step": plain_step(int(rows["step"].max())), "n": int(rows["n"].max()),
        "best": str(real.idxmin()), "least": f"{real.min():.2f}",
        "nulls": " and ".join(nulls) or "nulls were not asked for",
        "worse": f"not better than the best of these: {', '.join(worse)}" if worse else "every method is better than these" if nulls else "so nothing says whether that is good",
    }  # fmt: skip
    series, _ = lines_by(rows, "method", list(titles.values()))
    yield worded(
        WORDS["confidence"], numbers, key=figure_key("confidence", probe, layer),
        title=f"Confidence lost when only the marked places are kept, {layer}, probe {probe}", run=view.run, layer=layer,
        probe=probe, svg=lines(series, "share of the probability lost"), table=table_of(rows, _COLUMNS),
    )  # fmt: skip


def agreement_map(view: View, probe: str, layer: str) -> Iterator[Figure]:
    """How far each method's maps of one layer agree with HiResCAM's, by method and step."""
    from stratascope.tasks.report.style import heatmap

    rows, titles = _by_method_rows(view, "cam_agreement", probe, layer)
    if not len(rows):
        return
    names = list(titles.values())
    grid, steps = grid_of(rows, "method", names)
    last = grid[:, -1]
    if not np.isfinite(last).any():
        return
    high, low = int(np.nanargmax(last)), int(np.nanargmin(last))
    numbers = {
        "layer": layer, "step": plain_step(steps[-1]), "high": names[high], "high_value": f"{last[high]:.2f}",
        "low": names[low], "low_value": f"{last[low]:.2f}", "n": int(rows["n"].max()), "reference": method_title(REFERENCE),
    }  # fmt: skip
    yield worded(
        WORDS["agreement"], numbers, key=figure_key("agreement", probe, layer),
        title=f"How far methods agree with {method_title(REFERENCE)} in {layer}, probe {probe}", run=view.run, layer=layer,
        probe=probe, table=table_of(rows, _COLUMNS),
        svg=heatmap(grid, names, [plain_step(step) for step in steps], "rank correlation", "method", "training step"),
    )  # fmt: skip


def change_lines(shown: ProbeView, layer: str) -> Iterator[Figure]:
    """Similarity of each method's maps with those of the checkpoint before, over all samples; computed from the stored maps."""
    from stratascope.tasks.report.style import lines

    series: dict[str, tuple[list[int], list[float]]] = {}
    table: dict[str, list[Any]] = {name: [] for name in ("step", "method", "rank_correlation", "n")}
    before: dict[str, np.ndarray] = {}
    for step in shown.steps_of(layer):
        now = shown.every_map(layer, step)
        for name, maps in now.items():
            found = rank_correlations(before[name], maps) if name in before and before[name].shape == maps.shape else np.empty(0)  # fmt: skip
            found = found[np.isfinite(found)]
            if name != "edges" and len(found):
                points = series.setdefault(method_title(name), ([], []))
                points[0].append(step)
                points[1].append(float(found.mean()))
                for key, entry in zip(table, (step, name, float(found.mean()), len(found)), strict=True):
                    table[key].append(entry)
        before = now
    if not series or max(len(steps) for steps, _ in series.values()) < 2:
        return
    last = {name: values[-1] for name, (_, values) in series.items()}
    low = min(last, key=lambda name: last[name])
    numbers = {
        "layer": layer, "step": plain_step(max(table["step"])), "low": low, "low_value": f"{last[low]:.2f}",
        "high": max(last, key=lambda name: last[name]), "high_value": f"{max(last.values()):.2f}",
        "n": max(table["n"]),
    }  # fmt: skip
    yield worded(
        WORDS["change"], numbers, key=figure_key("change", shown.probe, layer),
        title=f"How much maps stay from checkpoint to checkpoint in {layer}, probe {shown.probe}", run=shown.view.run,
        layer=layer, probe=shown.probe, svg=lines(series, "rank correlation"), table=table,
    )  # fmt: skip
