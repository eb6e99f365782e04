"""The picture of errors over training: bands that add up to the error rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import figure_key, leading_probe, worded
from stratascope.tasks.sequence.character_errors_words import GROUPS, WORDS, group_of

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View


def draw(view: View, options: Any) -> Iterator[Figure]:
    """One picture for each probe."""
    rows = view.metric("character_error_change")
    if not len(rows):
        return
    lead = leading_probe(view, rows["probe"].unique())
    arrays = view.arrays()
    for probe in sorted(rows["probe"].unique(), key=lambda name: (name != lead, name)):
        place = join_path("series", view.run, view.analysis, encode_path_part(probe), "rate")
        names = view.store.array_info(place)[3]["type"]
        yield _history(
            view, probe, arrays[f"{probe}/step"], arrays[f"{probe}/rate"], names, headline=probe == lead
        )


def _history(
    view: View, probe: str, steps: np.ndarray, rates: np.ndarray, names: list[str], headline: bool
) -> Figure:
    from stratascope.tasks.report.style import COLOURS, INK, new_axes, step_axis, to_svg

    groups = np.array([group_of(name) for name in names])
    present = [group for group in GROUPS if (groups == group).any()]
    bands = np.stack([rates[:, groups == group].sum(1) for group in present])
    figure, axes = new_axes(6.6, 3.6)
    colours = [COLOURS[(place * 3) % len(COLOURS)] for place in range(len(present))]
    axes.stackplot(steps, 100 * bands, colors=colours, alpha=0.75, linewidth=0)
    step_axis(axes, steps.tolist())
    axes.set_ylabel("share of all characters (%)")
    axes.set_ylim(0, 100 * float(bands.sum(0).max()) * 1.04)
    _legend(axes, [GROUPS[group] for group in present], colours, INK)
    change = bands[:, -1] - bands[:, 0]
    fallen, stayed = int(change.argmin()), int(change.argmax())
    words = {
        "first": plain_step(steps[0]), "last": plain_step(steps[-1]), "start": bands[:, 0].sum(), "end": bands[:, -1].sum(),
        "fallen": GROUPS[present[fallen]], "fall": -change[fallen], "stayed": GROUPS[present[stayed]], "stay": -change[stayed],
    }  # fmt: skip
    table: dict[str, list[Any]] = {"step": steps.tolist()}
    table |= {name: rates[:, number].tolist() for number, name in enumerate(names)}
    return worded(
        WORDS["history"], words, key=figure_key("history", probe), svg=to_svg(figure), run=view.run, probe=probe,
        title=f"Errors by kind over the training, probe {probe}", headline=headline, table=table,
    )  # fmt: skip


def _legend(axes: Any, titles: list[str], colours: list[str], ink: str) -> None:
    """The bands' names beside them, the topmost first."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, alpha=0.75) for colour in colours]
    axes.legend(
        handles[::-1], titles[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9.5, labelcolor=ink,
        handlelength=1.0,
    )  # fmt: skip
