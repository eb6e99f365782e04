"""The pictures of experiments on memory: context curves, impulses in states and answers, erased states, all over training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import step_directory
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import counted, plain_number, plain_step
from stratascope.tasks.representation.pictures import figure_key, leading_probe, lines_by, table_of, worded
from stratascope.tasks.sequence.lag_pictures import Curve, lag_curves
from stratascope.tasks.sequence.memory_experiments_words import WORDS as _WORDS

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.tasks.contexts import View

_PASTS = {"none": "nothing before", "other": "another sample before", "shuffled": "shuffled past before"}
_ERASED = {"both": "all states erased", "cell": "cell states erased", "hidden": "hidden states erased"}
_IMPULSES = {"state": "state pushed", "input": "token replaced"}
_PUSHED = {"state": "push", "input": "token"}
_SINCE = "steps read since"
_LAYERS = 4
_COLUMNS = ("step", "probe", "layer", "part", "value", "low", "high", "n", "status", "reason")


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe the four experiments at the newest checkpoint; of the leading one their course over the steps."""
    rows = view.rows[view.rows["status"].isin(["ok", "vacuous"])]
    if not len(rows):
        return
    lead = leading_probe(view, rows["probe"].unique())
    for probe in sorted(rows["probe"].unique(), key=lambda name: (name != lead, name)):
        own = rows[rows["probe"] == probe]
        filed = _Newest(view, probe, int(own["step"].max()))
        yield from _context(filed, own, probe == lead)
        yield from _impulse(filed, own)
        yield from _answers(filed, options)
        yield from _erasure(filed)
        if probe == lead and own["step"].nunique() > 1:
            yield from _course(view, probe, own)


class _Newest:
    """What one checkpoint filed for one probe."""

    def __init__(self, view: View, probe: str, step: int) -> None:
        self.view, self.probe, self.step = view, probe, step
        arrays = view.arrays(step)
        self.curves = {path[len(probe) + 1 :]: values for path, values in arrays.items() if path.startswith(f"{probe}/")}  # fmt: skip

    def about(self, path: str) -> dict[str, Any]:
        """The attributes of the curve at `path`; names of layers hold no slash that is not one of the path."""
        place = ("runs", self.view.run, step_directory(self.step), self.view.analysis, self.probe)
        return self.view.store.array_info(join_path(*place, *path.split("/")))[3]

    def of(self, experiment: str) -> dict[str, np.ndarray]:
        return {path: values for path, values in sorted(self.curves.items()) if path.startswith(f"{experiment}/")}

    def figure(
        self, kind: str, numbers: dict[str, Any], title: str, svg: str, curves: dict[str, Curve], **more: Any
    ) -> Figure:
        table: dict[str, list[Any]] = {name: [] for name in ("curve", "lag", "mean", "low", "high")}
        for name, curve in curves.items():
            for place, lag in enumerate(curve.lags):
                values = (name, lag, *(float(line[place]) for line in (curve.values, curve.low, curve.high)))
                for column, value in zip(table, values, strict=True):
                    table[column].append(value)
        return worded(
            _WORDS[kind], {"step": plain_step(self.step)} | numbers, key=figure_key(kind, self.probe),
            title=f"{title}, probe {self.probe}", svg=svg, run=self.view.run, probe=self.probe, table=table, **more,
        )  # fmt: skip


def _context(filed: _Newest, rows: pd.DataFrame, leads: bool) -> Iterator[Figure]:
    found = {path.split("/")[1]: path for path in filed.of("context")}
    if not found:
        return
    about = {past: filed.about(path) for past, path in found.items()}
    curves = {}
    for past in _PASTS:
        if past in found:
            band = filed.curves[found[past]]
            curves[_PASTS[past]] = Curve.banded(about[past]["contexts"], band[:, :-1])
    first = next(past for past in _PASTS if past in found)
    mean = filed.curves[found[first]][0]
    # The gain is told of the past that comes nearest to what the network is used to: a foreign one, where there is one.
    lead = "other" if "other" in found else first
    length = rows[(rows["step"] == filed.step) & (rows["part"] == f"past={lead};share=0.9")]
    if not len(length):
        gain = "That difference is not told from nothing: the past gains nothing."
    elif length["status"].iloc[0] == "ok":
        gain = f"Nine tenths of that gain need {length['value'].iloc[0]:.3g} tokens ({_PASTS[lead]} them)."
    else:
        gain = f"Even {about[lead]['contexts'][-1]} tokens do not give nine tenths of that gain."
    numbers = {
        "n": f"{about[first]['samples']:,}", "one": filed.curves[found[lead]][0, 0], "whole": mean[-1], "gain": gain,
        "lead": _PASTS[lead],
    }  # fmt: skip
    svg = lag_curves(curves, "own tokens left", "loss", ratios=True, level=(float(mean[-1]), "whole past"))
    yield filed.figure("context", numbers, "What the context is worth", svg, curves, headline=leads)


def _layers_of(filed: _Newest, impulse: str, watched: str) -> list[tuple[str, str]]:
    """(layer, path)."""
    start, end = f"impulse/{impulse}/", f"/{watched}"
    return [(path[len(start) : -len(end)], path) for path in filed.of(f"impulse/{impulse}") if path.endswith(end)]


def _impulse_curves(filed: _Newest, watched: str) -> tuple[dict[str, Curve], int]:
    curves, count = {}, 0
    for impulse, title in _IMPULSES.items():
        found = _layers_of(filed, impulse, watched)
        if watched == "output" and impulse == "input":
            found = found[:1]  # the same answers, whichever layer is watched
        for place, (layer, path) in enumerate(found[:_LAYERS]):
            band = filed.curves[path]
            known = np.flatnonzero(np.isfinite(band[0]))
            name = title if watched == "output" and impulse == "input" else f"{layer}, {title}"
            if len(known):
                curves[name] = Curve.banded(
                    known.tolist(), band[:, known], line="-" if impulse == "state" else "--", colour=place
                )
            count = max(count, int(filed.about(path)["samples"]))
    return curves, count


