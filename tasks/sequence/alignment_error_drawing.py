"""The pictures of alignment: how right it is over the training, which target places find theirs, and single samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.names import step_directory
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, table_of, worded
from stratascope.tasks.sequence.importance_note import importance_note, told_residual
from stratascope.tasks.sequence.sequence_samples import names_of, token_words
from stratascope.tasks.vision.chosen_samples import rows_of_ids

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.storage.probes import Probe
    from stratascope.tasks.contexts import View

_MOST_LINES = 6
_MOST_SAMPLES = 4
_MOST_FRAMES = 24
_COLUMNS = ("step", "layer", "part", "value", "low", "high", "n", "estimator")


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe with a reference: curves over the steps, accuracy by place of the target, and samples of the best head."""
    found = view.metric("alignment_accuracy")
    if not len(found):
        return
    lead = leading_probe(view, found["probe"].unique())
    for probe in sorted(found["probe"].unique(), key=lambda name: (name != lead, name)):
        rows = found[found["probe"] == probe]
        best = _best(rows)
        yield _curves(view, probe, rows, best, probe == lead)
        yield from _by_place(view, probe, rows, best)
        yield from _samples(view, view.probes[probe], best)


@dataclass(frozen=True)
class _Best:
    """The head that is right most often at the newest step."""

    layer: str
    part: str
    accuracy: float
    alone: bool
    """Whether its layer has no other head."""

    @property
    def title(self) -> str:
        return self.layer if self.alone else _line(self.layer, self.part)


def _best(rows: pd.DataFrame) -> _Best:
    heads = rows[rows["part"].str.startswith("head=")]
    newest = heads[heads["step"] == heads["step"].max()]
    top = newest.loc[newest["value"].idxmax()]
    alone = int((newest["layer"] == top["layer"]).sum()) == 1
    return _Best(top["layer"], top["part"], float(top["value"]), alone)


def _line(layer: str, part: str) -> str:
    head = part.removeprefix("head=")
    return f"{layer}, mean of heads" if head == "mean" else f"{layer}, head {head}"


def _curves(view: View, probe: str, rows: pd.DataFrame, best: _Best, leads: bool) -> Figure:
    from stratascope.tasks.report.style import lines

    heads = rows[rows["part"].str.startswith("head=")]
    newest = heads[heads["step"] == heads["step"].max()].sort_values("value", ascending=False, kind="stable")
    series, bands = {}, {}
    for row in newest.iloc[:_MOST_LINES].itertuples():
        own = heads[(heads["layer"] == row.layer) & (heads["part"] == row.part)]
        name = _line(row.layer, row.part) if len(newest) > 1 else "strongest place right"
        series[name], bands[name] = (list(own["step"]), list(own["value"])), (list(own["low"]), list(own["high"]))
    mass = view.metric("alignment_mass", probe=probe, layer=best.layer, part=best.part)
    name = "weight on the reference"
    series[name], bands[name] = (list(mass["step"]), list(mass["value"])), (list(mass["low"]), list(mass["high"]))
    chance = rows[rows["part"] == "null=uniform"]
    known = {
        (row.layer, int(row.part[5:])): float(row.value) for row in newest.itertuples() if row.part[5:].isdigit()
    }
    level = float(chance["value"].iloc[-1])
    first = heads[(heads["layer"] == best.layer) & (heads["part"] == best.part)].iloc[0]
    last = newest.iloc[0]
    error = view.metric("alignment_error_rate", probe=probe, layer=best.layer, part=best.part).iloc[-1]
    numbers = {
        "best": best.title, "accuracy": best.accuracy, "low": last["low"], "high": last["high"], "n": int(last["n"]),
        "samples": last["convention"], "step": plain_step(int(last["step"])), "chance": level, "start": first["value"],
        "first": plain_step(int(first["step"])), "error": float(error["value"]), "lines": min(len(newest), _MOST_LINES),
        "heads": len(newest), "mass": float(mass["value"].iloc[-1]), "importance": importance_note(view, probe, known),
    }  # fmt: skip
    return worded(
        WORDS["curves"], numbers, key=figure_key("alignment", probe), run=view.run, probe=probe, headline=leads,
        title=f"Attention against the known alignment, probe {probe}", table=table_of(rows, _COLUMNS),
        svg=lines(series, "share of target tokens", bands=bands, references={"chance": (level, np.nan, np.nan)}),
    )  # fmt: skip


