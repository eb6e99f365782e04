"""The layers that are followed over the training as drawings need them, and their strongest heads' weights over the steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, worded
from stratascope.tasks.sequence.attention_over_training_words import WORDS as _WORDS
from stratascope.tasks.sequence.importance_note import importance_note

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

_QUANTILE = 0.995


@dataclass(frozen=True)
class DrawnLayer:
    """What is filed of one layer."""

    name: str
    title: str
    steps: list[int]
    scores: np.ndarray
    """(step, score, head)."""
    names: list[str]
    change: np.ndarray | None
    weights: np.ndarray | None
    about: dict[str, Any]

    def head(self, number: int) -> str:
        return f"{self.title}, head {number}"


def final_score(layer: DrawnLayer, score: str, head: int) -> float:
    value = float(layer.scores[-1, layer.names.index(score), head])
    return value if np.isfinite(value) else -1.0


def weight_figures(view: View, probe: str, layers: list[DrawnLayer], options: Any) -> Iterator[Figure]:
    """The weights of the heads that score highest at the end, behind a slider over the steps."""
    chosen = []
    for layer in layers:
        if layer.weights is not None:
            finals = [max((final_score(layer, name, head) for name in layer.names if name.endswith("_score")), default=-1.0) for head in layer.about["heads"]]  # fmt: skip
            chosen += [(-final, layer, head, place) for place, (final, head) in enumerate(zip(finals, layer.about["heads"], strict=True))]  # fmt: skip
    if not chosen:
        return
    chosen.sort(key=lambda one: (one[0], one[1].name, one[2]))
    common = sorted(set.intersection(*(set(layer.steps) for _, layer, _, _ in chosen)))
    steps = even_choice(common, options.frames)
    pictures = [
        np.stack([layer.weights[layer.steps.index(step), place] for step in steps]).astype(np.float32)  # type: ignore[index]
        for _, layer, _, place in chosen
    ]
    names = [f"{layer.head(head)}, {-final:.2f} at the end" for final, layer, head, _ in chosen]
    sizes = [(layer.about["queries"], layer.about["keys"]) for _, layer, _, _ in chosen]
    top = float(np.quantile(np.concatenate([item[item > 0] for item in pictures]), _QUANTILE))
    means = all(layer.about["of"] == "mean_weights" for _, layer, _, _ in chosen)
    blocks = any(size != item.shape[1:] for size, item in zip(sizes, pictures, strict=True))
    numbers = {
        "of": "mean over the samples" if means else "those of the first shown sample, padding included",
        "step": plain_step(steps[-1]), "strongest": float(max(item[-1].max() for item in pictures)),
        "alike": 1 / max(keys for _, keys in sizes), "quantile": f"{_QUANTILE:g}",
        "blocks": " A cell stands for a block of neighbours." if blocks else "",
        "importance": importance_note(view, probe, {(layer.name, head): -final for final, layer, head, _ in chosen}),
    }  # fmt: skip
    table = {
        "step": [step for step in steps for _ in chosen], "head": [name for _ in steps for name in names],
        "largest_weight": [float(item[place].max()) for place in range(len(steps)) for item in pictures],
    }  # fmt: skip
    yield worded(
        _WORDS["weights"], numbers, key=figure_key("weights", probe), run=view.run, probe=probe,
        title=f"Where the heads with the highest scores look, probe {probe}",
        frames=_moving_weights(pictures, names, sizes, steps, top), table=table,
    )  # fmt: skip


def _moving_weights(
    pictures: list[np.ndarray], names: list[str], sizes: list[tuple[int, int]], steps: list[int], top: float
) -> tuple[tuple[int, str], ...]:
    """Frames (step, svg) of matrices (step, query, key), all on one scale from 0 to `top`."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    from stratascope.tasks.report.style import INK, moving_frames, quiet
    from stratascope.tasks.report.text import shortened

    columns = 2 if len(pictures) <= 4 else 3
    rows = -(-len(pictures) // columns)
    width = 6.4
    tall = max(queries / keys for queries, keys in sizes)
    canvas = Canvas(figsize=(width, rows * (width / columns * min(1.3, max(0.5, tall)) * 0.92) + 0.9), dpi=72, layout="constrained")  # fmt: skip
    panels = np.atleast_1d(canvas.subplots(rows, columns, squeeze=False)).ravel()
    images = []
    for place, axes in enumerate(panels):
        if place >= len(pictures):
            axes.axis("off")
            continue
        quiet(axes)
        axes.grid(False)
        queries, keys = sizes[place]
        image = axes.imshow(
            pictures[place][-1], cmap="cividis", vmin=0, vmax=top or 1.0, interpolation="none", aspect="auto",
            extent=(-0.5, keys - 0.5, queries - 0.5, -0.5),
        )  # fmt: skip
        images.append(image)
        axes.set_title(shortened(names[place], 40 if columns == 2 else 27), fontsize=9, color=INK, loc="left")
        axes.set(xlabel="key (place in the sequence)" if place >= len(pictures) - columns else "", ylabel="query" if place % columns == 0 else "")  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
    bar = canvas.colorbar(
        images[0], ax=list(panels), location="top", shrink=0.5, aspect=28, pad=0.02, extend="max"
    )
    bar.set_label("attention weight", color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)
    bar.outline.set_visible(False)

    def update(place: int) -> None:
        for image, item in zip(images, pictures, strict=True):
            image.set_data(item[place])

    return moving_frames(canvas, steps, images, update)
