"""The pictures of attribution over training: maps against the checkpoint before, and against the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import figure_key, leading_probe, lines_by, table_of, worded
from stratascope.tasks.vision.attribution_methods import attribution_methods
from stratascope.tasks.vision.attribution_pictures import FiledMaps, marked_caution, marked_title
from stratascope.tasks.vision.attribution_words import WORDS as _WORDS

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.tasks.contexts import View

_MEASURES = {"cosine": "cosine", "spearman": "rank correlation", "ssim": "structural similarity"}
_COLUMNS = ("step", "other_step", "probe", "part", "value", "low", "high", "n", "estimator")


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe and measure the similarity to the checkpoint before; by rank correlation also that to the last."""
    found = view.metric("attribution_similarity")
    if not len(found):
        return
    lead = leading_probe(view, found["probe"].unique())
    parts = found["part"].str.extract(r"method=(?P<method>[^;]+);measure=(?P<measure>[^;]+);against=(?P<against>[^;]+)(?P<null>;null=.*)?")  # fmt: skip
    found = found.assign(**{name: parts[name].fillna("") for name in parts})
    for probe in sorted(found["probe"].unique(), key=lambda name: (name != lead, name)):
        own = found[found["probe"] == probe]
        yield _settling(view, probe, own[(own["measure"] == "spearman") & (own["against"] == "last")])
        for measure in _MEASURES if probe == lead else ("spearman",):
            chosen = own[(own["measure"] == measure) & (own["against"] == "previous")]
            if len(chosen):
                yield _similarity(view, probe, measure, chosen)


def _titles(view: View, probe: str, rows: pd.DataFrame) -> tuple[dict[str, str], str]:
    """The title of each method in `rows`, marked where it has a warning; and the warnings as sentences."""
    filed = FiledMaps(view, view.probes[probe])
    known = attribution_methods()
    titles, cautions = {}, []
    for name in rows["method"].unique():
        warnings = filed.warnings(name)
        titles[name] = known[name].title + (" (!)" if warnings else "")
        cautions += [marked_caution(f"{known[name].title}: {warnings}")] if warnings else []
    return titles, "".join(cautions)


def _similarity(view: View, probe: str, measure: str, every: pd.DataFrame) -> Figure:
    from stratascope.tasks.report.style import lines

    titles, warning = _titles(view, probe, every)
    every = every.assign(title=[titles[name] for name in every["method"]])
    rows = every[every["null"] == ""]
    series, bands = lines_by(rows, "title", sorted(titles.values()))
    newest = rows[rows["step"] == rows["step"].max()]
    top, bottom = newest.loc[newest["value"].idxmax()], newest.loc[newest["value"].idxmin()]
    null = every[(every["null"] != "") & (every["step"] == top["step"]) & (every["method"] == top["method"])]
    numbers = {
        "measure": _MEASURES[measure], "step": plain_step(top["step"]), "top": top["title"], "high": top["value"],
        "bottom": bottom["title"], "low": bottom["value"], "n": int(top["n"]), "warning": warning,
        "null": float(null["value"].iloc[0]) if len(null) else float("nan"),
    }  # fmt: skip
    return worded(
        _WORDS["similarity"], numbers, key=figure_key("similarity", probe, measure),
        title=marked_title(f"Maps against the checkpoint before, {_MEASURES[measure]}, probe {probe}", warning),
        svg=lines(series, _MEASURES[measure], bands=bands), run=view.run, probe=probe, table=table_of(every, _COLUMNS),
    )  # fmt: skip


def _settling(view: View, probe: str, rows: pd.DataFrame) -> Figure:
    from stratascope.tasks.report.style import lines

    titles, warning = _titles(view, probe, rows)
    rows = rows.assign(title=[titles[name] for name in rows["method"]])
    series, bands = lines_by(rows, "title", sorted(titles.values()))
    settled = {}
    for name, (steps, values) in series.items():
        away = np.flatnonzero(np.asarray(values) < 0.9)
        settled[name] = steps[min(int(away[-1]) + 1, len(steps) - 1)] if len(away) else steps[0]
    slow = max(settled, key=lambda name: settled[name])
    starts = {name: values[0] for name, (_, values) in series.items()}
    early = max(starts, key=lambda name: starts[name])
    numbers = {
        "measure": _MEASURES["spearman"], "slow": slow, "when": plain_step(settled[slow]), "count": len(series),
        "n": int(rows["n"].max()), "early": early, "start": starts[early], "warning": warning,
    }  # fmt: skip
    return worded(
        _WORDS["settling"], numbers, key=figure_key("settling", probe),
        title=marked_title(f"Maps against the last checkpoint, probe {probe}", warning),
        svg=lines(series, _MEASURES["spearman"], bands=bands), run=view.run, probe=probe, headline=True, table=table_of(rows, _COLUMNS),
    )  # fmt: skip