def _array(view: View, step: int, *place: str) -> np.ndarray | None:
    path = join_path("runs", view.run, step_directory(step), view.analysis, *place)
    return view.store.array(path) if view.store.has_array(path) else None


def _head_place(part: str) -> int:
    """Where a head stands on the stored axis, whose last entry is the mean."""
    head = part.removeprefix("head=")
    return -1 if head == "mean" else int(head)


def _by_place(view: View, probe: str, rows: pd.DataFrame, best: _Best) -> Iterator[Figure]:
    from stratascope.tasks.report.style import heatmap

    steps = sorted({int(step) for step in rows["step"]})
    found = {step: _array(view, step, probe, best.layer, "accuracy_by_place") for step in steps}
    known = {step: values[_head_place(best.part)] for step, values in found.items() if values is not None}
    if len(known) < 2 or len({len(values) for values in known.values()}) > 1:
        return
    grid = np.stack(list(known.values()), 1).astype(float)
    places = np.flatnonzero(np.isfinite(grid).any(1))
    grid = grid[places]
    last = grid[:, -1]
    first_right = [
        next((step for step, value in zip(known, line, strict=True) if value >= 0.5), None) for line in grid
    ]
    reached = [(step, place) for step, place in zip(first_right, places, strict=True) if step is not None]
    order = "no place reaches 0.5"
    if reached:
        early, late = min(reached), max(reached)
        order = f"place {early[1]} reaches 0.5 first, at step {plain_step(early[0])}, and place {late[1]} last, at step {plain_step(late[0])}"
    numbers = {
        "best": best.title, "step": plain_step(list(known)[-1]), "low": float(np.nanmin(last)), "order": order,
        "worst": int(places[int(np.nanargmin(last))]), "places": len(places), "never": len(places) - len(reached),
    }  # fmt: skip
    yield worded(
        WORDS["places"], numbers, key=figure_key("places", probe), run=view.run, probe=probe, layer=best.layer,
        title=f"Which target places find their source, probe {probe}",
        svg=heatmap(grid, [str(place) for place in places], [plain_step(step) for step in known], "share that is right", "place in the target", "training step"),
        table={"place": places.tolist(), **{f"step {step}": grid[:, n].tolist() for n, step in enumerate(known)}},
    )  # fmt: skip


def _samples(view: View, probe: Probe, best: _Best) -> Iterator[Figure]:
    kept = {step: _array(view, step, probe.name, best.layer, "weights") for step in sorted(view.steps)}
    weights = {step: values[:_MOST_SAMPLES, _head_place(best.part)] for step, values in kept.items() if values is not None and len(values)}  # fmt: skip
    if not weights:
        return
    steps = even_choice(list(weights), _MOST_FRAMES)
    newest = steps[-1]
    ids = _array(view, newest, probe.name, "sample_id")
    reference = [_array(view, newest, probe.name, name) for name in ("alignment", "alignment_end")]
    about = view.store.array_info(join_path("runs", view.run, step_directory(newest), view.analysis, probe.name, best.layer, "weights"))[3]  # fmt: skip
    assert ids is not None
    rows = rows_of_ids(probe, tuple(ids.tolist()))
    drawn = [_sample(probe, int(row), place, about, reference, weights, steps) for place, row in enumerate(rows[: len(weights[newest])])]  # fmt: skip
    right = sum(int(sample.right[-1]) for sample in drawn)
    total = sum(sample.counted for sample in drawn)
    numbers = {
        "best": best.title, "shown": len(drawn), "right": right, "total": total, "step": plain_step(newest),
        "start": sum(int(sample.right[0]) for sample in drawn), "first": plain_step(steps[0]),
        "strongest": max(float(sample.matrices[-1].max()) for sample in drawn), "residual": told_residual(float(about["residual"])),
    }  # fmt: skip
    table = {
        "step": [step for step in steps for _ in drawn], "sample_id": [str(name) for _ in steps for name in ids[: len(drawn)]],
        "right": [int(sample.right[n]) for n in range(len(steps)) for sample in drawn],
        "with_reference": [sample.counted for _ in steps for sample in drawn],
    }  # fmt: skip
    yield worded(
        WORDS["samples"], numbers, key=figure_key("samples", probe.name), run=view.run, probe=probe.name, layer=best.layer,
        title=f"Alignment of single samples, probe {probe.name}", frames=_moving(drawn, steps), table=table,
    )  # fmt: skip


