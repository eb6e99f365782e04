"""The pictures of gradients through time: decay over the lag, the table by loss and source step, and Jacobians."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import step_directory
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import counted, plain_number, plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, table_of, worded
from stratascope.tasks.sequence.gradient_through_time_words import WORDS as _WORDS
from stratascope.tasks.sequence.lag_pictures import BACK, Curve, lag_curves, step_table, word_bars
from stratascope.tasks.sequence.lags import length_holding
from stratascope.tasks.sequence.sequence_samples import names_of, token_words

if TYPE_CHECKING:
    from stratascope.storage.probes import Probe
    from stratascope.tasks.contexts import View

STATES = {"hidden": "hidden state", "cell": "cell state"}
_FRAMES = 12
_TOKENS = 60
_SAMPLES = 2
_LAYERS = 6


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe the decay over the lag; of the leading one the table, Jacobians and single samples too."""
    found = view.metric("gradient_norm_by_lag")
    if not len(found):
        return
    lead = leading_probe(view, found["probe"].unique())
    for probe in sorted(found["probe"].unique(), key=lambda name: (name != lead, name)):
        rows = found[found["probe"] == probe]
        steps = sorted({int(step) for step in rows["step"]})
        newest = Filed(view, steps[-1])
        names = newest.states(probe)
        if not names:
            continue
        yield _decay(view, probe, newest, Filed(view, steps[0]), names, probe == lead)
        if probe != lead:
            continue
        for layer, state in _leading_states(names):
            yield from _table(view, probe, layer, state, steps)
            yield from _samples(view, probe, newest, layer, state)
        for layer in dict.fromkeys(layer for layer, _ in names[: 2 * _LAYERS]):
            yield from _jacobian(view, probe, newest, layer)


class Filed:
    """The arrays of one checkpoint."""

    def __init__(self, view: View, step: int) -> None:
        self.step = step
        self._view, self._arrays = view, view.arrays(step)

    def states(self, probe: str) -> list[tuple[str, str]]:
        """(layer, state) of every profile, cell states before hidden ones."""
        found = []
        for path in self._arrays:
            name, _, rest = path.partition("/")
            if name == probe and rest.endswith("/profile"):
                layer, state = rest[: -len("/profile")].rsplit("/", 1)
                found.append((layer, state))
        return sorted(found)

    def get(self, *place: str) -> np.ndarray | None:
        return self._arrays.get("/".join(place))

    def about(self, *place: str) -> Mapping[str, Any]:
        root = ("runs", self._view.run, step_directory(self.step), self._view.analysis)
        return self._view.store.array_info(join_path(*root, *place))[3]


def state_title(layer: str, state: str) -> str:
    return f"{layer}, {STATES[state]}"


