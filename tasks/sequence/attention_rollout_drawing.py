"""The pictures of rollout and flow: over tokens or on the picture, at every depth, and how far they still tell queries apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.names import step_directory
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step, shortened
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, table_of, worded
from stratascope.tasks.sequence.attention_rollout_words import WORDS as _WORDS
from stratascope.tasks.sequence.importance_note import importance_note, told_residual
from stratascope.tasks.sequence.sequence_samples import names_of, token_words
from stratascope.tasks.vision.chosen_samples import rows_of_ids

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

_FRAMES = 24
_MOST_DEPTHS = 6
_MOST_MATRICES = 4
_NAMED_TOKENS = 24
_COLUMNS = ("step", "layer", "part", "value", "low", "high", "n")


@dataclass(frozen=True)
class _Filed:
    """What is filed of a probe at the steps that are drawn."""

    probe: Probe
    steps: list[int]
    rollouts: np.ndarray
    """(step, sample, depth, query, key)."""
    flows: np.ndarray | None
    """(step, sample, query, key)."""
    about: dict[str, Any]
    rows: np.ndarray
    """Where in the probe the samples stand."""
    flow_depth: int

    @property
    def depths(self) -> list[int]:
        """Places of the depths that are drawn, the first and the last among them."""
        return even_choice(range(self.rollouts.shape[2]), _MOST_DEPTHS)


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe the rollout at every depth, on the picture where there is one; flow; and the spread of the rows."""
    found = view.metric("rollout_row_spread")
    if not len(found):
        return
    lead = leading_probe(view, found["probe"].unique())
    for name in sorted(found["probe"].unique(), key=lambda item: (item != lead, item)):
        filed = _filed(view, view.probes[name])
        if filed is not None:
            if "grid" in filed.about and view.show_inputs:
                yield from _on_pictures(view, filed, name == lead)
            elif "grid" not in filed.about:
                yield _on_tokens(view, filed, name == lead)
            if filed.flows is not None:
                yield from _flow(view, filed)
        yield _washed_out(view, name)


def _filed(view: View, probe: Probe) -> _Filed | None:
    def place(step: int, name: str) -> str:
        return join_path("runs", view.run, step_directory(step), view.analysis, probe.name, name)

    known = [step for step in sorted(view.steps) if view.store.has_array(place(step, "rollout"))]
    if not known:
        return None
    newest = view.store.array_info(place(known[-1], "rollout"))
    known = [step for step in known if view.store.array_info(place(step, "rollout"))[1] == newest[1]]
    steps = even_choice(known, _FRAMES)
    flows, depth = None, 0
    if all(view.store.has_array(place(step, "flow")) for step in steps):
        flows = np.stack([view.store.array(place(step, "flow")) for step in steps])
        depth = int(view.store.array_info(place(steps[-1], "flow"))[3]["depth"])
    ids = view.store.array(place(known[-1], "sample_id"))
    rollouts = np.stack([view.store.array(place(step, "rollout")) for step in steps])
    return _Filed(probe, steps, rollouts, flows, newest[3], rows_of_ids(probe, tuple(ids.tolist())), depth)


def _note(view: View, filed: _Filed) -> str:
    return importance_note(view, filed.probe.name, {})


# -- on pictures ---------------------------------------------------------------------------------------------