@dataclass(frozen=True)
class _Sample:
    """One sample without its padding."""

    matrices: np.ndarray
    """(step, target token, source token)."""
    targets: list[str]
    sources: list[str]
    spans: list[tuple[int, int, int]]
    """(target token, first and last source token) of each reference."""
    right: np.ndarray
    """int64 (step,): target tokens whose strongest place is right."""

    @property
    def counted(self) -> int:
        return len(self.spans)


def _sample(
    probe: Probe, row: int, place: int, about: dict[str, Any], reference: list[Any], weights: dict[int, np.ndarray],
    steps: list[int],
) -> _Sample:  # fmt: skip
    first, last = (values[place] for values in reference)
    matrices = np.stack([weights[step][place] for step in steps]).astype(np.float32)
    queries, keys = (_real(probe, about[name], row, matrices.shape[axis]) for name, axis in (("query_input", 1), ("key_input", 2)))  # fmt: skip
    at = {int(key): number for number, key in enumerate(keys)}
    spans = [(number, at[int(first[query])], at[int(last[query])]) for number, query in enumerate(queries) if first[query] >= 0]  # fmt: skip
    matrices = matrices[:, queries][:, :, keys]
    strongest = matrices.argmax(-1)
    right = np.array(
        [sum(low <= line[query] <= high for query, low, high in spans) for line in strongest], np.int64
    )
    targets = _target_words(probe, row, about["query_input"], len(first))
    sources = _words(probe, row, about["key_input"])
    return _Sample(
        matrices, [targets[query] if query < len(targets) else str(query) for query in queries],
        [sources[key] if key < len(sources) else str(key) for key in keys], spans, right,
    )  # fmt: skip


def _real(probe: Probe, name: str, row: int, count: int) -> np.ndarray:
    """int64: the real tokens of input `name`, all `count` where nothing is masked."""
    mask = probe.masks.get(name)
    real = np.ones(count, bool) if mask is None else np.asarray(mask[row : row + 1])[0]
    return np.flatnonzero(real if len(real) == count else np.ones(count, bool))


def _words(probe: Probe, row: int, name: str) -> list[str]:
    leaves = leaves_of(probe.inputs)
    if name not in leaves:
        return []
    return token_words(np.asarray(leaves[name][row : row + 1])[0], names_of(probe, name))


def _target_words(probe: Probe, row: int, name: str, count: int) -> list[str]:
    """What is said at each query: the targets where they are tokens of that number, else the input that queries are of."""
    targets = probe.targets
    if targets is not None and targets.ndim == 2 and targets.shape[1] == count and targets.dtype.kind in "iu":
        return token_words(targets[row], names_of(probe, name) or probe.class_names)
    return _words(probe, row, name)


