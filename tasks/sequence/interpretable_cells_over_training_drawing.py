"""The pictures of how cells came to be: the followed units' scores, and the best unit's at every checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import figure_key, leading_probe, worded
from stratascope.tasks.sequence.interpretable_cells_words import WORDS

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

_LINES = 10


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe and input: curves of the followed units, and a map of the best unit's score by feature and step."""
    rows = view.metric("followed_cell_score")
    if not len(rows):
        return
    arrays = view.arrays()
    lead = leading_probe(view, rows["probe"].unique())
    for path in sorted((path for path in arrays if path.endswith("/followed")), key=lambda name: (not name.startswith(f"{lead}/"), name)):  # fmt: skip
        probe, name, _ = path.rsplit("/", 2)
        parts = (encode_path_part(part) for part in (probe, name, "followed"))
        facts = view.store.array_info(join_path("series", view.run, view.analysis, *parts))[3]
        steps = arrays[f"{probe}/{name}/step"]
        yield _growth(view, probe, name, steps, arrays[path], facts, headline=probe == lead)
        yield _best(
            view, probe, name, steps, arrays[f"{probe}/{name}/best"], arrays[f"{probe}/{name}/best_unit"], facts
        )


def _growth(
    view: View, probe: str, name: str, steps: np.ndarray, followed: np.ndarray, facts: Any, headline: bool
) -> Figure:
    from stratascope.tasks.report.style import lines

    order = np.argsort(-np.nan_to_num(followed[-1], nan=-2), kind="stable")[:_LINES]
    series = {facts["titles"][place]: (steps.tolist(), followed[:, place].tolist()) for place in order}
    formed = view.metric("cell_formation_step", probe=probe)
    late = formed.loc[formed["value"].idxmax()] if len(formed) else None
    early = int((formed["value"] <= steps[0]).sum()) if len(formed) else 0
    forming = "No cell is sure enough at the last step to have a step of formation."
    if late is not None:
        title = _title_of(late["part"], facts)
        forming = f"{early} of {len(formed)} tracked cells were there at the first checkpoint already; the last to form is that of “{title}”, at step {plain_step(late['value'])}."
    gaps = np.diff(steps)
    words = {
        "first_line": f"At step {plain_step(steps[0])} these units' scores reach from {np.nanmin(followed[0]):.2f} to {np.nanmax(followed[0]):.2f}.",
        "forming": forming, "spread": f"Between two checkpoints lie up to {plain_step(gaps.max())} steps, within which nothing is known.",
    }  # fmt: skip
    table: dict[str, list[Any]] = {"step": steps.tolist()}
    table |= {feature: followed[:, number].tolist() for number, feature in enumerate(facts["features"])}
    return worded(
        WORDS["growth"], words, key=figure_key("growth", probe, name), run=view.run, probe=probe, headline=headline,
        title=f"When the cells formed, probe {probe}", svg=lines(series, "correlation with its feature", height=3.6),
        table=table,
    )  # fmt: skip


def _title_of(part: str, facts: Any) -> str:
    feature = part.split(";")[0].removeprefix("feature=")
    return str(facts["titles"][facts["features"].index(feature)])


def _best(
    view: View, probe: str, name: str, steps: np.ndarray, best: np.ndarray, units: np.ndarray, facts: Any
) -> Figure:
    from stratascope.tasks.report.style import heatmap

    order = np.argsort(-np.nan_to_num(best[-1], nan=-2), kind="stable")
    titles = [facts["titles"][place] for place in order]
    start, end = int(np.nanargmax(np.nan_to_num(best[0], nan=-2))), int(order[0])
    words = {
        "first": plain_step(steps[0]), "start": best[0, start], "start_title": facts["titles"][start],
        "last": plain_step(steps[-1]), "end": best[-1, end], "end_title": facts["titles"][end],
        "changed": int((units[-1] != units[-2]).sum()) if len(units) > 1 else 0, "count": len(order),
    }  # fmt: skip
    svg = heatmap(best.T[order], titles, [plain_step(step) for step in steps], "correlation of the best unit", "feature", "training step")  # fmt: skip
    table: dict[str, list[Any]] = {"step": steps.tolist()}
    table |= {feature: best[:, number].tolist() for number, feature in enumerate(facts["features"])}
    return worded(
        WORDS["best"], words, key=figure_key("best", probe, name), run=view.run, probe=probe, svg=svg,
        title=f"The best unit for each feature at every checkpoint, probe {probe}", table=table,
    )  # fmt: skip