def _impulse(filed: _Newest, rows: pd.DataFrame) -> Iterator[Figure]:
    curves, count = _impulse_curves(filed, "state")
    if not curves:
        return
    own = rows[(rows["metric"] == "impulse_half_life") & (rows["step"] == filed.step)]
    lives = []
    for impulse, title in _IMPULSES.items():
        chosen = own[own["part"] == f"impulse={impulse};watched=state"]
        if len(chosen):
            longest = chosen.loc[chosen["value"].idxmax()]
            least = "at least " if longest["status"] == "vacuous" else ""
            lives.append(f"With the {title} the longest half-life is {least}{longest['value']:.3g} steps, in {longest['layer']}.")  # fmt: skip
    numbers = {"n": f"{count:,}", "lives": " ".join(lives) or "No disturbance changed any state."}
    svg = lag_curves(curves, _SINCE, "distance of the state", logarithmic=True)
    yield filed.figure("impulse", numbers, "How long a disturbance of the state lives", svg, curves)


def _answers(filed: _Newest, options: Any) -> Iterator[Figure]:
    curves, count = _impulse_curves(filed, "output")
    tops = {name: float(np.nanmax(curve.values)) for name, curve in curves.items()}
    if not tops or not max(tops.values()) > 0:
        return
    which = max(tops, key=lambda name: tops[name])
    values = np.asarray(curves[which].values)
    numbers = {
        "n": f"{count:,}", "top": tops[which], "which": which, "last": curves[which].lags[-1],
        "left": plain_number(float(f"{values[-1]:.2g}")), "places": counted(options.places, "step"),
        "distance": "total variation between the answers, from 0, the same, to 1, nothing in common, or the size of the difference where answers are numbers",
    }  # fmt: skip
    svg = lag_curves(curves, _SINCE, "change of the answer", logarithmic=True)
    yield filed.figure("answer", numbers, "How long a disturbance reaches the answer", svg, curves)


def _erasure(filed: _Newest) -> Iterator[Figure]:
    curves, samples = {}, 0
    for what, title in _ERASED.items():
        band = filed.curves.get(f"erasure/{what}")
        known = np.flatnonzero(np.isfinite(band[0])) if band is not None else np.zeros(0, int)
        if band is not None and len(known):
            curves[title] = Curve.banded(known.tolist(), band[:, known])
            samples = int(filed.about(f"erasure/{what}")["samples"])
    if not curves:
        return
    tops = {name: float(np.nanmax(curve.values)) for name, curve in curves.items()}
    which = max(tops, key=lambda name: tops[name])
    lead = next(iter(curves))
    values, low = np.asarray(curves[lead].values), np.asarray(curves[lead].low)
    back = [lag for lag, bottom in zip(curves[lead].lags, low, strict=True) if not bottom > 0]
    numbers = {
        "n": f"{samples:,}", "top": tops[which], "which": which,
        "when": f"{counted(int(curves[which].lags[int(np.nanargmax(curves[which].values))]), 'step')} on",
        "end": f"With {lead} it is told from zero up to {back[0] - 1} steps on, no longer." if back and back[0] > 1
        else f"With {lead} it is {values[-1]:.2g} {curves[lead].lags[-1]} steps on." if not back
        else f"With {lead} it is not told from zero at any step.",
    }  # fmt: skip
    svg = lag_curves(curves, _SINCE, "rise of the loss", level=(0.0, ""))
    yield filed.figure("erasure", numbers, "What erasing the state costs", svg, curves)


def _course(view: View, probe: str, rows: pd.DataFrame) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    past = rows["part"].str.extract(r"past=([a-z]+);share=0\.9")[0]
    lived = rows["part"].str.extract(r"impulse=([a-z]+);watched=state")[0]
    names = past.map(
        {"none": "context, no past", "other": "context, other past", "shuffled": "context, shuffled past"},
        na_action="ignore",
    )
    titles = [f"{_PUSHED[kind]}, {layer}" if isinstance(kind, str) else None for layer, kind in zip(rows["layer"], lived, strict=True)]  # fmt: skip
    rows = rows.assign(title=names.where(names.notna(), titles))
    chosen = rows[rows["title"].notna() & rows["metric"].isin(["context_gain_length", "impulse_half_life"])].sort_values("step")  # fmt: skip
    if not len(chosen):
        return
    order = sorted(chosen["title"].unique(), key=lambda name: (not name.startswith("context"), name))[:8]
    series, bands = lines_by(chosen, "title", order)
    newest = chosen[chosen["step"] == chosen["step"].max()]
    bound = chosen[chosen["status"] == "vacuous"]
    told = [f"{name} {plain_number(float(f'{value:.3g}'))}" for name, value in zip(newest["title"], newest["value"], strict=True) if name in order]  # fmt: skip
    numbers = {
        "step": plain_step(newest["step"].iloc[0]), "numbers": "; ".join(told) + ".",
        "bounds": f"{len(bound)} of {len(chosen)} points are lower bounds: the memory was longer than what was watched."
        if len(bound) else "None of these was cut off by the end of what was watched.",
    }  # fmt: skip
    yield worded(
        _WORDS["course"], numbers, key=figure_key("course", probe), title=f"Memory over training, probe {probe}",
        svg=lines(series, "steps", bands=bands, height=3.6), run=view.run, probe=probe, table=table_of(chosen, _COLUMNS),
    )  # fmt: skip