def patch_shares(rollouts: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """(…, row, column): what each patch has of the first token's row of `rollouts` (…, query, key), its share of all patches; the
    mean over all patches' rows where no token stands before them. `grid` is (leading, rows, columns, pixels)."""
    leading, rows, columns, _ = grid
    line = rollouts[..., 0, leading:] if leading else rollouts.mean(-2)
    shares = line / np.maximum(line.sum(-1, keepdims=True), 1e-30)
    return shares.reshape(*line.shape[:-1], rows, columns)


def _on_pictures(view: View, filed: _Filed, leads: bool) -> Iterator[Figure]:
    from stratascope.tasks.report.mosaic import pictures_of
    from stratascope.tasks.vision.map_drawing import scale_bound, shown_inputs

    grid = filed.about["grid"]
    pictures = pictures_of(filed.probe, filed.rows)
    if pictures is None:
        inputs = np.concatenate([np.asarray(filed.probe.inputs_at(slice(int(row), int(row) + 1))) for row in filed.rows])  # fmt: skip
        pictures = shown_inputs(inputs)
    shares = patch_shares(filed.rollouts[:, :_MOST_MATRICES, filed.depths].astype(np.float64), grid)
    bound = scale_bound(shares)
    last, patches = shares[-1, :, -1], grid[1] * grid[2]
    numbers = {
        "shown": len(last), "patches": patches, "alike": 1 / patches, "step": plain_step(filed.steps[-1]),
        "strongest": float(last.max()), "top": float(np.sort(last.reshape(len(last), -1), 1)[:, -max(1, patches // 4):].sum(1).mean()),
        "whose": "the class token" if grid[0] else "all patches", "depth": filed.rollouts.shape[2],
        "layers": len(filed.depths), "residual": told_residual(filed.about["residual"]), "importance": _note(view, filed),
    }  # fmt: skip
    yield worded(
        _WORDS["pictures"], numbers, key=figure_key("rollout", filed.probe.name), run=view.run, probe=filed.probe.name,
        headline=leads, title=f"Attention rollout on the picture, probe {filed.probe.name}",
        frames=_picture_frames(filed, pictures, shares, bound), table=_share_table(filed, shares),
    )  # fmt: skip


def _picture_frames(
    filed: _Filed, pictures: list[np.ndarray], shares: np.ndarray, bound: float
) -> tuple[tuple[int, str], ...]:
    from stratascope.tasks.vision.map_drawing import ColourScale, overlaid
    from stratascope.tasks.vision.picture_sheet import SHEET_WIDTH, PictureSheet, fitting

    depths, people = filed.depths, shares.shape[1]
    gap, head, left = 0.06, 0.2, 0.75
    side = min(1.1, (SHEET_WIDTH - left) / (len(depths) + 1) - gap)
    height, width = pictures[0].shape[:2]
    tall = side * height / width
    sheet = PictureSheet(head + people * (tall + gap) + 0.7)
    moving: list[tuple[int, int, int]] = []
    for column, title in enumerate(["input", *(f"{depth + 1} layer{'s' if depth else ''}" for depth in depths)]):
        sheet.words(left + column * (side + gap), 0.02, title, size=9.5, bold=True)
    patch = np.ones((height // shares.shape[-2], width // shares.shape[-1]))

    def picture(step: int, sample: int, depth: int) -> np.ndarray:
        return overlaid(pictures[sample], np.kron(shares[step, sample, depth], patch), bound)

    for sample in range(people):
        top = head + sample * (tall + gap)
        name, size = fitting(str(filed.probe.sample_id[filed.rows[sample]]), left - 0.12, 9)
        sheet.words(left - 0.08, top + tall / 2 - 0.06, name, size=size, align="right")
        sheet.picture(pictures[sample], left, top, side, tall)
        for place in range(len(depths)):
            number = sheet.picture(picture(-1, sample, place), left + (place + 1) * (side + gap), top, side, tall)
            moving.append((number, sample, place))
    sheet.scale(
        ColourScale("share of the patches' rollout", bound, signed=False, heat=True), left, sheet.height - 0.66
    )
    frames = [{number: picture(step, sample, place) for number, sample, place in moving} for step in range(len(filed.steps))]  # fmt: skip
    return sheet.frames(filed.steps, frames)


def _share_table(filed: _Filed, shares: np.ndarray) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {name: [] for name in ("step", "sample_id", "layers", "largest_share", "patch")}
    for (number, step), sample in (
        (pair, one) for pair in enumerate(filed.steps) for one in range(shares.shape[1])
    ):
        for place, depth in enumerate(filed.depths):
            flat = shares[number, sample, place].ravel()
            values = (step, str(filed.probe.sample_id[filed.rows[sample]]), depth + 1, float(flat.max()), int(flat.argmax()))  # fmt: skip
            for column, value in zip(table, values, strict=True):
                table[column].append(value)
    return table


# -- on tokens -----------------------------------------------------------------------------------------------


def _tokens_of(filed: _Filed, sample: int) -> tuple[np.ndarray, list[str]]:
    """Places of the real tokens of a shown sample, and what they are called."""
    name, row = filed.about["input"], int(filed.rows[sample])
    count = filed.rollouts.shape[-1]
    mask = filed.probe.masks.get(name)
    real = np.ones(count, bool) if mask is None else np.asarray(mask[row : row + 1])[0]
    places = np.flatnonzero(real if len(real) == count else np.ones(count, bool))
    leaves = leaves_of(filed.probe.inputs)
    words = token_words(np.asarray(leaves[name][row : row + 1])[0], names_of(filed.probe, name)) if name in leaves else []  # fmt: skip
    return places, [shortened(words[place], 8) if len(words) == count else str(place) for place in places]


def _on_tokens(view: View, filed: _Filed, leads: bool) -> Figure:
    depths = even_choice(range(filed.rollouts.shape[2]), _MOST_MATRICES)
    places, words = _tokens_of(filed, 0)
    matrices = filed.rollouts[:, 0][:, depths][..., places[:, None], places].astype(np.float64)
    last = matrices[-1, -1]
    numbers = {
        "sample": str(filed.probe.sample_id[filed.rows[0]]), "depth": filed.rollouts.shape[2], "tokens": len(places),
        "step": plain_step(filed.steps[-1]), "own": float(np.diagonal(last).mean()), "first": float(last[:, 0].mean()),
        "alike": 1 / max(1, len(places)), "residual": told_residual(filed.about["residual"]), "importance": _note(view, filed),
    }  # fmt: skip
    titles = [f"{depth + 1} layer{'s' if depth else ''}" for depth in depths]
    return worded(
        _WORDS["tokens"], numbers, key=figure_key("rollout", filed.probe.name), run=view.run, probe=filed.probe.name,
        headline=leads, title=f"Attention rollout over tokens, probe {filed.probe.name}",
        frames=_matrix_frames([matrices[:, place] for place in range(len(depths))], titles, words, filed.steps, "rollout"),
        table={
            "token": words, "own_share": np.diagonal(last).tolist(), "share_of_first_token": last[:, 0].tolist(),
            "strongest_token": [words[key] for key in last.argmax(1)],
        },
    )  # fmt: skip


def _flow(view: View, filed: _Filed) -> Iterator[Figure]:
    assert filed.flows is not None
    known = [
        sample for sample in range(filed.flows.shape[1]) if np.isfinite(filed.flows[:, sample]).any((1, 2)).all()
    ]
    if not known:
        return
    places, words = _tokens_of(filed, known[0])
    inside = (..., places[:, None], places)
    flow = filed.flows[:, known[0]][inside].astype(np.float64)
    rolled = filed.rollouts[:, known[0], filed.flow_depth - 1][inside].astype(np.float64)
    spread = view.metric("flow_row_spread", probe=filed.probe.name)
    spread = spread[spread["step"] == spread["step"].max()]
    beside = view.metric("rollout_row_spread", probe=filed.probe.name, part=f"depth={filed.flow_depth}")
    value = float(spread["value"].iloc[0])
    numbers = {
        "sample": str(filed.probe.sample_id[filed.rows[known[0]]]), "depth": filed.flow_depth, "spread": value,
        "beside": float(beside[beside["step"] == beside["step"].max()]["value"].iloc[0]), "n": int(spread["n"].iloc[0]),
        "step": plain_step(filed.steps[-1]), "gap": float((flow[-1] - rolled[-1]).min()),
        "verdict": "It has saturated: every query gets the same, and the picture says nothing about single queries"
        if value < 0.01 else "It still tells queries apart",
    }  # fmt: skip
    titles = [f"flow, {filed.flow_depth} layers", f"rollout, {filed.flow_depth} layers"]
    yield worded(
        _WORDS["flow"], numbers, key=figure_key("flow", filed.probe.name), run=view.run, probe=filed.probe.name,
        title=f"Attention flow beside rollout, probe {filed.probe.name}",
        frames=_matrix_frames([flow, rolled], titles, words, filed.steps, "share of a token that can arrive"),
        table={"query": [word for word in words for _ in words], "key": words * len(words), "flow": flow[-1].ravel().tolist(), "rollout": rolled[-1].ravel().tolist()},
    )  # fmt: skip


def _matrix_frames(
    matrices: list[np.ndarray], titles: list[str], words: list[str], steps: list[int], label: str
) -> tuple[tuple[int, str], ...]:
    """Frames (step, svg) of matrices (step, query, key) in two columns, all on one scale."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    from stratascope.tasks.report.style import INK, moving_frames, quiet

    top = float(np.quantile(np.concatenate([item.ravel() for item in matrices]), 0.99)) or 1.0
    rows = -(-len(matrices) // 2)
    canvas = Canvas(figsize=(6.4, rows * 3.3 + 0.9), dpi=72, layout="constrained")
    panels = canvas.subplots(rows, 2, squeeze=False).ravel()
    images = []
    for place, axes in enumerate(panels):
        if place >= len(matrices):
            axes.axis("off")
            continue
        quiet(axes)
        axes.grid(False)
        images.append(
            axes.imshow(matrices[place][-1], cmap="cividis", vmin=0, vmax=top, interpolation="none", aspect="auto")
        )
        axes.set_title(titles[place], fontsize=10, color=INK, loc="left")
        axes.set(xlabel="input token" if place >= len(matrices) - 2 else "", ylabel="token of the layer" if place % 2 == 0 else "")  # fmt: skip
        if len(words) <= _NAMED_TOKENS:
            size = 9 if len(words) <= 14 else 7.5
            axes.set_xticks(
                range(len(words)),
                words,
                fontsize=size,
                rotation=90 if len(words) * max(map(len, words)) > 28 else 0,
            )
            axes.set_yticks(range(len(words)), words, fontsize=size)
        else:
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(5, integer=True))
    bar = canvas.colorbar(
        images[0], ax=list(panels), location="top", shrink=0.5, aspect=28, pad=0.02, extend="max"
    )
    bar.set_label(label, color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)
    bar.outline.set_visible(False)

    def update(place: int) -> None:
        for image, item in zip(images, matrices, strict=True):
            image.set_data(item[place])

    return moving_frames(canvas, steps, images, update)


# -- how much is left ----------------------------------------------------------------------------------------


def _washed_out(view: View, probe: str) -> Figure:
    rows = view.metric("rollout_row_spread", probe=probe)
    rows = rows.assign(depth=rows["part"].str.removeprefix("depth=").astype(int)).sort_values(["step", "depth"])
    steps = even_choice(sorted({int(step) for step in rows["step"]}), 5)
    newest = rows[rows["step"] == steps[-1]]
    first, last = float(newest["value"].iloc[0]), float(newest["value"].iloc[-1])
    numbers = {
        "first": first, "last": last, "depth": int(newest["depth"].iloc[-1]), "step": plain_step(steps[-1]),
        "n": int(newest["n"].max()), "left": f"{last / first:.0%}" if first > 0 else "nothing", "convention": newest["convention"].iloc[0],
    }  # fmt: skip
    return worded(
        _WORDS["spread"], numbers, key=figure_key("spread", probe), run=view.run, probe=probe,
        title=f"How far rollout tells queries apart, probe {probe}",
        svg=_spread_lines({step: rows[rows["step"] == step] for step in steps}), table=table_of(rows, _COLUMNS),
    )  # fmt: skip


def _spread_lines(rows: dict[int, Any]) -> str:
    from matplotlib.ticker import MaxNLocator

    from stratascope.tasks.report.style import COLOURS, INK, new_axes, to_svg

    figure, axes = new_axes(width=6.4)
    for number, (step, own) in enumerate(rows.items()):
        axes.plot(own["depth"], own["value"], "osD^v"[number], linestyle=("-", "--", ":", "-.", "-")[number], color=COLOURS[number], linewidth=1.7, markersize=5, label=f"step {plain_step(step)}")  # fmt: skip
    axes.set(xlabel="layers multiplied up", ylabel="spread of the rows", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9.5, labelcolor=INK)
    return to_svg(figure)