def _moving(samples: list[_Sample], steps: list[int]) -> tuple[tuple[int, str], ...]:
    """Frames (step, svg): one matrix below the other, the reference as frames around its cells."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.patches import Rectangle

    from stratascope.tasks.report.style import COLOURS, INK, moving_frames, quiet

    heights = [0.17 * len(sample.targets) + 0.45 for sample in samples]
    canvas = Canvas(figsize=(6.4, sum(heights) + 0.8), dpi=72, layout="constrained")
    panels = np.atleast_1d(canvas.subplots(len(samples), 1, height_ratios=heights))
    images, marks = [], []
    for axes, sample in zip(panels, samples, strict=True):
        quiet(axes)
        axes.grid(False)
        images.append(axes.imshow(sample.matrices[-1], cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="none"))  # fmt: skip
        size = min(9.5, 420 / max(1, len(sample.sources)))
        axes.set_yticks(range(len(sample.targets)), [_visible(word) for word in sample.targets], fontsize=9)
        axes.set_xticks(range(len(sample.sources)), [_visible(word) for word in sample.sources], fontsize=size)
        for name, word in zip(axes.get_xticklabels(), sample.sources, strict=True):
            name.set_rotation(90 if len(word) > 2 else 0)
        axes.set_ylabel("target")
        for query, low, high in sample.spans:
            box = Rectangle((low - 0.5, query - 0.5), high - low + 1, 1, fill=False, edgecolor=COLOURS[4], linewidth=1.3)  # fmt: skip
            marks.append(axes.add_patch(box))
    panels[-1].set_xlabel("source")
    bar = canvas.colorbar(images[0], ax=list(panels), location="top", shrink=0.5, aspect=28, pad=0.02)
    bar.set_label("attention weight; framed: the reference", color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)
    bar.outline.set_visible(False)

    def update(place: int) -> None:
        for image, sample in zip(images, samples, strict=True):
            image.set_data(sample.matrices[place])

    return moving_frames(canvas, steps, [*images, *marks], update)


def _visible(word: str) -> str:
    """A blank is written as an open box."""
    from stratascope.tasks.report.text import shortened

    return "␣" if word == " " else shortened(word, 12)


WORDS: dict[str, dict[str, str]] = {
    "curves": {
        "shows": "How often the strongest source place of a target token is the right one, over the training, by head, and how much weight of the best head lies on the right places.",
        "reading": "A line that leaves the dashed one has begun to look where the token comes from. Weight may stay below the share that is right: a head can point well and still spread.",
        "caution": "{best} is right for {accuracy:.3f} of {n} target tokens ({samples}, 95 % interval {low:.3f} to {high:.3f}) at step {step}, and was for {start:.3f} at step {first}; chance is {chance:.3f}. Its alignment error rate is {error:.3f}, the weight on the reference {mass:.3f}. {lines} of {heads} lines are drawn. {importance}",
        "audience": "For everyone who asks whether attention can be read as an alignment here.",
        "practitioner": "Above 0.9, weights may serve to point users at the source of an answer; near chance they must not.",
        "researcher": "Argmax over real source places, teacher forced; a query is the step that says the token, so a network that attends one step early or late counts as wrong throughout.",
    },
    "places": {
        "shows": "For each place of the target, how often the strongest source place is right, over the training ({best}).",
        "reading": "Rows brighten in the order in which the network learns where each part of the target comes from.",
        "caution": "Of {places} places with a reference, {order}; {never} never do. At step {step} the worst is place {worst} with {low:.2f}. A place can be right by chance where the reference is long.",
        "audience": "For people who want to know what is learned first.",
        "practitioner": "A place that stays dark although answers are right is answered without looking: the network infers it from elsewhere.",
        "researcher": "Places whose tokens have no reference are left out, as are samples without one there.",
    },
    "samples": {
        "shows": "The weights of {best} for {shown} samples: rows are target tokens as they are said, columns source tokens, frames mark where each token comes from.",
        "reading": "Yellow inside the frames is an alignment that holds. Move the slider to see it come about; a whole yellow column is a place that all target tokens look at.",
        "caution": "In these samples {right} of {total} framed tokens are right at step {step}, {start} were at step {first}. The strongest weight shown is {strongest:.2f}. The captured weights reproduce the layer's output {residual}.",
        "audience": "For readers who want to see the numbers at work.",
        "practitioner": "Look at a wrong token's row: weight on the neighbour of its frame is a small slip, weight on the end mark means that it was not looked up.",
        "researcher": "The shown samples are chosen by their ids alone. Stored in half precision; one scale from 0 to 1.",
    },
}  # fmt: skip