def _leading_states(names: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The last layer's cell state, or its hidden state where it has none."""
    layer = names[-1][0]
    return [next(item for item in names if item[0] == layer)]


def _decay(
    view: View, probe: str, newest: Filed, first: Filed, names: list[tuple[str, str]], leads: bool
) -> Figure:
    curves: dict[str, Curve] = {}
    table: dict[str, list[Any]] = {name: [] for name in ("step", "layer", "state", "lag", "mean", "low", "high")}
    lengths = {}
    for place, (layer, state) in enumerate(names[: 2 * _LAYERS]):
        for filed, dotted in ((newest, False), (first, True)):
            band = filed.get(probe, layer, state, "profile")
            if band is None or (dotted and first.step == newest.step):
                continue
            lags = list(range(band.shape[1]))
            title = state_title(layer, state)
            if dotted:
                curves[f"{title}, step {plain_step(first.step)}"] = Curve(lags, band[0], line=":", colour=place)
            else:
                curves[title] = Curve.banded(lags, band, colour=place)
                lengths[layer, state] = [length_holding(band[0], share) for share in (0.5, 0.9)]
            for lag in lags:
                values = (filed.step, layer, state, lag, *(float(value) for value in band[:, lag]))
                for name, value in zip(table, values, strict=True):
                    table[name].append(value)
    known = {name: value for name, value in lengths.items() if np.isfinite(value[0])} or {
        names[0]: [float("nan")] * 2
    }
    best = max(known, key=lambda name: known[name][0])
    profile = newest.get(probe, *best, "profile")
    assert profile is not None
    about = newest.about(probe, *best, "profile")
    mean = profile[0]
    last = int(np.flatnonzero(np.isfinite(mean))[-1]) if np.isfinite(mean).any() else 0
    numbers = {
        "step": plain_step(newest.step), "first": plain_step(first.step), "n": f"{about['samples']:,}",
        "loss_steps": "the loss at the end" if about["loss_step"] == [-1] else counted(len(about["loss_step"]), "loss step"),
        "best": state_title(*best), "window": about["window"], "half": known[best][0], "ninety": known[best][1],
        "last": last, "left": _share(mean[last], mean[0]), "residual": about["residual"],
        "limit": _limit(known[best][0], about["window"]),
    }  # fmt: skip
    return worded(
        _WORDS["decay"], numbers, key=figure_key("decay", probe),
        title=f"Gradient of the loss by earlier states, probe {probe}",
        svg=lag_curves(curves, BACK, "gradient norm", logarithmic=True), run=view.run, probe=probe,
        headline=leads, table=table,
    )  # fmt: skip


def _share(part: float, whole: float) -> str:
    if not whole > 0:
        return "nothing"
    share = part / whole
    return f"{share:.0%}" if share >= 0.01 else f"{share:.0e}"


def _limit(half: float, window: int) -> str:
    if half > 0.4 * window:
        return "That is near half of the window: the window, not the network, sets this length."
    return "The window is longer than that, so the length is the network's own."


def _table(view: View, probe: str, layer: str, state: str, steps: list[int]) -> Iterator[Figure]:
    from stratascope.tasks.report.style import moving_heatmap

    grids, shown = [], []
    for step in even_choice(steps, _FRAMES):
        filed = Filed(view, step)
        values = filed.get(probe, layer, state, "table")
        if values is None or len(values) < 2:
            continue
        about = filed.about(probe, layer, state, "table")
        loss_steps = about["loss_step"]
        time = max(loss_steps) + (values.shape[1] if about["backwards"] else 1)
        with np.errstate(divide="ignore"):
            grids.append(np.log10(step_table(values, loss_steps, about["backwards"], time)))
        shown.append(step)
    if not shown or len({grid.shape for grid in grids}) > 1:
        return
    stacked = np.where(np.isfinite(grids), grids, np.nan)
    if not np.isfinite(stacked[-1]).any():
        return
    # Rounding must not take the colours: six powers of ten below the brightest everything is as dark.
    floor = np.nanmax(stacked) - 6
    columns = [str(number) for number in range(stacked.shape[2])]
    numbers = {
        "state": STATES[state], "layer": layer, "count": len(loss_steps), "total": time, "window": about["window"],
        "step": plain_step(shown[-1]), "faint": 10 ** float(np.nanmin(stacked[-1])), "bright": 10 ** float(np.nanmax(stacked[-1])),
    }  # fmt: skip
    where = np.argwhere(np.isfinite(stacked))
    yield worded(
        _WORDS["table"], numbers, key=figure_key("table", probe, layer, state),
        title=f"Gradient by loss step and source step, {layer}, probe {probe}",
        frames=moving_heatmap(
            np.maximum(stacked, floor), shown, [str(step) for step in loss_steps], columns,
            "gradient norm, power of ten", "loss step", "source step",
        ),
        run=view.run, layer=layer, probe=probe,
        table={
            "step": [shown[place] for place in where[:, 0]], "loss_step": [loss_steps[place] for place in where[:, 1]],
            "source_step": where[:, 2].tolist(), "log10_norm": stacked[tuple(where.T)].tolist(),
        },
    )  # fmt: skip


def _samples(view: View, probe: str, filed: Filed, layer: str, state: str) -> Iterator[Figure]:
    values, ids = filed.get(probe, layer, state, "shown"), filed.get(probe, "sample_id")
    if values is None or ids is None or not view.show_inputs:
        return
    about = filed.about(probe, layer, state, "shown")
    whole = about["loss_step"] == [-1]
    for place in range(min(_SAMPLES, len(values))):
        line = values[place, -1]
        known = np.flatnonzero(np.isfinite(line))[:_TOKENS]
        if len(known) < 2 or not line[known].max() > 0:
            continue
        words, last = _words_back(view.probes[probe], ids[place], len(known), about, layer)
        bars = line[known][::-1].tolist()
        rest = bars[:-1]
        far = int(np.argmax(rest))
        sample = str(ids[place])
        numbers = {
            "sample": sample, "loss": "the loss" if whole else f"the loss at token {last}", "state": STATES[state], "layer": layer,
            "step": plain_step(filed.step), "shown": len(known), "real": int(np.isfinite(line).sum()),
            "distance": counted(len(bars) - 1 - far, "step"), "share": rest[far] / max(bars),
        }  # fmt: skip
        yield worded(
            _WORDS["sample"], numbers, key=figure_key("sample", probe, layer, sample),
            title=f"What the loss of sample {sample} hangs on, {layer}, probe {probe}",
            svg=word_bars(words, bars, "gradient norm", len(bars) - 1), run=view.run, layer=layer, probe=probe,
            table={"token": words, "lag": list(range(len(bars) - 1, -1, -1)), "gradient_norm": bars},
        )  # fmt: skip


def _words_back(
    probe: Probe, sample: Any, count: int, about: Mapping[str, Any], layer: str
) -> tuple[list[str], int]:
    """The words of the last `count` tokens up to the loss step, in the order in which the layer read them."""
    from stratascope.storage.datasets.dataset import leaves_of

    row = int(np.flatnonzero(probe.sample_id == sample)[0])
    inputs = leaves_of(probe.inputs)
    if len(inputs) > 1:  # which of them a layer reads is not known here
        return [f"step {number}" for number in range(1 - count, 1)], about["loss_step"][-1]
    name, values = next(iter(inputs.items()))
    one = np.asarray(values[row : row + 1])[0]
    words = token_words(one, names_of(probe, name))
    mask = probe.masks.get(name)
    real = np.ones(len(words), bool) if mask is None else np.asarray(mask[row : row + 1])[0].astype(bool)
    last = about["loss_step"][-1]
    places = np.flatnonzero(real[: len(words)])
    if about["backwards"]:
        places = places[::-1]
    if last != -1:
        places = places[places >= last] if about["backwards"] else places[places <= last]
    chosen = [words[place] for place in places[-count:]]
    return [f"step {number}" for number in range(1 - count, 1)] if len(chosen) < count else chosen, last


def _jacobian(view: View, probe: str, filed: Filed, layer: str) -> Iterator[Figure]:
    values = filed.get(probe, layer, "jacobian")
    if values is None:
        return
    about = filed.about(probe, layer, "jacobian")
    lags = about["lag"]
    with np.errstate(all="ignore"):
        known = np.isfinite(values).any(1)
        middle = np.where(known, np.nanmedian(np.where(known[:, None], values, 0.0), axis=1), np.nan)
    titles = {
        "full_largest": ("whole derivative, largest", "-", 0), "full_typical": ("whole derivative, root mean square", "--", 0),
        "direct_largest": ("gates alone, largest", "-", 1), "direct_typical": ("gates alone, root mean square", "--", 1),
    }  # fmt: skip
    curves = {
        title: Curve(lags, middle[place], line=line, colour=colour)
        for place, (title, line, colour) in enumerate(titles[name] for name in about["norm"])
        if np.isfinite(middle[place]).any()
    }
    sound = np.flatnonzero(np.isfinite(middle[0]))
    half = int(sound[len(sound) // 2])
    full, direct = float(middle[0, half]), float(middle[2, half])
    numbers = {
        "state": STATES["cell" if about["cell"] == "lstm" else "hidden"], "layer": layer, "step": plain_step(filed.step),
        "n": int(np.isfinite(values[0]).any(1).sum()), "lag": lags[half], "full": full,
        "direct": plain_number(float(f"{direct:.2g}")) if np.isfinite(direct) else "does not exist",
        "verdict": _verdict(full, direct),
        "method": "All singular values were computed." if about["exact"] else "The layer is large: norms come from power iteration and 32 random changes.",
    }  # fmt: skip
    rows = view.metric("state_jacobian_norm", probe=probe, layer=layer)
    yield worded(
        _WORDS["jacobian"], numbers, key=figure_key("jacobian", probe, layer),
        title=f"What is left of a change of the state, {layer}, probe {probe}",
        svg=lag_curves(curves, "steps after the change", "part that is left", logarithmic=True), run=view.run, layer=layer,
        probe=probe, table=table_of(rows, ("step", "part", "value", "low", "high", "n", "convention")),
    )  # fmt: skip


def _verdict(full: float, direct: float) -> str:
    if not np.isfinite(direct):
        return "all of it goes over the recurrent weights"
    ratio = full / direct if direct > 0 else np.inf
    if 0.8 <= ratio <= 1.25:
        return "the gates tell the whole of it"
    return f"the gates alone miss a factor of {ratio:.2g}" if ratio > 1 else f"the gates alone promise {1 / ratio:.2g} times what is left"  # fmt: skip
