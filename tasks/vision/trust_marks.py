"""Which methods failed on this network, for every figure that shows their maps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from stratascope.tasks.vision.explainers import NULLS

if TYPE_CHECKING:
    from stratascope.tasks.analysis import Figure
    from stratascope.tasks.contexts import View

FILED_BY = "attribution_trust"


def failed_methods(view: View, probe: str) -> dict[str, str]:
    """Why each method failed its tests at the last checkpoint of this run that was tested, by its name; none where none was.

    Reads what `attribution_trust` filed for the run; where it did not run nothing is known, and nothing is said.
    """
    rows = view.newest_of(FILED_BY)
    if rows is None:
        return {}
    rows = rows[(rows["metric"] == "attribution_trusted") & (rows["probe"] == probe)]
    rows = rows[(rows["status"] == "ok") & (rows["value"] == 0)]
    return {
        part.removeprefix("method="): reason for part, reason in zip(rows["part"], rows["reason"], strict=True)
    }


def marked(
    figures: Iterable[Figure], failed: Mapping[str, Mapping[str, str]], titles: Mapping[str, str]
) -> Iterator[Figure]:
    """`figures` with a mark in the title and the reasons in the caution of each that shows a method which failed.

    `failed` holds reasons by probe and method, `titles` what methods are called in figures; the two nulls are not marked. A figure shows the methods that stand
    in the column `method` of its table, and those whose title is in its own.
    """
    for figure in figures:
        known = {name: reason for name, reason in failed.get(figure.probe, {}).items() if name not in NULLS}
        listed = set(figure.table.get("method", ()))
        shown = {name for name in known if name in listed or _stands_in(titles.get(name, ""), figure.title)}
        if shown:
            told = "; ".join(f"{titles.get(name, name)}: {known[name]}" for name in sorted(shown))
            figure = replace(
                figure, title=f"{figure.title} (with a warning)",
                caution=f"{figure.caution} Failed the tests of attribution_trust on this network: {told}.",
            )  # fmt: skip
        yield figure


def _stands_in(name: str, title: str) -> bool:
    """Whether `title` has `name` as words of their own: `Grad-CAM` is not in `Eigen-Grad-CAM`."""
    return bool(name) and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w+-])", title, re.IGNORECASE) is not None
